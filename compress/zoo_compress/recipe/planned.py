"""A plan: what every stage of a recipe will leave behind and need, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from zoo.catalog import ModelSpec
from zoo.data.dataset import Dataset
from zoo.data.overlap import Overlap
from zoo.loading.locate import Located
from zoo.model.licences import Inherited
from zoo.system.memory import limits
from zoo_compress.recipe.needs import needs, shortage
from zoo_compress.recipe.recipe import Recipe


@dataclass(frozen=True)
class PlannedStage:
    """What one stage will leave behind; `bytes` are of the weights on disk, `peak_bytes` of the process while it runs."""

    use: str
    params: int
    bytes: int
    peak_bytes: int
    note: str = ""
    options: Mapping[str, Any] | None = None
    untried: bool = False  # whether the model runs after it cannot be told from shapes
    working_disk_bytes: int = 0  # of disk while it runs
    kernels: Mapping[str, int] = field(default_factory=dict)  # what packed layers run in on this machine, and how many


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe; `stages[0]` is the original."""

    recipe: Recipe  # with what is measured, where it left that open
    original: Located  # what its model is
    teachers: Mapping[str, Located]  # by the names that stages give them
    spec: ModelSpec
    stored: str  # dtype of the weights on disk
    stages: tuple[PlannedStage, ...]
    data: Mapping[str, Dataset]
    licenses: Mapping[str, str]
    inherits: tuple[Inherited, ...]  # by the result: of the base, the teachers and the data of its stages
    disk_bytes: int
    free_disk_bytes: int
    free_memory_bytes: int
    base_bytes: int  # of memory that the process holds when nothing runs
    control: PlannedStage | None = None
    overlaps: tuple[Overlap, ...] = ()  # of the data's roles

    @cached_property
    def shortage(self) -> str:
        """What of the run cannot have the memory it needs, in a sentence; "" where all can."""
        return shortage(list(needs(self)))

    @property
    def measured(self) -> tuple[str, ...]:
        """The evaluators that are run after every stage, where there is data for them."""
        return (self.recipe.evaluate.tasks or ()) if "test" in self.data else ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "recipe": self.recipe.about.name,
            "model": self.spec.name,
            "licenses": dict(self.licenses),
            "inherits": [{"of": one.of, "license": one.license, "judged": one.judged} for one in self.inherits],
            "data": {
                role: {"reference": d.name, "records": len(d), "fingerprint": d.fingerprint}
                for role, d in self.data.items()
            },
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
            "tasks": list(self.measured),
            "usual_task": self.recipe.usual or None,
            "disk_bytes": self.disk_bytes,
            "free_disk_bytes": self.free_disk_bytes,
            "free_memory_bytes": self.free_memory_bytes,
            "memory": {
                "needed_bytes": max(need.bytes for need in needs(self)),
                "base_bytes": self.base_bytes,
                "control_bytes": self.control.peak_bytes if self.control else None,
                "limits": [asdict(limit) for limit in limits()],
                "shortage": self.shortage,
            },
            "stages": [
                {
                    "use": s.use,
                    "params": s.params,
                    "bytes": s.bytes,
                    "peak_bytes": s.peak_bytes,
                    "note": s.note,
                    "untried": s.untried,
                    "kernels": dict(s.kernels),
                    "options": dict(s.options or {}),
                }
                for s in self.stages
            ],
        }
