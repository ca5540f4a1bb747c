"""What a stage is given besides the model: data, a seed, teachers, progress, a place for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class Progress(Protocol):
    """What a long stage tells the outside: steps done, and figures worth showing."""

    def track(self, items: Iterable[Any], *, total: int, label: str) -> Iterator[Any]: ...

    def say(self, text: str) -> None: ...


class Silent:
    """A `Progress` that shows nothing."""

    def track(self, items: Iterable[Any], *, total: int, label: str) -> Iterator[Any]:
        yield from items

    def say(self, text: str) -> None:
        pass


@dataclass
class Context:
    """What a stage may use besides the model: data, a seed, the original model, a place for checkpoints."""

    seed: int = 0
    data: Mapping[str, Dataset] = field(default_factory=dict)  # by role: "train", "calibration", "test"
    load: Callable[[str], Model] | None = None  # loads a teacher by name or path; "original" is the recipe's model
    progress: Progress = field(default_factory=Silent)
    checkpoint: Path | None = None  # a directory in which the stage may keep what it needs to resume
    # named (step, value) curves for the report
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def dataset(self, role: str, stage: str) -> Dataset:
        """Return the data of `role`, or refuse naming the recipe key that is missing."""
        from zoo.errors import DataError, spelled

        if role not in self.data:
            alone = spelled(f', or give a single stage context=Context(data={{"{role}": ...}})', "")
            raise DataError(f'{stage} needs {role} data: add `{role} = "..."` to the recipe\'s [data] table{alone}.')
        return self.data[role]
