"""A loaded model: the plain module, its processor, its spec and its lineage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError, reason
from zoo.model.building import assign, global_state, kept_in_float32, without_weights
from zoo.model.health import require_finite, require_finite_once
from zoo.model.lineage import as_json, stage_of
from zoo.model.provenance import Inputs, source
from zoo.model.trial import UNFIT, require_running, runs
from zoo.plugins.names import declaration, name_to_write, object_of, resolve, used
from zoo.tensors.finite import require_fitting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.anatomy.parts import Anatomy
    from zoo.compressor import Compressor
    from zoo.family.base import Family
    from zoo.model.context import Context
    from zoo.model.lineage import Stage, State, Trait
    from zoo.options import CompressorOptions


@dataclass(repr=False)
class Model:
    """A model of any modality.

    `module` is the plain `nn.Module`; everything else says where it came from and how to run it. `stored` is the dtype
    its float parameters have on disk, `dtype` the one they have in memory.
    """

    module: nn.Module
    family: Family
    spec: ModelSpec
    processor: Any = None
    lineage: tuple[Stage, ...] = ()
    dtype: str = "float32"
    stored: str = "float32"
    origin: str = ""  # what the weights came from: a path, a repository at a revision, "random"
    notes: dict[str, Any] = field(default_factory=dict)  # figures and lists the card shows; written by programs only
    # the original that the lineage begins with: see `zoo.model.provenance.source`
    source: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The model in a line; `print(model.module)` shows its layers."""
        facts = [self.spec.task, f"{self.params:,} parameters", f"{self.dtype} on {self.device}"]
        facts += [" > ".join(stage.use for stage in self.lineage)] if self.lineage else []
        return f"<Model {self.spec.name}: {', '.join(facts)}>"

    @property
    def anatomy(self) -> Anatomy:
        """Where the parts of the module are; read from the module as it is now."""
        return self.family.anatomy(self.module)

    @property
    def device(self) -> torch.device:
        import torch

        first = next(self.module.parameters(), None)  # asked at every step of a text, so not of the state dict
        tensors = self.tensors().values() if first is None else [first]
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def params(self) -> int:
        """Number of distinct parameters; a packed weight counts its logical entries, a shared tensor counts once."""
        from torch import nn

        from zoo.anatomy.modules import has

        packed = {
            f"{path}.{name}": factor
            for path, module in self.module.named_modules()
            if has(module, "zoo_packed")
            for name, factor in module.zoo_packed.items()
        }
        return sum(
            int(tensor.numel() * packed.get(names[0], 1))
            for names, tensor in self._named()
            if isinstance(tensor, nn.Parameter) or names[0] in packed
        )

    @property
    def bytes(self) -> int:
        """Bytes of the weights on disk, each shared tensor once, headers left out."""
        stored = self.stored_dtypes()
        return sum(tensor.numel() * stored[name].itemsize for name, tensor in self.tensors().items())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The distinct persistent tensors by their first name, in module order."""
        return {names[0]: tensor for names, tensor in self._named()}

    def aliases(self) -> dict[str, str]:
        """Names that share a tensor with an earlier name: alias -> first name."""
        return {alias: names[0] for names, _ in self._named() for alias in names[1:]}

    def stored_dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of every distinct tensor on disk: the stored one, for parameters that are in the model's own.

        What runs in another than the model, as routers do that their class keeps in float32, is stored as it is.
        """
        import torch
        from torch import nn

        own, stored = getattr(torch, self.dtype), getattr(torch, self.stored)
        kept = kept_in_float32(self.module, stored)
        return {
            names[0]: stored
            if isinstance(tensor, nn.Parameter)
            and tensor.dtype == own
            and own.itemsize > stored.itemsize
            and kept.isdisjoint(names)
            else tensor.dtype
            for names, tensor in self._named()
        }

    def state(self) -> State:
        """What has been done to which module, from the records of the lineage; paths are those of the module as it is now."""
        state: dict[str, list[Trait]] = {}
        for number, stage in enumerate(self.lineage, 1):
            entry = declaration("compressor", stage.use, plugin=stage.plugin)
            compressor: Compressor = object_of(entry)
            label = f"stage {number} ({name_to_write(entry)})"
            moves = {path: compressor.moved(stage.record, path) for path in state}
            state = {destination: state[path] for path, destination in moves.items() if destination is not None}
            for path, trait in compressor.traits(stage.record).items():
                state.setdefault(path, []).append(replace(trait, stage=label))
        return {path: tuple(traits) for path, traits in state.items()}

    def replay(self, stage: Stage) -> None:
        """Replay one lineage stage on this model's (usually empty) module."""
        compressor: Compressor = resolve("compressor", stage.use, plugin=stage.plugin)
        compressor.require_version(stage.version)
        compressor.rebuild(self, stage.record)
        self.lineage = (*self.lineage, stage)

    def apply(self, compressor: Compressor, options: CompressorOptions, context: Context) -> None:
        """Apply one stage in place: check, compress, try, round to the stored dtype, record in the lineage.

        Every stage runs through here; `zoo_compress.apply` also takes a name and a dict.

        Raises:
            Refused: the stage cannot follow what was done to the model before.
            ZooError: the weights hold nan or infinity, before or after; names the tensor.
        """
        options = compressor.resolved(options, context.data)
        compressor.check(self, self.state(), options)
        require_finite(self, what=compressor.name)
        before = runs(self) if compressor.structural and self.device.type != "meta" else "not"
        inputs = Inputs(compressor, options, context)
        with used() as resolved:
            record = as_json(compressor.apply(self, options, inputs.context), stage=compressor.name)
        require_finite(
            self, what=f"{compressor.name} left the model damaged", remedy="Nothing was saved; other options may help."
        )
        require_running(self, compressor, before=before)
        self.round()
        done = stage_of(compressor, options.model_dump(mode="json"), record, seed=context.seed)
        self.lineage = (*self.lineage, replace(done, made=inputs.made(self, resolved)))

    def skeleton(self) -> Model:
        """An empty copy on the meta device: the same structure, no memory."""
        made = build_skeleton(self.family, self.spec, self.lineage, dtype=self.dtype, stored=self.stored)
        return replace(made, origin=self.origin, source=self.source)

    def generate(self, prompt: Any = None, **options: Any) -> Any:
        """Generate from a prompt; what it takes and returns is the family's (text: see `TextFamily.generate`).

        Raises:
            RequestError: the model is a skeleton on the meta device.
            ZooError: the weights hold nan or infinity; names the tensor.
        """
        self._require_weights("run")
        require_finite_once(self, what=f"{self.spec.name} cannot be run")
        return self.family.generate(self, prompt, **options)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the model as an artifact directory that `zoo.load` opens again with bit-identical outputs.

        Raises:
            OutputError: `path` holds something that is not a zoo artifact, or cannot be written.
            RequestError: the model is a skeleton on the meta device.
        """
        self._require_weights("save")
        from zoo.artifact.store import write

        return write(self, Path(path), force=force)

    def copy(self) -> Model:
        """An independent deep copy of the module; the rest is shared."""
        return replace(self, module=copy.deepcopy(self.module))

    def round(self) -> None:
        """Round every float parameter to the stored dtype, in place, so that saving in that dtype loses nothing.

        Tensors are also brought to addresses like those they will have when loaded, on which the last bits can depend.

        Raises:
            ZooError: a value is too large for the stored dtype; names the tensor.
        """
        import torch

        from zoo.tensors.alignment import align

        stored = self.stored_dtypes()
        with torch.no_grad():
            for name, parameter in self.tensors().items():
                if parameter.dtype != stored[name] and parameter.device.type != "meta":
                    rounded = parameter.to(stored[name])
                    require_fitting(parameter, rounded, name=name)
                    parameter.copy_(rounded)
        align(self.module)

    def _require_weights(self, what: str) -> None:
        if self.device.type == "meta":
            from zoo.errors import RequestError

            raise RequestError(
                f'{self.spec.name} is on the meta device, which holds no weights; to {what} it, load it without device="meta".'
            )

    def _named(self) -> list[tuple[list[str], torch.Tensor]]:
        groups: dict[int, tuple[list[str], torch.Tensor]] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            groups.setdefault(id(tensor), ([], tensor))[0].append(name)
        return list(groups.values())


def build_skeleton(
    family: Family, spec: ModelSpec, lineage: Sequence[Stage], *, dtype: str = "float32", stored: str = ""
) -> Model:
    """Build a model's structure on the meta device, its lineage replayed; nothing is allocated."""
    import torch

    with torch.device("meta"):
        module = family.build_in(spec.config, spec.task, getattr(torch, dtype))
    return _replayed(Model(module, family, spec, dtype=dtype, stored=stored or dtype), lineage)


def build_random(
    family: Family,
    spec: ModelSpec,
    *,
    lineage: Sequence[Stage] = (),
    dtype: str = "float32",
    stored: str = "",
    device: str | None = None,
    seed: int = 0,
) -> Model:
    """Build a model with the architecture's own random initialisation, drawn from `seed`.

    Raises:
        RequestError: the lineage packs weights; codes and scales have no random initialisation.
    """
    import torch

    with global_state, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("cpu"):
            module = family.build(spec.config, spec.task)
        drawn = _replayed(Model(module, family, spec), lineage)
        if any(hasattr(part, "zoo_packed") for part in drawn.module.modules()):
            raise RequestError(
                f"{spec.name} has packed weights, which cannot be drawn at random; start from the model it was made of."
            )
        family.initialise(drawn.module)
    model = build_empty(family, spec, lineage, dtype=dtype, stored=stored or dtype)
    _take_over(model.module, drawn.module)
    model.module.to(device or "cpu")
    model.origin = "random"
    model.source = source(spec.name, weights="random", dtype=dtype, stages=len(lineage), seed=seed)
    return model


def _take_over(module: nn.Module, drawn: nn.Module) -> None:
    """Move the weights of a module into an empty one, in the dtypes that this one has; what is shared stays shared."""
    empty = module.state_dict(keep_vars=True)
    for name, tensor in drawn.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(empty[name].dtype)
        assign(module, name, tensor)


def build_empty(family: Family, spec: ModelSpec, lineage: Sequence[Stage], *, dtype: str, stored: str) -> Model:
    """Build a model whose parameters are on the meta device and whose buffers are real, ready to be filled from a file."""
    import torch

    module = without_weights(lambda: family.build_in(spec.config, spec.task, getattr(torch, dtype)))
    return _replayed(Model(module, family, spec, dtype=dtype, stored=stored), lineage)


def _replayed(model: Model, lineage: Sequence[Stage]) -> Model:
    for number, stage in enumerate(lineage, 1):
        try:
            model.replay(stage)
        except UNFIT as error:  # what a record of another model causes
            raise ArtifactError(
                f"the record of stage {number} ({stage.use}) does not fit the model ({reason(error)})."
            ) from error
    return model
