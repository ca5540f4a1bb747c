"""Checks of a compressor on a model: refused in time, or applied as planned, alike every time, and back from disk."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError, ZooError
from zoo.testing.bench import Bench, folder_in, other_chance, thing
from zoo.testing.check import Check, Once, Skipped, require
from zoo.testing.computed import difference, hash_of_tensors, left_behind, outputs, tokens_of
from zoo.testing.exact import check_refuses, name_of, planned, require_equal_sizes
from zoo.testing.materials import Roles, attempts, context_for, options
from zoo.testing.surroundings import Surroundings, changed_states, random_states, remedy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.compressor import Compressor
    from zoo.model.model import Model
    from zoo.options import CompressorOptions
    from zoo.plugins.declarations import Declared

SPARSE = 0.1  # the share of zeros from which a weight that had few of them was made sparse


def checks_of_compressor(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one compressor on every model of the bench, and that one of them takes it."""
    name = bench.label(declaration.name)
    trials = [_Trial(bench, name, base) for base in bench.bases]
    for trial in trials:
        for check, run in trial.questions.items():
            yield Check("compressor", f"{name} on {trial.base}", check, run, bench.plugin.path)

    def taken(folder: Path) -> None:
        """Some model takes it."""
        require(
            any(trial.taken for trial in trials),
            f"{name} refuses every model it was tried on: {', '.join(bench.bases)}",
        )

    yield Check("compressor", name, "applies to a model", taken, bench.plugin.path)


@dataclass(frozen=True)
class _Done:
    """A model after the stage, and what applying it did beside that."""

    model: Model
    printed: str
    changed: list[str]  # what around it is not as it was
    asked: list[str]  # the roles of data it read
    same_data: bool  # whether the records of it are as they were
    tokens: list[Any] | None  # that a text was to the model's tokenizer before
    resting: set[nn.Module]  # the parts of the model that were not in train mode before


class _Trial:
    """One compressor on one model; what several checks ask for is done once."""

    def __init__(self, bench: Bench, name: str, base: str) -> None:
        self.bench, self.name, self.base = bench, name, base
        self.chosen = Once(self._choose)
        self.done = Once(lambda: self._apply(chance=1))
        self.saved: dict[str, Path] = {}
        self.questions = {
            "check": self.check,
            "apply": self.apply,
            "condition": self.condition,
            "data": self.data,
            "traits": self.traits,
            "estimate": self.estimate,
            "save and reload": self.save_and_reload,
            "determinism": self.determinism,
            "side effects": self.side_effects,
        }

    @property
    def compressor(self) -> Compressor:
        compressor: Compressor = thing("compressor", self.name)
        return compressor

    @property
    def start(self) -> Model:
        """The model to compress; stages that train a tokenizer begin with weights that know none."""
        self.bench.fresh.start()  # it will be asked, and imports for seconds
        return self.bench.usable(self.base, random=self.compressor.tokenizes)

    @property
    def taken(self) -> bool:
        with contextlib.suppress(Exception, SystemExit):
            return bool(self.chosen())
        return False

    def check(self, folder: Path) -> None:
        """It takes the model, or refuses it with a sentence, in the plan and before anything is changed."""
        self.chosen()

    def apply(self, folder: Path) -> None:
        """It runs, leaves a model that computes, and prints nothing."""
        import torch

        self.chosen.after("check")
        done = self.done()
        require(
            not done.printed.strip(),
            f"{name_of(done.model)}: it prints {done.printed.strip()[:60]!r} on stdout, where commands "
            "write what was asked of them; use `context.progress.say`",
        )
        with torch.no_grad():
            out = done.model.family.forward(done.model, done.model.family.example(done.model))
        require(bool(torch.isfinite(out.float()).all()), f"{name_of(done.model)} computes values that are not finite")

    def condition(self, folder: Path) -> None:
        """It leaves a model that computes as before, can be trained, and still reads what it read."""
        start, done = self.start, self.done.after("apply")
        model = done.model
        training = [path for path, part in model.module.named_modules() if part.training and part in done.resting]
        require(
            not training,
            f"{name_of(model)}: it leaves {(training or [''])[0] or 'the module'} in train mode; call model.module.eval() in the end",
        )
        rest = left_behind(model.module)
        require(not rest, f"{name_of(model)}: it leaves {rest} in the model, which is not saved and holds memory")
        trained = {name for name, p in start.module.named_parameters() if p.requires_grad}
        frozen = [
            name
            for name, p in model.module.named_parameters()
            if name in trained and p.is_floating_point() and not p.requires_grad
        ]
        require(
            not frozen,
            f"{name_of(model)}: it leaves {', '.join(frozen[:2])} without a gradient, so that nothing trains them later",
        )
        require(
            start.processor is None or model.processor is not None,
            f"{name_of(model)}: it drops the model's processor, which reads prompts",
        )
        require(
            self.compressor.tokenizes or tokens_of(model) == done.tokens,
            f"{name_of(model)}: it leaves another tokenizer; say `tokenizes = True`",
        )

    def data(self, folder: Path) -> None:
        """It reads no data but that of the roles it names, so that a plan can miss them and a manifest names them."""
        done, named = self.done.after("apply"), self._roles()
        unnamed = [role for role in dict.fromkeys(done.asked) if role not in named]
        require(
            not unnamed,
            f"{name_of(done.model)}: it reads {' and '.join(unnamed)} data, which `roles` does not name; "
            f"return {(*named, *unnamed)} from it",
        )

    def traits(self, folder: Path) -> None:
        """It says which weights it made sparse, which training would fill again, and of modules that are there."""
        start, model = self.start.tensors(), self.done.after("apply").model
        told = model.state()
        gone = [path for path in told if not _is_there(model, path)]
        require(not gone, f"{name_of(model)}: it gives a trait to {', '.join(gone[:2])}, which is not in the model")
        for name, tensor in model.tensors().items():
            share = _zeros(tensor)
            if name not in start or share < SPARSE or share < 2 * _zeros(start[name]):
                continue
            require(
                any(name == path or name.startswith(f"{path}.") for path in told),
                f"{name_of(model)}: {share:.0%} of {name} are zeros after it, and nothing says so, so that training "
                'would fill them again; return {path: Trait("sparse")} from `traits`',
            )

    def estimate(self, folder: Path) -> None:
        """Its outline, replayed on a skeleton, has the sizes of the model it leaves; its memory is no less than nothing."""
        chosen, done = self.chosen.after("check"), self.done.after("apply")
        skeleton = planned(self.start, self.compressor, chosen)
        require_equal_sizes(skeleton, done.model, f"{name_of(done.model)}: outline, replayed on a skeleton")
        empty = self.start.skeleton()
        context = replace(context_for(self.start), load=lambda _: self.start.skeleton())
        with contextlib.suppress(ZooError):  # a plan says that it is a guess
            for name, also in (("working_bytes", ", or None"), ("disk_bytes", "")):
                count = getattr(self.compressor, name)(empty, chosen, context)
                require(
                    (also and count is None) or (isinstance(count, int) and not isinstance(count, bool) and count >= 0),
                    f"{name_of(done.model)}: `{name}` gives {count!r:.40}, and a number of bytes from 0 is expected{also}",
                )

    def save_and_reload(self, folder: Path) -> None:
        """What it leaves can be saved, and a fresh process computes the same bits."""
        model = self.done.after("apply").model
        artifact = self._save(model, "one", folder)
        wrong = difference(name_of(model), outputs(model), self.bench.fresh.outputs(artifact))
        require(not wrong, wrong)

    def determinism(self, folder: Path) -> None:
        """The same seed gives the same files, whatever the global random states are."""
        from zoo.artifact.manifest import MANIFEST, read_manifest

        first = self._save(self.done.after("apply").model, "one", folder)
        again = self._apply(chance=2)
        second = self._save(again.model, "other", folder)
        mine, theirs = read_manifest(first).files, read_manifest(second).files
        wrong = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        require(not wrong, f"{name_of(again.model)}: applied twice with one seed, it leaves another {', '.join(wrong)}")
        manifests = [(artifact / MANIFEST).read_bytes() for artifact in (first, second)]
        require(
            manifests[0] == manifests[1],
            f"{name_of(again.model)}: applied twice with one seed, it leaves another record",
        )
        model = again.model
        start = self.bench.start(self.base, random=self.compressor.tokenizes)
        there = self.bench.fresh.applied(self.name, model.lineage[-1].options, start)
        wrong = [
            what
            for what, alike in {
                "tensors": there["tensors"] == hash_of_tensors(model),
                "a record": there["record"] == model.lineage[-1].record,
            }.items()
            if not alike
        ]
        require(
            not wrong,
            f"{name_of(model)}: in another process, with one seed, it leaves other {' and '.join(wrong)}; "
            "does it follow the order of a set?",
        )

    def side_effects(self, folder: Path) -> None:
        """Applying it leaves the random states, torch, the process and itself as they were."""
        done = self.done.after("apply")
        require(
            done.same_data,
            f"{name_of(done.model)}: it changes the records it is given, which later stages are given too; work on a copy",
        )
        require(
            not done.changed,
            f"{name_of(done.model)}: it changes {'; and '.join(done.changed[:3])}{remedy(done.changed)}",
        )

    def _choose(self) -> CompressorOptions:
        """The first options that the model's skeleton takes.

        Raises:
            Skipped: it refuses the model, as it should: in a sentence, and leaving it alone.
        """
        compressor, model = self.compressor, self.start
        skeleton = model.skeleton()
        refusals: list[tuple[dict[str, Any], str]] = []
        for values in _candidates(compressor, model):
            chosen = _built(compressor, values)
            try:
                compressor.check(skeleton, skeleton.state(), chosen)
                return chosen
            except RequestError as error:
                refusals.append((values, str(error)))
        values, sentence = refusals[0]
        require(bool(sentence.strip()), f"{self.name} refuses {name_of(model)} without a word")
        check_refuses(model, compressor, values, context_for(model))
        raise Skipped(f"refused: {' '.join(sentence.split())}")

    def _apply(self, *, chance: int) -> _Done:
        """Apply it to a copy, beginning with global random states that follow from `chance`."""
        model, chosen, compressor, tokens = self.start.copy(), self.chosen(), self.compressor, tokens_of(self.start)
        context, printed = context_for(self.start), io.StringIO()
        resting = {part for part in model.module.modules() if not part.training}
        assert isinstance(context.data, Roles)
        with other_chance(chance), contextlib.redirect_stdout(printed), Surroundings(compressor) as around:
            before = random_states()
            model.apply(compressor, chosen, context)
            changed = [f"the global random state of {name}" for name in changed_states(before)] + around.changes()
        data = context.data.data
        same_data = type(data)(data.name, data).fingerprint == data.fingerprint
        return _Done(model, printed.getvalue(), changed, context.data.asked, same_data, tokens, resting)

    def _roles(self) -> tuple[str, ...]:
        return tuple(self.compressor.roles(self.chosen()))

    def _save(self, model: Model, which: str, folder: Path) -> Path:
        if which not in self.saved:
            self.saved[which] = model.save(folder_in(folder, f"{self.name} {self.base}"))
        return self.saved[which]


def _built(compressor: Compressor, values: dict[str, Any]) -> CompressorOptions:
    try:
        return compressor.Options(**values)
    except ValueError as error:  # pydantic's are of this kind
        said = " ".join(str(error).split())[:200]
        raise AssertionError(
            f"{compressor.name}: Options(**{values}) is refused; give its fields examples=[...] that go together ({said})"
        ) from None


def _candidates(compressor: Compressor, model: Model) -> Iterator[dict[str, Any]]:
    """Options to try in turn: the examples as they are, then aimed at the model's main stack, then at all of it."""
    for attempt in range(attempts(compressor.Options)):
        values = options(compressor.Options, attempt=attempt)
        yield values
        if "target" in compressor.Options.model_fields:
            stack = [model.anatomy.stack().name] if model.anatomy.stacks else []
            yield from ({**values, "target": target} for target in (*stack, "all"))


def _zeros(tensor: torch.Tensor) -> float:
    """The share of zeros in a matrix of floats."""
    return float((tensor == 0).float().mean()) if tensor.dim() > 1 and tensor.is_floating_point() else 0.0


def _is_there(model: Model, path: str) -> bool:
    from zoo.anatomy.modules import resolve

    try:
        resolve(model.module, path)
    except AttributeError:
        return False
    return True
