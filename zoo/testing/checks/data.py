"""Checks of data sources: records that can be found again and learnt from, the same at every reading, each split with its own."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.testing.bench import Bench, other_chance, thing
from zoo.testing.check import Check, Once, require
from zoo.testing.surroundings import surroundings_kept

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset, Sample
    from zoo.plugins.declarations import Declared

HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}
SOME, MANY = 32, 1024  # records of a split that are looked at, and that are compared with those of the others


def checks_of_data(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one data source, on every split."""
    subject = _Source(bench, bench.label(declaration.name))
    for check, run in subject.questions.items():
        yield Check("data", subject.name, check, run, bench.plugin.path)


class _Source:
    """One data source under test."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.opened = Once(self._open)
        self.questions = {
            "resolve": self.resolve,
            "records": self.records,
            "splits": self.splits,
            "determinism": self.determinism,
            "side effects": self.side_effects,
        }

    def resolve(self, folder: Path) -> None:
        """It has splits, and each holds records."""
        self.opened()

    def records(self, folder: Path) -> None:
        """Every record has something to learn from, and a place by which it can be found again."""
        from zoo.data.dataset import Sample

        for split, data in self.opened.after("resolve").items():
            where = f"{self.name}:{split}"
            wrong = [sample for sample in data if not isinstance(sample, Sample)]
            require(not wrong, f"{where} yields {wrong[:1]!r:.80}, not a zoo.data.dataset.Sample")
            for number, sample in enumerate(data):
                require(
                    bool(sample.where), f"{where}: record {number} does not say where it is from (`where` is empty)"
                )
                self._check_content(sample)
            origins = [sample.where for sample in data]
            twice = next((origin for i, origin in enumerate(origins) if origin in origins[:i]), "")
            require(not twice, f"{where}: two records are from {twice!r}; each needs a `where` of its own")

    def _check_content(self, sample: Sample) -> None:
        """A record has a text, or an image and its label, or, where the plugin has an evaluator for it, fields of its own."""
        from zoo.family.vision.images import read_image

        fields = sample.fields
        told = "text" in fields or {"image", "label"} <= fields.keys() or bool(self.bench.plugin.declares("evaluator"))
        require(
            told,
            f"{sample.where}: no field 'text', and no 'image' with its 'label'; fields are {', '.join(fields) or 'none'}",
        )
        text = fields.get("text", "...")
        require(isinstance(text, str), f"{sample.where}: 'text' is {type(text).__name__}, not text")
        require(
            any(not unicodedata.category(character).startswith(("Z", "C")) for character in text),
            f"{sample.where}: 'text' is empty, so there is nothing to learn; leave the record out",
        )
        prompt = fields.get("prompt", "")
        require(isinstance(prompt, str), f"{sample.where}: 'prompt' is {type(prompt).__name__}, not text")
        if "image" in fields:
            read_image(fields["image"])
        require(
            "text" in fields or "image" not in fields or fields.get("label") not in (None, ""),
            f"{sample.where}: the 'label' of its image is empty; leave the record out",
        )

    def splits(self, folder: Path) -> None:
        """No record of a split that things are measured on is in another, from which they learn."""
        from zoo.data.overlap import overlaps

        for shared in overlaps({split: self._dataset(split, MANY) for split in self.opened.after("resolve")}):
            require(
                not {shared.role, shared.other} & HELD_OUT,
                f"{self.name}: {str(shared).partition(':')[0].rstrip('.')}; split by what records hold",
            )

    def determinism(self, folder: Path) -> None:
        """Opened again and again, in part, and in a fresh process, it holds the same."""
        for split, data in self.opened.after("resolve").items():
            for count in (SOME, len(data) // 2 or 1, SOME):
                with other_chance():
                    again = self._dataset(split, count)
                require(
                    _identity(again) == _identity(data[:count]),
                    f"{self.name}:{split} holds something else when it is opened again",
                )
            there = self.bench.fresh.fingerprint(self._reference(split))
            require(
                there == data.fingerprint,
                f"{self.name}:{split} holds something else in a fresh process; does it follow the order of a set?",
            )

    def side_effects(self, folder: Path) -> None:
        """Reading it leaves the random states, torch, the process and itself as they were."""
        for split in self.opened.after("resolve"):
            with other_chance(), surroundings_kept(f"{self.name}:{split}", thing("data", self.name)):
                self._dataset(split)

    def _open(self) -> dict[str, Dataset]:
        splits = thing("data", self.name).splits
        require(
            isinstance(splits, tuple) and bool(splits) and all(isinstance(split, str) for split in splits),
            f'{self.name}: splits is {splits!r:.60}; name them in a tuple, such as ("train", "test")',
        )
        return {split: self._dataset(split) for split in splits}

    def _dataset(self, split: str, count: int = SOME) -> Dataset:
        from zoo.data.open import open_data

        return open_data(self._reference(split, count))

    def _reference(self, split: str, count: int = SOME) -> str:
        return f"{self.name}:{split}[:{count}]"


def _identity(data: Dataset) -> tuple[str, list[str]]:
    """What records hold, and where they are from."""
    return data.fingerprint, [sample.where for sample in data]
