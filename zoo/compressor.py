"""The contract of a compression stage.

A compressor has two faces: `apply` does the work on a real model and returns a JSON record of the structural change;
`rebuild` replays that record on an empty module (on the meta device or not), so that a saved model is rebuilt exactly,
without pickle and without the original weights. `outline` predicts the record from shapes alone; `estimate` rebuilds
it on a meta skeleton and counts, so a plan's parameter counts are exact by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

# What a compressor is handed and hands back, under the one name that its author imports from.
from zoo.model.context import Context as Context
from zoo.model.context import Progress as Progress
from zoo.model.context import Silent as Silent
from zoo.model.lineage import Record as Record
from zoo.model.lineage import State as State
from zoo.model.lineage import Trait as Trait
from zoo.options import CompressorOptions as CompressorOptions

if TYPE_CHECKING:
    from zoo.model.model import Model


class Compressor(ABC):
    """One compression stage. Subclasses are stateless: everything they need is in the arguments."""

    name: ClassVar[str]  # as used in recipes, e.g. "prune.structured"
    version: ClassVar[int] = 1  # raised when `rebuild` changes meaning, or the same options give other numbers
    Options: ClassVar[type[CompressorOptions]]  # pydantic; every field with a description
    accepts: ClassVar[tuple[str, ...]] = ()  # kinds of traits it can read besides plain dense tensors
    structural: ClassVar[bool] = (
        True  # changes modules, shapes or what is shared: then the model is run before it is saved
    )
    leaves: ClassVar[str] = ""  # the kind of trait it gives to what it changes
    trains: ClassVar[bool] = False  # updates weights by gradient descent; the run then adds optimizer memory
    tokenizes: ClassVar[bool] = False  # gives the model a new tokenizer, which a plan cannot know

    def check_teacher(self, model: Model, teacher: Model) -> None:
        """Refuse a teacher that does not go with the model; only stages with a `teacher` option are asked."""

    def check(self, model: Model, state: State, options: Any) -> None:
        """Refuse, before any work, what cannot follow: raise `Refused` with the reason and a remedy.

        `model` may be a skeleton on the meta device; `state` says what earlier stages did to which module.
        Call `require_dense` for the modules this stage must read as plain float weights.
        """

    @abstractmethod
    def outline(self, model: Model, options: Any) -> Record:
        """Predict `apply`'s record from shapes alone (values that only data decides may be placeholders)."""

    @abstractmethod
    def apply(self, model: Model, options: Any, context: Context) -> Record:
        """Compress `model` in place and return the JSON record of the structural change."""

    @abstractmethod
    def rebuild(self, model: Model, record: Record) -> None:
        """Replay the structural change on a freshly built model; its tensors may be on the meta device."""

    def traits(self, record: Record) -> dict[str, Trait]:
        """Traits that shapes cannot show (sparse patterns): module path -> trait, from the record."""
        return {}

    def roles(self, options: Any) -> tuple[str, ...]:
        """The roles of data the stage will ask for ("train", "calibration"), so that a plan can miss them early."""
        return ()

    def resolved(self, options: Any, roles: Collection[str]) -> Any:
        """Settle what the options leave to the data that there is, given its roles: lineages keep what this returns."""
        return options

    def moved(self, record: Record, path: str) -> str | None:
        """Say where the module at `path` is after this stage, or None where it is gone; earlier traits follow it."""
        return path

    def working_bytes(self, model: Model, options: Any, context: Context) -> int | None:
        """Predict the memory `apply` needs on top of the weights the model has before it, in bytes, from shapes alone.

        Args:
            context: has the data, and loads teachers as skeletons.

        Returns:
            None where it is not known: then the new weights are taken to lie beside the old ones.
        """
        return None

    def disk_bytes(self, model: Model, options: Any, context: Context) -> int:
        """Predict the disk `apply` needs while it runs, for what it keeps to resume or to read again, in bytes, from shapes alone."""
        return 0

    def remedy(self, path: str) -> str:
        """Say what to do where the model does not run after this stage; `path` is the module that misses something, if known."""
        return "Choose another target or other options."

    def require_version(self, version: int) -> None:
        """Refuse a record of a format version this compressor does not read."""
        if not 1 <= version <= self.version:
            from zoo.errors import ArtifactError

            raise ArtifactError(
                f"This model was made by {self.name} version {version}; the one installed reads up to {self.version}. "
                "Upgrade the plugin that provides it."
            )

    def note(self, model: Model, options: Any) -> str:
        """One sentence the plan should show, such as why this stage cannot make this model faster here."""
        return ""


def require_dense(
    state: State, paths: Iterable[str], *, stage: str, does: str, allow: tuple[str, ...] = (), leaves: str = ""
) -> None:
    """Refuse when a module in `paths` has a trait that is not in `allow`.

    Args:
        leaves: the kind of trait the stage gives, so that an order is proposed only where it would be taken.
        does: what the stage does to the modules, for the sentence: "cuts rows of", "averages".

    Raises:
        Refused: names the first module, its trait, and the order that would work.
    """
    from zoo.errors import Refused

    for path in paths:
        for trait in state.get(path, ()):
            if trait.kind in allow:
                continue
            what = f"{path} is {trait.kind}" + (f" ({trait.detail})" if trait.detail else "")
            if trait.stage:
                what += f" by {trait.stage}"
                earlier = trait.stage.split("(")[-1].rstrip(")")
                if not leaves or leaves in _accepted_by(earlier):
                    remedy = f"Put {stage} before {earlier}."
                else:
                    remedy = "Use one of them, or give each a target of its own."
            else:
                remedy = f"Start from a model without it, or choose a target that leaves {path} out."
            raise Refused(f"{stage} {does} plain float weights, but {what}. {remedy}")


def _accepted_by(stage: str) -> tuple[str, ...]:
    from zoo.plugins.names import resolve

    compressor: Compressor = resolve("compressor", stage)
    return compressor.accepts
