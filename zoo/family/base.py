"""What every family is: how one architecture is built, fed, run, and where its parts are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.anatomy.parts import Anatomy
    from zoo.catalog import ModelSpec
    from zoo.data.dataset import Dataset
    from zoo.family.options import GenerateOptions
    from zoo.family.task import Task
    from zoo.model.model import Model
    from zoo.tensors.batch import Batch, Rows
    from zoo.tensors.offload import Offload


def window_origin(windows: Sequence[Batch], index: int) -> str:
    """Say where a training window is from: what windows of records say themselves, else its number."""
    where = getattr(windows, "where", None)
    return str(where(index)) if where is not None else f"window {index}"


class Family(ABC):
    """One architecture family. Instances are stateless."""

    modality: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]  # of rows that losses can compare: "label", "visual", "velocity", "pixel", ...
    losses: ClassVar[tuple[Mapping[str, Any], ...]]  # what `train` minimises unless a recipe says otherwise
    distillation: ClassVar[tuple[Mapping[str, Any], ...]]  # what `distill` minimises unless a recipe says otherwise
    evaluation: ClassVar[tuple[str, str]]  # the evaluator, and the data for `zoo eval`, where nothing else is asked for
    # what `generate` takes, a class of a file that imports no torch; registry.toml names it too
    Options: ClassVar[type[GenerateOptions] | None] = None
    # in place of it: names of options that zoo itself declares, or of those of its base class
    takes: ClassVar[tuple[str, ...]] = ("prompt",)
    makes: ClassVar[str] = "text"  # what `generate` returns: "text" or "images"
    library: ClassVar[str] = "transformers"  # the ecosystem's own, whose files `write_foreign` writes
    # whether a model of random weights waits for a stage that makes its tokenizer
    needs_processor: ClassVar[bool] = True

    # --- building -----------------------------------------------------------------------------------------------

    def complete(self, spec: ModelSpec) -> ModelSpec:
        """Add what only the family's own library knows of a name such as "timm:resnet18"; other specs are left as they are."""
        return spec

    def shrunk(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the config of a twin: the same architecture at test size, with every ratio and quirk of it.

        Raises:
            RequestError: this family, or this architecture, has none.
        """
        from zoo.errors import RequestError

        raise RequestError(f"{spec.name} cannot be shrunk: its family {spec.family} does not say how.")

    @abstractmethod
    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        """Build the module from a JSON config, under whatever device context is active; no weights are read."""

    def build_in(self, config: dict[str, Any], task: str, dtype: torch.dtype) -> nn.Module:
        """Build the module as it runs in `dtype`: each tensor in the dtype that the family's own library gives it there."""
        from zoo.model.building import cast_parameters

        module = self.build(config, task)
        cast_parameters(module, dtype)
        return module

    @abstractmethod
    def initialise(self, module: nn.Module) -> None:
        """Fill a module with the architecture's own random initialisation (the caller holds the random state)."""

    @abstractmethod
    def anatomy(self, module: nn.Module) -> Anatomy:
        """Say where the stacks, attention, feed-forward layers, mixers, routers, norms, embeddings and head are."""

    # --- foreign checkpoints ------------------------------------------------------------------------------------

    def read_foreign(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a checkpoint directory written by the ecosystem's own library (transformers, diffusers, timm)."""
        raise NotImplementedError

    def read_offloaded(self, path: Path, *, dtype: torch.dtype | None, offload: Offload) -> Model:
        """Load such a directory, putting weights into files while they are read; `zoo.load` does it after for those left."""
        return self.read_foreign(path, device=None, dtype=dtype)

    def read_dequantized(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a checkpoint directory whose weights are codes of a quantizer, widened to plain ones.

        Raises:
            RequestError: the family reads none, or its library does not widen those of this quantizer.
        """
        from zoo.errors import RequestError

        raise RequestError(f"{path}: weights='dequantized' is for transformers checkpoints.")

    def write_foreign(self, model: Model, path: Path) -> str:
        """Write the ecosystem's own files beside the weights; return "" or why the model is not representable."""
        return "this family has no foreign format"

    def weight_files(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Say which tensors a saved model keeps in which file: prefix of their names (cut off there) -> relative path."""
        return {"": "model.safetensors"}

    # --- processor ----------------------------------------------------------------------------------------------

    def load_processor(self, path: Path) -> Any:
        """Load the tokenizer or image processor saved in `path`, or None where there is none."""
        return None

    def save_processor(self, processor: Any, path: Path) -> None:
        """Save the processor into `path`."""

    # --- what models are for ------------------------------------------------------------------------------------

    @abstractmethod
    def task(self, name: str) -> Task:
        """Return the task of that name, one of `tasks`: what its models show in a report, how their speed is told."""

    # --- running ------------------------------------------------------------------------------------------------

    @abstractmethod
    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        """Make a small random batch on the model's device: what tests, estimates and calibration-free checks feed."""

    @abstractmethod
    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Run the module on a batch and return its main output."""

    def forward_body(self, model: Model, batch: Batch) -> torch.Tensor:
        """Run the module up to its head, where the two can be told apart: what calibration watches lies before it."""
        return self.forward(model, batch)

    def trial(self, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the module on a batch in every way it is used: return what it computes at once, and what step by step.

        The two are the same tensor where there is one way.
        """
        outputs = self.forward(model, batch)
        return outputs, outputs

    def caches(self, model: Model) -> bool:
        """Whether what the module computes step by step is used, since it is what it computes at once."""
        return True

    @abstractmethod
    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut `data` into training windows, each a dict of unbatched tensors; their `where(i)`, if any, says where window i is from."""

    def chats(self, model: Model, data: Dataset) -> Dataset:
        """Write records as chats, by the model's chat template.

        Raises:
            RequestError: the family knows no chats, or the model has no template.
        """
        from zoo.errors import RequestError

        raise RequestError(f"{model.spec.name} reads its data in its own way already: leave out chat = true.")

    def collate(self, model: Model, windows: Sequence[Batch]) -> Batch:
        """Join windows into one batch."""
        import torch

        return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}

    def draw(self, model: Model, batch: Batch, generators: Sequence[torch.Generator]) -> Batch:
        """Add what training draws anew at every step (noise, times, masks), for each record from its own generator.

        A batch goes through here before it is run. What a record is given does not depend on the others of its batch, so
        that a batch may be run in parts.
        """
        return batch

    @abstractmethod
    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Run a batch up to the heads and return the rows of each kind in `kinds`, all of them kinds of this family."""

    def counts(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, int]:
        """How many rows of each kind `rows` returns, told without running the model; here one a record."""
        records = len(next(iter(batch.values())))
        return dict.fromkeys(kinds, records)

    def comparable(self, student: Model, teacher: Model) -> str:
        """Say why a teacher's rows cannot be compared with a student's; "" where they can."""
        return ""

    def shared_batch(self, student: Model, teacher: Model, batch: Batch) -> Batch:
        """Bring a batch, before either runs it, to what both a student and its teacher can be asked."""
        return batch

    def teacher_rows(self, student: Model, teacher: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return the teacher's rows of each kind as predictions of the student's sort, row by row."""
        return teacher.family.rows(teacher, batch, kinds)

    def check_options(self, model: Model, options: Mapping[str, Any]) -> None:
        """Refuse options that `generate` would refuse, from the model's structure: `zoo run` asks before it loads weights."""
        from zoo.family.options import checked

        if self.Options is not None:  # else its `generate` knows
            checked(self, model.spec, options)

    @abstractmethod
    def generate(self, model: Model, prompt: Any, **options: Any) -> Any:
        """Generate from a prompt: text (with `stream`, an iterator over its pieces), or a list of images."""

    def options_of(self, task: str) -> type[GenerateOptions]:
        """The class of what `generate` takes of a model of that task; of "", of all that it takes of any."""
        from zoo.family.known import KnownOptions

        options = (self.Options or KnownOptions).of(task)
        said = next(vars(kind) for kind in type(self).__mro__ if not vars(kind).keys().isdisjoint(("Options", "takes")))
        return options.only(self.takes, makes=self.makes) if said.get("Options") is None else options

    def taken(self, model: Model) -> tuple[str, ...]:
        """Say what `generate` takes of this model."""
        return self.options_of(model.spec.task).names()

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        """Refuse data of which no training window can be cut, where that is told quickly: a plan asks.

        Raises:
            DataError: says what is too short or missing.
        """
