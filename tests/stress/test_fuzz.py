"""A few mutated documents, and all that led to a finding before, in a process of their own; see fuzz.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent / "fuzz.py"


def test_mutated_documents_lead_to_clean_errors_alone(tmp_path: Path):
    args = [
        "--cases",
        "90",
        "--seed",
        "11",
        "--corpus",
        str(tmp_path / "corpus"),
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run([sys.executable, str(FUZZ), *args], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["findings"] == {} and sum(found["counts"].values()) >= 90
    assert not (tmp_path / "corpus").exists()
    kinds = {label.partition(":")[0] for label in found["counts"]}
    assert kinds == {"recipe", "registry", "manifest", "gguf"}
    assert sum(count for label, count in found["counts"].items() if "found earlier, refused" in label) == len(
        list((FUZZ.parent / "corpus").iterdir())
    )
