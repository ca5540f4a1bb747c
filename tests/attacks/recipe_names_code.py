"""Recipes that name stages, losses, tasks and data by import path: what a configuration system resolves with importlib is code
chosen by whoever sends the recipe."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, checkpoint, code


def prepare(place: Path, canary: Path) -> Commands:
    (place / "evil.py").write_text(code(canary))
    folder = checkpoint(place)
    head = f'[recipe]\nname = "x"\n[model]\nname = "{folder}"\n[data]\ntrain = "words.txt"\n'
    (place / "words.txt").write_text("w5 w6 w7 " * 500)
    bodies = [
        '[[stage]]\nuse = "evil:run"',
        '[[stage]]\nuse = "os.system"',
        '[[stage]]\nuse = "zoo_compress.methods.share:ShareFFN"',
        '[[stage]]\nuse = "distill"\nloss = [{ use = "evil:loss" }]',
        '[[stage]]\nuse = "distill"\nteacher = "evil:teacher"',
        '[[stage]]\nuse = "inherit"\nlayers = "__import__(\'os\')"',
        '[evaluate]\ntasks = ["evil:task"]\n[[stage]]\nuse = "quantize.int8"',
    ]
    commands = []
    for number, body in enumerate(bodies):
        (place / f"recipe{number}.toml").write_text(head + body + "\n")
        commands.append((["plan", f"recipe{number}.toml"], "recipe"))
    return commands
