"""`auto_map` in config.json names Python files beside the weights; with trust_remote_code, which many scripts switch on for
everybody, they are imported. Beside a class that transformers has they are left over: the model loads without them, whether
the config names them at its top or in a nested config (CVE-2026-5241). For a class that nobody here has it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

from victim import Commands, all_of, change, checkpoint, code


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (folder / "modeling_evil.py").write_text(code(canary))
    evil = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    change(folder / "config.json", auto_map=evil, text_config={"model_type": "llama", "auto_map": evil})
    unknown = Path(shutil.copytree(folder, place / "unknown"))
    change(unknown / "config.json", model_type="evil")
    return [*all_of(folder, ""), *all_of(unknown, "asks for remote code")]
