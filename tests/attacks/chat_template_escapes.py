"""A chat template is a Jinja program that comes with the tokenizer. One that climbs from a string to `os.system` runs
commands wherever templates are rendered outside a sandbox; there are several ways up."""

from __future__ import annotations

import shutil
from pathlib import Path

from victim import Commands, change, chats, checkpoint

CLIMBS = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for c in ''.__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ (''|attr('__class__')|attr('__base__')|attr('__subclasses__'))() }}",
    "{{ raise_exception.__globals__['os'].system('touch CANARY') }}",
    "{{ namespace.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ '{0.__class__.__base__}'.format(1) }}{{ ('{0.__globals__}'|safe).format_map({'0': cycler}) }}",
    "{{ dict.__call__.__globals__ }}",
)


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    commands: Commands = []
    for number, climb in enumerate(CLIMBS):
        evil = Path(shutil.copytree(folder, place / f"evil{number}"))
        text = climb.replace("CANARY", str(canary))
        change(evil / "tokenizer_config.json", chat_template=text)
        (evil / "chat_template.jinja").write_text(text)
        commands += chats(evil, "^error: The chat template of evil. (tries what no template may|fails|needs what)")
    return commands
