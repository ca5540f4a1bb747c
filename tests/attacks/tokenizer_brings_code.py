"""The tokenizer has an `auto_map` of its own, and a class name that is looked up: the model's config was checked, this was
not."""

from __future__ import annotations

import shutil
from pathlib import Path

from victim import Commands, all_of, change, checkpoint, code


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (folder / "tokenization_evil.py").write_text(code(canary))
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Tokenizer", None]},
        tokenizer_class="tokenization_evil.Tokenizer",
    )
    other = Path(shutil.copytree(folder, place / "other"))
    change(other / "tokenizer_config.json", auto_map=None, tokenizer_class="os.system")
    return [*all_of(folder, ""), *all_of(other, "")]
