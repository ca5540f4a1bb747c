"""A chat template that is one short line of Jinja loops for years, or asks for more memory than there is; both are within
what a sandbox allows."""

from __future__ import annotations

import shutil
from pathlib import Path

from victim import Commands, change, chats, checkpoint

BOMBS = (
    "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ '(' * 5 }}{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
)


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    commands: Commands = []
    for number, bomb in enumerate(BOMBS):
        evil = Path(shutil.copytree(folder, place / f"bomb{number}"))
        change(evil / "tokenizer_config.json", chat_template=bomb)
        (evil / "chat_template.jinja").write_text(bomb)
        commands += chats(
            evil, "^error: The chat template of bomb. (was stopped: it takes more than 2 seconds or 256 MB|fails: )"
        )
    return commands
