"""Dotted keys and nested arrays blow a small file up in memory; a long run of digits takes quadratic time to read."""

from __future__ import annotations

from pathlib import Path

from victim import Commands


def prepare(place: Path, canary: Path) -> Commands:
    (place / "deep.toml").write_text("a = " + "[" * 50_000)
    (place / "dotted.toml").write_text(".".join(["a"] * 20_000) + " = 1")
    (place / "digits.toml").write_text("a = " + "9" * 200_000)
    (place / "long.toml").write_text('a = "' + "x" * 30_000_000 + '"')
    return [(["plan", name], "toml") for name in ("deep.toml", "dotted.toml", "digits.toml", "long.toml")]
