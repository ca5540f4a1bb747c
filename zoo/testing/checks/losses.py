"""Checks of a training loss: finite, least where the student is the teacher, and a gradient for the student.

A loss on rows is called as `loss(student_NV, teacher_NV, rows, options)`; one on the outputs of blocks has `build`, and
what that returns is called with two lists of (B, T, D).

Legend: N rows, V outputs of a row, B batch, T window, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import PluginError, ZooError, one_line
from zoo.testing.bench import Bench, other_chance, thing
from zoo.testing.check import Check, Once, Skipped, require
from zoo.testing.materials import context_for, options
from zoo.testing.surroundings import surroundings_kept

if TYPE_CHECKING:
    import torch

    from zoo.model.model import Model
    from zoo.plugins.declarations import Declared
    from zoo.tensors.batch import Rows

NEAR = 1e-2  # of the gradient at another place: what is left of it at a minimum, in float32
NOISE = 0.3  # of a row's own spread, which makes another prediction of it
SHAPES = ((2, 3, 8), (2, 3, 12))  # (B, T, D) of the blocks' outputs of two widths


def checks_of_loss(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one loss, on the rows of every model that has some of its kind."""
    subject = _Subject(bench, bench.label(declaration.name))
    for check, run in subject.questions.items():
        yield Check("loss", subject.name, check, run, bench.plugin.path)


@dataclass(frozen=True)
class _Case:
    """Predictions to compare: of a model, and of one that is a little different."""

    base: str
    rows: Rows
    own_NV: torch.Tensor
    other_NV: torch.Tensor


class _Subject:
    """One loss under test."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.cases = Once(self._cases)
        self.valued, self.moving = Once(self._check_value), Once(self._check_gradient)
        self.questions = {
            "value": self.value,
            "gradient": self.gradient,
            "minimum": self.minimum,
            "chunks": self.chunks,
            "side effects": self.side_effects,
            "training": self.training,
        }

    @property
    def loss(self) -> Any:
        return thing("loss", self.name)

    @property
    def options(self) -> Any:
        chosen = self.loss.Options(**options(self.loss.Options))
        require(
            hasattr(chosen, "weight"),
            f"{self.name}: its Options have no `weight`; derive them from zoo.loss.LossOptions",
        )
        return chosen

    @property
    def on_blocks(self) -> bool:
        return hasattr(self.loss, "build")

    @property
    def taught(self) -> bool:
        """Whether nothing but a teacher says what is right."""
        return self.on_blocks or (self.loss.needs_teacher and not self.loss.needs_target)

    def value(self, folder: Path) -> None:
        """It is finite, one number a row or one for all, and the same twice."""
        self.valued()

    def gradient(self, folder: Path) -> None:
        """The student gets a finite gradient that is not zero."""
        self.valued.after("value")
        self.moving()

    def _check_value(self) -> None:
        if self.on_blocks:
            value, again = self._on_blocks(0), self._on_blocks(0)
            require(
                value.dim() == 0,
                f"{self.name} gives {tuple(value.shape)}, and one number is expected of a loss on blocks",
            )
            require(
                _finite(value) and bool(value == again),
                f"{self.name} gives {float(value)} and then {float(again)} for the same blocks and seed",
            )
            return
        for case in self.cases():
            where = f"{self.name} on the rows of {case.base}"
            value, again = (self._call(case.own_NV, case.other_NV, case.rows) for _ in range(2))
            expected: tuple[int, ...] = () if self.loss.whole else (len(case.rows),)
            require(
                tuple(value.shape) == expected,
                f"{where} gives {tuple(value.shape)}; expected is {expected}: "
                f"{'one number, since it is `whole`' if self.loss.whole else 'a number for each row'}",
            )
            require(_finite(value), f"{where} is not finite")
            require(bool((value == again).all()), f"{where} is not the same twice")
            heavy = self._call(case.own_NV, case.other_NV, case.rows, weight=3.0)
            require(
                bool((heavy == value).all()),
                f"{where} is {float(value.mean()):.4g}, and {float(heavy.mean()):.4g} with weight = 3; leave the weight "
                "to the stage, which multiplies by it",
            )

    def _check_gradient(self) -> None:
        if self.on_blocks:
            gradients = self._gradient_on_blocks(0)
            require(
                all(_finite(g) for g in gradients) and any(g.any() for g in gradients),
                f"{self.name}: no finite gradient reaches the student's blocks",
            )
            return
        for case in self.cases():
            gradient = self._gradient(case.own_NV, case.other_NV, case.rows)
            require(
                _finite(gradient) and bool(gradient.any()),
                f"{self.name} on the rows of {case.base}: no finite gradient reaches the student",
            )

    def minimum(self, folder: Path) -> None:
        """Where only a teacher says what is right, a student that is the teacher has nothing to learn."""
        self._after()
        if not self.taught:
            raise Skipped("the data says what is right" if self.loss.needs_target else "it compares with no teacher")
        if self.on_blocks:
            same, other = float(self._on_blocks(0, same=True)), float(self._on_blocks(0))
            require(
                same < other,
                f"{self.name} is {same:.4g} where student and teacher are the same, and {other:.4g} where not",
            )
            return
        for case in self.cases():
            where = f"{self.name} on the rows of {case.base}"
            same, other = (
                float(self._call(case.own_NV, taught, case.rows).mean()) for taught in (case.own_NV, case.other_NV)
            )
            require(
                same < other, f"{where} is {same:.4g} where student and teacher are the same, and {other:.4g} where not"
            )
            still, moved = (
                self._gradient(case.own_NV, taught, case.rows).norm() for taught in (case.own_NV, case.other_NV)
            )
            require(
                bool(still <= NEAR * moved),
                f"{where} moves a student that is the teacher already: its gradient there is {float(still):.2g}, "
                f"and {float(moved):.2g} at another",
            )

    def chunks(self, folder: Path) -> None:
        """Rows are compared a chunk at a time, so what a row gives must not depend on those beside it."""
        import torch

        self._after()
        if self.on_blocks or self.loss.whole:
            raise Skipped("it is given everything at once")
        for case in self.cases():
            half = len(case.rows) // 2
            whole = self._call(case.own_NV, case.other_NV, case.rows)[:half]
            part = self._call(case.own_NV[:half], case.other_NV[:half], case.rows[:half])
            require(
                torch.allclose(whole, part, rtol=1e-4, atol=1e-5 * float(whole.abs().max())),
                f"{self.name} on the rows of {case.base}: what it gives for a row depends on "
                "the rows beside it; say `whole = True`",
            )

    def side_effects(self, folder: Path) -> None:
        """It draws from no global random state, and leaves torch, the process and itself as they were."""
        self.valued.after("value")
        with other_chance(), surroundings_kept(self.name, self.loss):
            if self.on_blocks:
                self._on_blocks(1)
            else:
                for case in self.cases():
                    self._call(case.own_NV, case.other_NV, case.rows)

    def training(self, folder: Path) -> None:
        """A model is distilled with it for two steps: it changes, and alike every time."""
        import torch

        self._after()
        distil = self._distiller()
        values = {**options(distil.Options), "loss": [{"use": self.name, **options(self.loss.Options)}]}
        base = next(iter(self._fitting()), "")
        require(bool(base), f"{self.name}: no model of the bench has what it compares")
        start = self.bench.usable(base)
        runs = []
        for _ in range(2):
            model = start.copy()
            with other_chance():
                model.apply(distil, distil.Options(**values), self._context(start))
            runs.append(model.tensors())
        first, second = runs
        before = start.tensors()
        require(
            any(not torch.equal(first[name], before[name]) for name in before),
            f"{self.name} trains nothing: after two steps all weights are as they were",
        )
        require(
            all(torch.equal(first[name], second[name]) for name in first),
            f"{self.name}: training with it twice from one seed gives other weights",
        )

    # --- calling it ---------------------------------------------------------------------------------------------

    def _after(self) -> None:
        """Do not say again of a loss that has no values, or no gradient, that it has none."""
        self.valued.after("value")
        self.moving.after("gradient")

    def _distiller(self) -> Any:
        from zoo import registry

        try:
            return registry.compressor("distill")
        except (ZooError, PluginError) as error:
            raise Skipped(f"there is no `distill` to train with: {one_line(error)}") from None

    def _context(self, start: Model) -> Any:
        """A teacher that is not quite the model, so that there is something to learn."""
        from dataclasses import replace

        return replace(context_for(start), load=lambda _: _disturbed(start))

    def _fitting(self) -> Iterator[str]:
        """The bases with rows of its kind."""
        from zoo.family.task import task_of
        from zoo.loading.load import load

        for base, name in self.bench.bases.items():
            with contextlib.suppress(ZooError):  # of a plugin that is not in use
                skeleton = None if self.on_blocks else load(name, device="meta")
                if skeleton is None or self.loss.kind in task_of(skeleton).kinds(skeleton):
                    yield base

    def _cases(self) -> list[_Case]:
        import torch

        kind, cases, why = self.loss.kind, [], []
        for base in self._fitting():
            model = self.bench.usable(base)
            try:
                batch = self.bench.batch(model)
            except ZooError as error:
                why.append(f"{base}: {one_line(error)}")
                continue
            with torch.no_grad():
                rows = model.family.rows(model, batch, (kind,))[kind]
                own_NV = rows.head(rows.hidden).float()
            noise = torch.randn(own_NV.shape, generator=torch.Generator().manual_seed(2)).to(own_NV.device)
            cases.append(_Case(base, rows, own_NV, own_NV + NOISE * own_NV.std() * noise))
        require(
            bool(cases),
            f"{self.name} compares rows of kind {kind!r}, and no model has any"
            + (f" ({'; '.join(why)})" if why else ""),
        )
        return cases

    def _call(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor, rows: Rows, *, weight: float | None = None
    ) -> torch.Tensor:
        chosen = self.options if weight is None else self.options.model_copy(update={"weight": weight})
        value: torch.Tensor = self.loss(student_NV, teacher_NV if self.loss.needs_teacher else None, rows, chosen)
        return value

    def _gradient(self, student_NV: torch.Tensor, teacher_NV: torch.Tensor, rows: Rows) -> torch.Tensor:
        import torch

        leaf = student_NV.clone().requires_grad_(True)
        value = self._call(leaf, teacher_NV, rows).sum()
        require(value.requires_grad, f"{self.name} is not differentiated by what the student says")
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if gradient is None else gradient

    def _on_blocks(self, wider: int, *, same: bool = False) -> torch.Tensor:
        """The loss between two blocks' outputs of a student and of a teacher, which is `wider` than it or not."""
        student, teacher = _blocks(0, seed=0), _blocks(wider, seed=0 if same else 1)
        value: torch.Tensor = self._built(wider)(student, teacher)
        return value

    def _gradient_on_blocks(self, wider: int) -> list[torch.Tensor]:
        import torch

        student = [block.requires_grad_(True) for block in _blocks(0, seed=0)]
        value = self._built(wider)(student, _blocks(wider, seed=1))
        gradients = torch.autograd.grad(value, student, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    def _built(self, wider: int) -> Any:
        return self.loss.build(layers=(2, 2), widths=(SHAPES[0][-1], SHAPES[wider][-1]), options=self.options, seed=0)


def _blocks(wider: int, *, seed: int) -> list[torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*SHAPES[wider], generator=generator) for _ in range(2)]


def _disturbed(model: Model) -> Model:
    """A copy with a little noise on the weights of its main stack; what is around it, a teacher has to have alike."""
    import torch

    other, generator = model.copy(), torch.Generator().manual_seed(3)
    stack = model.anatomy.stack().path if model.anatomy.stacks else ""
    with torch.no_grad():
        for name, parameter in other.module.named_parameters():
            if not name.startswith(stack):
                continue
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(0.1 * parameter.abs().mean() * noise)
    return other


def _finite(tensor: torch.Tensor) -> bool:
    import torch

    return bool(torch.isfinite(tensor.detach()).all())
