"""Labels of images: which class a record means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

if TYPE_CHECKING:
    from zoo.data.dataset import Sample


def plain_name(label: str) -> str:
    """A class's name as it is compared: folders write "great_white_shark" for "great white shark"."""
    return " ".join(re.sub(r"(?<=[^\W_])[-_]+(?=[^\W_])", " ", label.casefold()).split())


def label_of(sample: Sample, names: Sequence[str], aliases: Mapping[str, Sequence[int]]) -> int:
    """The class of a record: its "label", else its text; a number, one of the classes' names, or an alias of one.

    Raises:
        DataError: it names no class, or could be any of several.
    """
    from zoo.errors import DataError, nearest

    label = sample.fields.get("label", sample.fields.get("text"))
    if isinstance(label, str):
        if label in names:
            return list(names).index(label)
        meant = aliases.get(plain_name(label), ())
        if len(meant) == 1:
            return meant[0]
        if meant:
            several = " or ".join(repr(names[i]) for i in meant)
            raise DataError(f"{sample.where}: {label!r} is a name of several classes: write {several}, or a number.")
        if not label.strip().isdecimal():
            raise DataError(f"{sample.where}: {label!r} is none of the {len(names)} classes.{nearest(label, names)}")
        label = int(label)
    number = index(label) if isinstance(label, SupportsIndex) else -1  # an integer of NumPy's is one too
    if not 0 <= number < len(names):
        raise DataError(f"{sample.where}: label {label!r} is none of the classes 0 to {len(names) - 1}.")
    return number
