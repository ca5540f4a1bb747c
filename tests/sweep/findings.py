"""What a check of the sweep found: it works, is refused in a sentence, or fails."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, one_line

WORKS, REFUSED, FAILED, NOT_BUILT, DOES_NOT_APPLY = "works", "refused", "failed", "not built", "does not apply"
COUNTED = "counted"  # the sentence is the count
HOME = Path(__file__).parents[2]
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Finding:
    """The verdict of one check on one architecture; `dtype` is "" where it is of both."""

    check: str
    dtype: str
    verdict: str
    sentence: str = ""


class DoesNotApply(Exception):
    """The check asks for what the architecture has not."""


def attempt(check: str, dtype: str, ask: Callable[[], Any]) -> Finding:
    """Ask, and say what came: an answer, a refusal of ours, or anything else, which is a failure."""
    try:
        ask()
    except ZooError as error:
        return Finding(check, dtype, REFUSED, one_line(error))
    except DoesNotApply:
        return Finding(check, dtype, DOES_NOT_APPLY)
    except AssertionError as error:
        return Finding(check, dtype, FAILED, one_line(error).removeprefix("AssertionError: ") or _where(error))
    except (Exception, SystemExit) as error:
        return Finding(check, dtype, FAILED, f"{one_line(error)[:200]} ({_where(error)})")
    return Finding(check, dtype, WORKS)


def must(check: str, dtype: str, ask: Callable[[], Any], *, why: str) -> Finding:
    """As `attempt`, where a refusal comes too late: it is a failure."""
    found = attempt(check, dtype, ask)
    return found if found.verdict != REFUSED else Finding(check, dtype, FAILED, f"{why}: {found.sentence}")


def _where(error: BaseException) -> str:
    """The last line of the product that an error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_product(frame.filename)]
    if not frames:
        return "in the sweep itself"
    return f"{Path(frames[-1].filename).relative_to(HOME)}, line {frames[-1].lineno}"


def _is_product(file: str) -> bool:
    return re.match(rf"{re.escape(str(HOME))}/(zoo|compress|plugins)/", file) is not None
