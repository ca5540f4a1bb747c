"""Memory of this process: what it holds, the most it held since a reset, and how much more it may take."""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import functools
import gc
import mmap
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

SAID_OF_SHORTAGE = ("can't allocate memory", "Cannot allocate memory")  # by torch's allocator, by the system (ENOMEM)
M_MMAP_THRESHOLD = -3  # of malloc.h
UNLIMITED = 1 << 60  # a limit beyond this is none; cgroup v1 writes the largest multiple of a page


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in SAID_OF_SHORTAGE)


def give_back() -> None:
    """Free what only cycles hold, and give the system back what the allocator keeps for later, where it can (glibc).

    Without this a process keeps most of what a training step held: at a quarter of a gigabyte, its next stage would seem
    to take that much.
    """
    gc.collect()
    if trim := _from_c_library("malloc_trim"):
        trim(0)


def give_back_at_once(size: int) -> None:
    """From now on give the system back blocks of this size or larger as soon as they are free, where it can (glibc, mallopt(3)).

    Else the allocator comes to keep blocks of up to 32 MB among others, and a process grows by the holes between them.
    """
    if set_option := _from_c_library("mallopt"):
        set_option(M_MMAP_THRESHOLD, size)


@functools.cache
def _from_c_library(name: str) -> ctypes._NamedFuncPointer | None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        function: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None), name)
        return function
    return None


class MappedFiles:
    """The files that are mapped into this process when it is first asked (Linux, proc_pid_maps(5)); none where the system does not say."""

    @functools.cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
                addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
                if inode != "0":
                    first, last = (int(address, 16) for address in addresses.split("-"))
                    ranges.append((first, last))
        return ranges

    def hold(self, address: int) -> bool:
        """Whether there is a file at this address."""
        place = bisect.bisect_right(self._ranges, (address, sys.maxsize)) - 1
        return place >= 0 and address < self._ranges[place][1]

    def let_go(self, address: int, size: int) -> None:
        """Take the whole pages of a range out of memory; they are read again from the file where anybody asks for them.

        What was written into them here, and not into the file, is lost.
        """
        first, last = _whole_pages(address, size)
        if last > first and self.hold(first) and self.hold(last - 1):
            let_go(address, size)


def let_go(address: int, size: int) -> None:
    """Take the whole pages of a range that is mapped from a file out of memory, where the system can."""
    first, last = _whole_pages(address, size)
    if last > first and (advise := _from_c_library("madvise")):
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _whole_pages(address: int, size: int) -> tuple[int, int]:
    page = mmap.PAGESIZE
    return -(-address // page) * page, (address + size) // page * page


def reset_peak() -> None:
    """Give back what is free, and start a new peak, where the system can (Linux, proc(5): 5 in clear_refs resets VmHWM)."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident memory since the last reset (Linux), else since the process began, in bytes."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- limits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """Something that bounds the memory of this process."""

    source: str  # "the limit of cgroup /build"
    left: int  # bytes this process may take beyond what it holds
    shared: bool = False  # what processes it starts takes counts as well


def limits(*, device: str = "cpu", proc: Path = Path("/proc")) -> list[Limit]:
    """Whatever bounds the memory of this process, the tightest first."""
    bounds = [
        Limit("free memory", psutil.virtual_memory().available, shared=True),
        *_resource_limits(),
        *_cgroups(proc),
    ]
    if device.startswith("cuda"):
        import torch

        bounds.append(Limit(f"free memory of {device}", torch.cuda.mem_get_info(device)[0]))
    return sorted(bounds, key=lambda limit: limit.left)


def _resource_limits() -> Iterator[Limit]:
    """Limits of setrlimit(2): RLIMIT_AS on all addresses in use, RLIMIT_DATA on private writable memory (since Linux 4.7)."""
    try:
        import resource

        sizes = re.findall(r"Vm(Size|Data):\s+(\d+) kB", Path("/proc/self/status").read_text())
    except (ImportError, OSError):
        return
    names = {"Size": ("RLIMIT_AS", "ulimit -v"), "Data": ("RLIMIT_DATA", "ulimit -d")}
    for key, kilobytes in sizes:
        name, command = names[key]
        most = resource.getrlimit(getattr(resource, name))[0]
        if most not in (resource.RLIM_INFINITY, -1):
            yield Limit(f"{name} ({command})", max(0, most - 1024 * int(kilobytes)))


def _cgroups(proc: Path) -> Iterator[Limit]:
    """Limits of the cgroups, of either version, that this process is in: its own and all around it."""
    try:
        groups = (proc / "self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in (proc / "self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        second = not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        for root, mount in _mounts(mounts, second=second):
            relative = _below(path, root)
            for inner in (relative, *relative.parents):
                if (limit := _cgroup_limit(mount / inner, f"/{inner}".replace("/.", "/"), second=second)) is not None:
                    yield limit


def _mounts(mounts: list[list[str]], *, second: bool) -> Iterator[tuple[str, Path]]:
    """Where the memory controller is mounted, and which group lies there: lines are as in proc_pid_mountinfo(5)."""
    for fields in mounts:
        rest = fields[fields.index("-") + 1 :] if "-" in fields else []
        if len(rest) > 2 and (
            rest[0] == "cgroup2" if second else rest[0] == "cgroup" and "memory" in rest[2].split(",")
        ):
            yield fields[3], Path(fields[4])


def _below(path: str, root: str) -> PurePosixPath:
    """The path of a group below the one that is mounted; in a container, the mounted one itself."""
    with contextlib.suppress(ValueError):
        return PurePosixPath(path).relative_to(root)
    return PurePosixPath(path.lstrip("/"))


def _cgroup_limit(folder: Path, name: str, *, second: bool) -> Limit | None:
    limit_file, usage_file, cached = (
        ("memory.max", "memory.current", "inactive_file")
        if second
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        limit = int((folder / limit_file).read_text())  # of the second version also "max"
        used = int((folder / usage_file).read_text())
        stat = re.search(rf"^{cached} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    if limit >= UNLIMITED:
        return None
    return Limit(f"the limit of cgroup {name}", max(0, limit - used + int(stat[1] if stat else 0)), shared=True)
