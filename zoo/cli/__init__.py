"""The `zoo` command: `main` runs it; `output` is what commands print with, those of plugins as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.cli.entry import main as main

HOMES = {
    "zoo.cli.entry": ("main",),
}
__getattr__, __dir__ = face(__name__, HOMES)
