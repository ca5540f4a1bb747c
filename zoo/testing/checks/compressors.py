"""Checks of a compressor on a model: refused in time, or applied as planned, alike every time, and back from disk."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError, ZooError
from zoo.testing.bench import Bench, attempts, folder_in, options, other_chance, thing
from zoo.testing.check import Check, Once, Skipped
from zoo.testing.computed import difference, outputs
from zoo.testing.exact import check_refuses, name_of, planned, random_states, require, require_equal_sizes

if TYPE_CHECKING:
    from zoo.compressor import Compressor
    from zoo.model.model import Model
    from zoo.options import CompressorOptions
    from zoo.plugins.declarations import Declared


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
    changed: tuple[str, ...]  # the global random states that are not as they were


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
            "estimate": self.estimate,
            "save and reload": self.save_and_reload,
            "determinism": self.determinism,
            "random state": self.random_state,
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

    def estimate(self, folder: Path) -> None:
        """Its outline, replayed on a skeleton, has the sizes of the model it leaves."""
        chosen, done = self.chosen.after("check"), self.done.after("apply")
        skeleton = planned(self.start, self.compressor, chosen)
        require_equal_sizes(skeleton, done.model, f"{name_of(done.model)}: outline, replayed on a skeleton")

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

    def random_state(self, folder: Path) -> None:
        """Applying it leaves the global random states as they were."""
        done = self.done.after("apply")
        named = " and ".join(done.changed)
        require(
            not done.changed,
            f"{name_of(done.model)}: it changes the global random state of {named}; draw from a generator of its own",
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
        check_refuses(model, compressor, values, self._context())
        raise Skipped(f"refused: {' '.join(sentence.split())}")

    def _apply(self, *, chance: int) -> _Done:
        """Apply it to a copy, beginning with global random states that follow from `chance`."""
        model, chosen = self.start.copy(), self.chosen()
        printed = io.StringIO()
        with other_chance(chance), contextlib.redirect_stdout(printed):
            before = random_states()
            model.apply(self.compressor, chosen, self._context())
            changed = tuple(name for name, state in random_states().items() if state != before[name])
        return _Done(model, printed.getvalue(), changed)

    def _context(self) -> Any:
        return self.bench.context(self.start, roles=self._roles())

    def _roles(self) -> tuple[str, ...]:
        try:
            return tuple(self.compressor.roles(self.chosen())) if self.chosen.made else ()
        except ZooError:
            return ()

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
