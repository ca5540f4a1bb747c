"""A contact sheet of a model's samples, for the card: pictures under their captions, as one PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS, WIDTH, LINE = 4, 264, 14  # pictures side by side, pixels of one, pixels of a caption's line


def contact_sheet(samples: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Lay the pictures of samples out on one PNG; None where no sample has one."""
    shown = [sample for sample in samples if str(sample.get("image", "")).startswith("data:image/png;base64,")]
    if not shown:
        return None
    from PIL import Image, ImageDraw

    pictures = [_picture(sample["image"]) for sample in shown]
    columns = COLUMNS if max(picture.width for picture in pictures) <= WIDTH else 1
    width = WIDTH if columns > 1 else max(picture.width for picture in pictures)
    rows = [range(start, min(start + columns, len(shown))) for start in range(0, len(shown), columns)]
    heights = [max(pictures[i].height for i in row) + 2 * LINE + 8 for row in rows]
    page = Image.new("RGB", (columns * (width + 8), sum(heights)), "white")
    draw, top = ImageDraw.Draw(page), 0
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = column * (width + 8)
            for line, text in enumerate(_captions(shown[i])):
                draw.text(
                    (left + 2, top + 2 + line * LINE), text.encode("latin-1", "replace").decode("latin-1"), fill="black"
                )
            page.paste(pictures[i], (left, top + 2 * LINE + 4))
        top += height
    file = io.BytesIO()
    page.save(file, format="PNG")
    return file.getvalue()


def _picture(uri: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def _captions(sample: Mapping[str, Any]) -> list[str]:
    """At most two lines: the prompt, and what came of it."""
    answer = str(sample.get("output") or "")
    if sample.get("expected"):
        answer += f" (expected {sample['expected']})"
    return [" ".join(text.split())[:40] for text in (str(sample.get("prompt") or sample.get("caption") or ""), answer)]
