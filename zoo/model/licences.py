"""What a model inherits from what it was made of: the licences of its base, its teachers and its data.

Nothing here is legal advice: a licence that is not known stays unknown, and one that is no common permissive one is
repeated by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.data.reference import Reference
from zoo.errors import ArtifactError
from zoo.plugins.names import declaration, is_known
from zoo.system.reading import text_of

if TYPE_CHECKING:
    from zoo.model.lineage import Stage
    from zoo.model.model import Model

UNKNOWN = "unknown"
PERMISSIVE = (
    "apache-2.0 mit bsd-2-clause bsd-3-clause isc 0bsd zlib psf-2.0 cc0-1.0 cc-by-3.0 cc-by-4.0 ofl-1.1 unlicense"
)
STATED = re.compile(r"^(license|license_name):(.*(?:\n[ \t]*- .*)*)$", re.MULTILINE)  # a value, or a list of them
MARKUP = re.compile(r"[ \t]#.*|['\"\[\]]|^[ \t]*- ", re.MULTILINE)  # what YAML writes around values
NON_COMMERCIAL = re.compile(r"(^|[^a-z])(nc|non[-_ ]?commercial|research|academic)($|[^a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Inherited:
    """One licence that a result inherits, and of what: "base tiny-code", "teacher ./big", "data stdlib:train"."""

    of: str
    license: str

    @property
    def judged(self) -> str:
        """What it means for the result; "" where it asks for notice at most."""
        if self.license == UNKNOWN:
            return "what it permits, and so what the result may be used for, is not known here"
        if NON_COMMERCIAL.search(self.license):
            return "not for commercial use, and neither is the result"
        if all(
            "-".join(part.lower().split()) in PERMISSIVE.split()
            for part in re.split(r",| and | or ", self.license, flags=re.I)
        ):
            return ""
        return "it has terms of its own, which hold for the result too"

    def __str__(self) -> str:
        return f"{self.of} ({self.license})" + (f": {self.judged}" if self.judged else "")


def inherited(model: Model) -> tuple[Inherited, ...]:
    """What a model inherits, each once: of its base, then stage by stage of teachers and data."""
    found = {f"base {model.spec.name}": model.spec.license or UNKNOWN}
    for stage in model.lineage:
        found |= stage.made.get("licenses") or _unrecorded(stage)
    return tuple(Inherited(of, license) for of, license in found.items())


def of_teacher(name: str, teacher: Model) -> dict[str, str]:
    """What a model inherits from a teacher, by what it is of: the teacher's own licence, and what that inherited."""
    base, *others = inherited(teacher)
    return {f"teacher {name}": base.license, **{other.of: other.license for other in others}}


def of_data(references: Iterable[str]) -> dict[str, str]:
    """The licences of data, as the plugins that bring it declare them; of files nobody knows."""
    parsed = [Reference.parse(reference) for reference in references]
    return {f"data {reference.source}": _declared(reference) for reference in parsed}


def overall(licences: Iterable[Inherited]) -> str:
    """The licence a result's card can name: that of the base where all others but data's ask for no more; else why not."""
    base, *others = licences
    others = [other for other in others if not other.of.startswith("data ") or other.license != UNKNOWN]
    if UNKNOWN in [base.license, *(other.license for other in others)]:
        return UNKNOWN
    return "other" if any(other.judged and other.license != base.license for other in others) else base.license.lower()


def stated_in(card: Path) -> str:
    """The licence that the card of a checkpoint names at its head, as hubs ask for it; "" where it names none."""
    with suppress(ArtifactError):
        head = re.match(r"---\n(.*?)\n---", text_of(card, error=ArtifactError), re.DOTALL)
        stated = {key: _listed(value) for key, value in STATED.findall(head[1])} if head else {}
        license = stated.get("license", "")
        return stated.get("license_name", license) if license == "other" else license
    return ""


def _listed(value: str) -> str:
    """The licences that a card's value names, one after the other; "" where it is none that can be shown."""
    named = ", ".join(part.strip() for part in re.split(r"[,\n]", MARKUP.sub("", value)) if part.strip())
    return named if re.fullmatch(r"[\w.+, -]{1,60}", named) else ""


def problem_of_licences(table: object) -> str:
    """Say what in a lineage's record of licences is not as it is written, or return ""."""
    texts = isinstance(table, Mapping) and all(isinstance(text, str) for pair in table.items() for text in pair)
    return "" if texts else "its licences are no table of texts"


def _unrecorded(stage: Stage) -> dict[str, str]:
    """What is known of a stage whose licences were not recorded, by an older zoo."""
    teachers = [f"teacher {name}" for name in stage.made.get("teachers", {}) if name != "original"]
    data = of_data(about["reference"] for about in stage.made.get("data", {}).values())
    return {**dict.fromkeys(teachers, UNKNOWN), **data}


def _declared(reference: Reference) -> str:
    for name in (f"{reference.source}:{reference.split}", reference.source):
        if is_known("data", name):
            return declaration("data", name).license or UNKNOWN
    return UNKNOWN
