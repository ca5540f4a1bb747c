"""Whether this process works alone, or is one of several that a launcher started to work together."""

from __future__ import annotations

import os
import sys
from typing import Any

from zoo.errors import RequestError

# what torchrun and `accelerate launch`, Intel MPI, Open MPI and MVAPICH say of the processes they start
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "LOCAL_RANK")
# by which processes that torchrun started find each other
MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# by which `accelerate launch` asks for a model that is divided among processes
DIVIDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def several() -> bool:
    """Whether this is one of several processes that a launcher started."""
    return bool(_together())


def rank() -> int:
    """The number of this process among those that torchrun started, from 0; 0 where it works alone."""
    value = os.environ.get("RANK", "")
    return int(value) if value.isdecimal() and several() else 0


def require_data_parallel(what: str) -> None:
    """Refuse to work as one of several processes that do not each hold the whole model, or cannot find each other.

    Raises:
        RequestError: says what was asked for, or how to start it.
    """
    for name in DIVIDED:
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise RequestError(
                f"{what} trains a copy of the model in each process, and this launch divides it ({name}): choose "
                "plain data parallelism, as torchrun and `accelerate launch --multi_gpu` do."
            )
    said = _together()
    if said and not begun() and not all(os.environ.get(name) for name in MEETING):
        raise RequestError(f"{what} cannot find the other processes, and {said}: start it by torchrun.")


def require_one_process(what: str) -> None:
    """Refuse to work as one of several processes.

    Raises:
        RequestError: says how many there are, or which this is.
    """
    if said := _together():
        raise RequestError(
            f"{what} works in one process, and {said}: start it once, without torchrun or accelerate launch."
        )


def begun() -> bool:
    """Whether torch.distributed has been started here."""
    distributed: Any = sys.modules.get("torch.distributed")  # not imported: whoever uses it has done so
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def _together() -> str:
    """What says that there are several processes; "" where nothing does."""
    if begun() and (count := sys.modules["torch.distributed"].get_world_size()) > 1:
        return f"torch.distributed runs {count}"
    for names, least, phrase in ((SIZES, 2, "here are {}"), (RANKS, 1, "this is one of several")):
        for name in names:
            value = os.environ.get(name, "")
            if value.isdecimal() and int(value) >= least:
                return f"{phrase.format(value)} ({name}={value})"
    return ""
