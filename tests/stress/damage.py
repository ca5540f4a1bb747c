"""Damage to artifacts: every file truncated, flipped, deleted, swapped with another model's; `zoo.load` and `zoo verify` name it.

    python tests/stress/damage.py [--flips 1000] [--cuts 50] [--seed 0] [--json FILE]

For each file of each artifact: so many truncations (at every length where there are fewer), so many single bit flips, its
deletion, and the file of the same name of another artifact in its place. Each has to be refused by both, in a sentence
that names the file. Prints counts by file and kind, the seconds, and the growth of memory; exit code 1 on any failure.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import zoo
from zoo.artifact import store
from zoo.artifact.manifest import MANIFEST
from zoo.errors import ZooError

GROWTH = 300_000  # KiB that loading damaged artifacts may add to the peak


def damaged(
    content: bytes, other: bytes | None, *, cuts: int, flips: int, draw: random.Random
) -> Iterator[tuple[str, bytes | None]]:
    """Every damage of one file: what was done, and its content afterwards (None: it is gone)."""
    lengths = range(len(content)) if len(content) <= cuts else sorted(draw.sample(range(len(content)), cuts))
    for length in lengths:
        yield "truncated", content[:length]
    for bit in draw.sample(range(8 * len(content)), min(flips, 8 * len(content))):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield "flipped", bytes(flipped)
    yield "deleted", None
    if other is not None and other != content:
        yield "swapped", other


def problems(
    folder: Path, other: Path, *, cuts: int, flips: int, draw: random.Random, counts: Counter[str]
) -> Iterator[str]:
    """Damage every file of the artifact in `folder` in turn; yield what was not refused as it should be."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    for name in names:
        file, twin = folder / name, other / name
        content = file.read_bytes()
        for what, left in damaged(
            content, twin.read_bytes() if twin.is_file() else None, cuts=cuts, flips=flips, draw=draw
        ):
            if left is None:
                file.unlink()
            else:
                file.write_bytes(left)
            counts[f"{name} {what}"] += 1
            yield from (f"{name} {what}: {problem}" for problem in refused(folder, name))
        file.write_bytes(content)
    assert not store.verify(folder), "the artifact is whole again"


def refused(folder: Path, name: str) -> Iterator[str]:
    """Say what of `verify` and `load` did not refuse the folder in a sentence that names the file."""
    for what, ask in {"verify": _verify, "load": zoo.load}.items():
        try:
            ask(folder)
            yield f"{what} took it"
        except ZooError as error:
            named = name in str(error) or (name == MANIFEST and "the manifest" in str(error))
            if not named or "\n" in str(error) or len(str(error)) > 1000:
                yield f"{what} said {str(error)[:200]!r}"
        except Exception as error:
            yield f"{what} raised {type(error).__name__}: {str(error)[:200]}"


def _verify(folder: Path) -> None:
    for file, problem in store.verify(folder):
        raise ZooError(f"{file} {problem}")


def models(folder: Path) -> list[tuple[Path, Path]]:
    """Artifacts to damage, each with another to swap files with: a packed language model, and a pipeline of several files."""
    from zoo_compress import apply

    pairs = []
    for name, stages in {"tiny-code": ["quantize.int8"], "tiny-t2i": []}.items():
        pair = []
        for number, weights in enumerate(("auto", "random")):
            model = zoo.load(name, weights=weights)
            for use in stages:
                apply(model, use)
            pair.append(model.save(folder / f"{name}-{number}"))
        pairs.append((pair[0], pair[1]))
    return pairs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        pairs = models(Path(scratch))
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        for folder, other in pairs:
            draw = random.Random(args.seed)
            found = problems(folder, other, cuts=args.cuts, flips=args.flips, draw=draw, counts=counts)
            failures += [f"{folder.name}: {problem}" for problem in found]
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.monotonic() - started
    for what, count in counts.items():
        print(f"{count:6}  {what}")
    print(
        f"{counts.total()} damages in {seconds:.0f} s, {growth / 1024:.0f} MiB of memory more at most, {len(failures)} not refused as they should be"
    )
    for failure in failures[:20]:
        print(failure)
    if args.json:
        args.json.write_text(
            json.dumps({"counts": counts, "seconds": seconds, "growth_kib": growth, "failures": failures}, indent=1)
        )
    return int(bool(failures) or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
