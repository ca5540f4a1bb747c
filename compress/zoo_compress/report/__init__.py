"""What a finished compression looks like: a page to read (`html`) and a table for the terminal (`table`).

Both take the content of results.json and say the same things, because both read it through `columns`:

    quantities   how a number is written
    columns      which rows and columns there are, and what a cell says
    summary      the paragraph in words
    axes         scales, ticks and labels that keep out of each other's way
    plots        bars and curves, as inline SVG; scatter is size against quality
    page, terminal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo_compress.report.page import html as html
    from zoo_compress.report.terminal import table as table

HOMES = {
    "zoo_compress.report.page": ("html",),
    "zoo_compress.report.terminal": ("table",),
}
__getattr__, __dir__ = face(__name__, HOMES)
