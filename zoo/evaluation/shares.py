"""Accuracy as a metric: a share with its Wilson interval, by group, and which answer was taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from zoo.evaluation.intervals import wilson

LARGEST = 40  # labels of a confusion matrix, and groups listed; more would not be read


def accuracy(
    true: Sequence[str], predicted: Sequence[str], *, groups: Sequence[str] = (), order: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a metric in per cent: value, "n", of two answers or more an interval; where few enough, "by" group and "confusion".

    Args:
        groups: the group of each answer, such as its class or its font; empty: none.
        order: all labels in the order to show them; others come after, sorted.
    """
    hits = [label == answer for label, answer in zip(true, predicted, strict=True)]
    metric: dict[str, Any] = {**_share(hits), "unit": "%", "better": "higher"}
    labels = _ordered({*true}, order)
    answers = [*labels, *_ordered({*predicted} - {*true}, order)]
    if len(labels) > 1 and len(answers) <= LARGEST:
        pairs = Counter(zip(true, predicted, strict=True))
        counts = [[pairs[label, answer] for answer in answers] for label in labels]
        metric["confusion"] = {"true": labels, "predicted": answers, "counts": counts}
    named = _ordered(set(groups), order)
    if 1 < len(named) <= LARGEST:
        members = {name: [hit for hit, group in zip(hits, groups, strict=True) if group == name] for name in named}
        metric["by"] = {name: _share(part) for name, part in members.items()}
    return metric


def _share(hits: Sequence[bool]) -> dict[str, float]:
    share = {"value": 100 * sum(hits) / max(1, len(hits)), "n": len(hits)}
    if len(hits) < 2:
        return share
    low, high = wilson(sum(hits), len(hits))
    return {**share, "low": 100 * low, "high": 100 * high}


def _ordered(names: set[str], order: Sequence[str]) -> list[str]:
    return [name for name in order if name in names] + sorted(names - set(order))
