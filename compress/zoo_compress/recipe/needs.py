"""What a run needs of memory, against what it may have: said by the plan, and before a run begins."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.errors import RequestError, spelled
from zoo.system.memory import Limit, limits, resident_bytes

if TYPE_CHECKING:
    from zoo_compress.recipe.planned import Plan

TRAINS = "lower its batch or length, or use a machine with more memory"
WEIGHTS = "use a machine with more memory, or a smaller model"
OFFLOAD = "write offload = true into [model], which keeps the weights on disk, or use a machine with more memory"
SPEED = "write speed = false into [evaluate]"
CONTROL = "write control = false into [evaluate]"
# What planning itself takes: some libraries more, and of addresses those that the threads of a backward pass reserve.
ROOM, ADDRESSES = 128 * 2**20, 640 * 2**20


@dataclass(frozen=True)
class Need:
    """What one part of a run holds at most, in bytes."""

    what: str
    bytes: int  # of the process
    remedy: str
    beside: int = 0  # of a process it starts


def needs(plan: Plan, *, done: Collection[str] = ()) -> Iterator[Need]:
    """What every part of a run needs, in the order of the run.

    Args:
        done: the parts that will not be run: labels of stages, "control", "measuring speed".
    """
    original, weights = plan.stages[0], WEIGHTS if plan.recipe.model.offload else OFFLOAD
    yield Need(f"loading {plan.spec.name}", original.peak_bytes, weights)
    for request, stage in zip(plan.recipe.stages, plan.stages[1:], strict=True):
        if request.label not in done:
            yield Need(request.label, stage.peak_bytes, TRAINS if request.compressor.trains else weights)
    if plan.control and "control" not in done:
        yield Need("the control", plan.control.peak_bytes, CONTROL)
    if plan.recipe.evaluate.speed is not False and "measuring speed" not in done:
        yield Need("measuring speed in a process of its own", plan.base_bytes, SPEED, beside=original.peak_bytes)


def shortage(wanted: Sequence[Need], *, bounds: Sequence[Limit] | None = None) -> str:
    """Say in one sentence what cannot have the memory it needs, that which lacks most, or return ""."""
    from zoo.system.quantities import quantity

    now = resident_bytes()
    lacking = [
        (short, need, limit)
        for limit in (limits() if bounds is None else bounds)
        for need in wanted
        if (short := need.bytes - now + (need.beside if limit.shared else 0) - limit.left) > 0
    ]
    if not lacking:
        return ""
    _, need, limit = max(lacking, key=lambda one: one[0])
    needed, most = need.bytes + (need.beside if limit.shared else 0), now + limit.left
    return (
        f"{need.what} needs about {quantity(needed, 'B')} of memory, and {limit.source} leaves {quantity(most, 'B')} "
        f"for this run: {need.remedy}, or pass {spelled('ignore_memory=True', '--ignore-memory')} to try."
    )


def require_room() -> None:
    """Refuse to plan without room even for that: a library that runs out of memory may end the process without a word.

    Raises:
        RequestError: names what bounds it.
    """
    from zoo.system.quantities import quantity

    for limit in limits():
        least = ADDRESSES if limit.source.startswith("RLIMIT_AS") else ROOM
        if limit.left < least:
            raise RequestError(
                f"{limit.source[:1].upper()}{limit.source[1:]} leaves this process {quantity(limit.left, 'B')}, and planning takes up to "
                f"{quantity(least, 'B')}: raise the limit, or use a machine with more memory."
            )


def require_memory(plan: Plan, *, done: Collection[str] = ()) -> None:
    """Refuse a run whose plan does not fit into the memory it may have.

    Raises:
        RequestError: names the part, what it needs, what bounds it, and what would help.
    """
    if sentence := shortage(list(needs(plan, done=done))):
        raise RequestError(f"{sentence[:1].upper()}{sentence[1:]}")
