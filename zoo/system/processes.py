"""Whether this process works alone, or is one of several that a launcher started to work together."""

from __future__ import annotations

import os
import sys
from typing import Any

from zoo.errors import RequestError

# what torchrun and `accelerate launch`, Intel MPI, Open MPI and MVAPICH say of the processes they start
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "LOCAL_RANK")


def require_one_process(what: str) -> None:
    """Refuse to work as one of several processes: the result would be another than that of one.

    Raises:
        RequestError: says how many there are, or which this is.
    """
    if said := _together():
        raise RequestError(
            f"{what} works in one process so far, and {said}: start it once, without torchrun or accelerate launch."
        )


def _together() -> str:
    """What says that there are several processes; "" where nothing does."""
    distributed: Any = sys.modules.get("torch.distributed")  # not imported: whoever uses it has done so
    begun = distributed is not None and distributed.is_available() and distributed.is_initialized()
    if begun and distributed.get_world_size() > 1:
        return f"torch.distributed runs {distributed.get_world_size()}"
    for names, least, phrase in ((SIZES, 2, "here are {}"), (RANKS, 1, "this is one of several")):
        for name in names:
            value = os.environ.get(name, "")
            if value.isdecimal() and int(value) >= least:
                return f"{phrase.format(value)} ({name}={value})"
    return ""
