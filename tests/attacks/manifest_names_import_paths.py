"""Families and stages named by where they could be imported from: frameworks that resolve "module:attribute" or dotted names
found in saved files hand the choice of code to whoever wrote the file."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, code, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    names = (
        "os:system",
        "os.system",
        "builtins.eval",
        "zoo_compress.methods.share:ShareFFN",
        "../evil",
        "zoo:os.system",
    )
    (place / "evil.py").write_text(code(canary))
    for number, name in enumerate(names):
        for key in ("family", "use", "plugin"):
            (place / f"{number}{key}").mkdir()
            folder = artifact(place / f"{number}{key}")
            data = manifest(folder)
            if key == "family":
                data["spec"]["family"] = name
            else:
                data["lineage"][0][key] = name
            seal(folder, data)
            commands += all_of(folder, "No (family|compressor) named|needs plugin|is not in plugin")
    return commands
