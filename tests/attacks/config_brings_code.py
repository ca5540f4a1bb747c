"""`auto_map` in config.json names Python files beside the weights; with trust_remote_code, which many scripts switch on for
everybody, they are imported."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, change, checkpoint, code


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (folder / "modeling_evil.py").write_text(code(canary))
    change(
        folder / "config.json",
        auto_map={"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"},
    )
    return all_of(folder, "asks for remote code")
