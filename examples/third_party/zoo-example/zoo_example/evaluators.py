"""How often the right next token, or the right class of an image, is among the likeliest few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from zoo.compressor import CompressorOptions
from zoo.data import Dataset
from zoo.errors import DataError, RequestError
from zoo.family import task_of
from zoo.model import Model


class TopKOptions(CompressorOptions):
    """Options of `[evaluate.top-k-accuracy]`."""

    k: int = Field(5, ge=1, description="how many of the likeliest answers count as right")
    length: int = Field(
        256, ge=2, description="tokens in a window, at most the model's context; for models that read text"
    )
    max_windows: int = Field(0, ge=0, description="evenly spaced windows up to that many; 0: all")


class TopKAccuracy:
    """Share of held-out tokens (or of images) that are among the k likeliest, with a 95% interval over windows.

    The tokens of a window are not independent of one another, the windows nearly are: so the interval is that of a ratio
    estimated from clusters (Cochran, Sampling Techniques, 1977), and there is none from a single window.
    """

    Options = TopKOptions

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse what `measure` would refuse, from the model's structure.

        Raises:
            RequestError: the model chooses no label, or is not asked for one at each place.
        """
        if "label" not in model.family.kinds or task_of(model).masks:
            raise RequestError(
                f"top-k-accuracy is for models that choose a next token or a class; {model.spec.name} is {model.spec.task}."
            )

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `TopKOptions`.

        Raises:
            DataError: no data, or too little for one window.
        """
        if data is None:
            raise DataError('top-k-accuracy needs test data: add `test = "..."` to [data], or pass --data.')
        self.check(model, data)
        asked = TopKOptions(**options)
        windows = model.family.windows(model, data, length=asked.length)
        stride = max(1, math.ceil(len(windows) / asked.max_windows)) if asked.max_windows else 1
        counts = [_count(model, windows[i], asked.k) for i in range(0, len(windows), stride)]
        hits, tokens = torch.tensor(counts, dtype=torch.float64).T
        if not tokens.any():
            raise DataError(f"{data.name!r} holds nothing to predict.")
        return {f"top_{asked.k}_accuracy": {**share(hits, tokens), "unit": "%", "better": "higher"}}


def _count(model: Model, window: dict[str, torch.Tensor], k: int) -> tuple[int, int]:
    """Right tokens of a window, and all of them. A token is right where fewer than k others are likelier."""
    batch = {name: tensor.to(model.device) for name, tensor in model.family.collate(model, [window]).items()}
    with torch.inference_mode():
        rows = model.family.rows(model, batch, ("label",))["label"]
        logits_NV = rows.head(rows.hidden)
    assert rows.target is not None
    likelier_N = (logits_NV > logits_NV.gather(1, rows.target[:, None])).sum(1)
    return int((likelier_N < k).sum()), len(rows)


def share(hits_W: torch.Tensor, tokens_W: torch.Tensor) -> dict[str, float]:
    """sum(hits) / sum(tokens) over W windows in per cent, with low and high where there are two windows or more."""
    value, windows = float(hits_W.sum() / tokens_W.sum()), len(hits_W)
    found = {"value": 100 * value, "n": windows}
    if windows > 1:
        spread = float((hits_W - value * tokens_W).square().sum()) * windows / (windows - 1)
        half = 1.959964 * math.sqrt(spread) / float(tokens_W.sum())
        found |= {"low": 100 * max(0.0, value - half), "high": 100 * min(1.0, value + half)}
    return found
