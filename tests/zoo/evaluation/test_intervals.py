"""Intervals: each against a reference written another way, and written out nowhere else."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import pytest
import torch

from zoo.evaluation.intervals import bootstrap, bootstrap_error, delta_method, wilson

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # from the closed formula evaluated by hand with z = 1.959964, and Newcombe (1998), table I, case 81 of 263
    [(81, 263, 0.2553, 0.3662), (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_intervals_are_the_published_ones(hits: int, count: int, low: float, high: float):
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_a_bootstrap_holds_the_figure_and_is_that_of_all_draws_at_once():
    values = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, second = (bootstrap(lambda places: float(values[places].mean()), 40) for _ in range(2))
    assert first == second and first["low"] < first["value"] == values.mean() < first["high"]
    draw = torch.Generator().manual_seed(0)  # published figures are of these draws
    means = values[torch.randint(0, 40, (1000, 40), generator=draw)].mean(1).sort().values.tolist()
    assert (first["low"], first["high"]) == pytest.approx((means[25], means[974]), rel=1e-12)


def test_of_one_sample_there_is_no_interval_and_draws_without_a_figure_are_left_out():
    assert bootstrap(lambda places: 1.0, 1) == {"value": 1.0, "n": 1}
    assert delta_method(torch.tensor([4.0]), torch.tensor([2.0])) == {"value": 2.0, "n": 1}
    some = bootstrap(lambda places: float(places.double().mean()) if 0 in places else float("nan"), 4)
    assert some["low"] < some["value"] == 1.5 < some["high"] < 2.5
    none = bootstrap(lambda places: 1.0 if torch.equal(places, torch.arange(30)) else float("inf"), 30)
    assert none == {"value": 1.0, "n": 30}


def test_groups_are_resampled_within_themselves():
    groups = ["b", "a", "b", "a", "a"]
    counts = [groups.count(name) for name in "ab"]
    seen: list[list[int]] = []

    def figure(places: torch.Tensor) -> float:
        drawn = [groups[int(i)] for i in places]
        seen.append([drawn.count(name) for name in "ab"])
        return float(places.double().mean())

    assert bootstrap_error(figure, groups) > 0 and seen == [counts] * 200
    assert bootstrap_error(figure, ["", ""], seed=1) != bootstrap_error(figure, ["", ""], seed=2)
    alone = bootstrap_error(lambda places: float(places.double().mean()), ["a", "b", "c"])
    assert alone == 0  # each is all of its group


def test_the_interval_of_a_mean_is_its_standard_error_and_that_of_a_ratio_covers_as_often_as_it_says():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    mean = delta_method(values, torch.ones(4))
    half = 1.959964 * float(values.std()) / 2
    assert mean == pytest.approx({"value": 4.0, "low": 4 - half, "high": 4 + half, "n": 4})
    draw = torch.Generator().manual_seed(0)
    under = torch.rand(400, 200, dtype=torch.float64, generator=draw) + 0.5
    over = 3 * under + torch.randn(400, 200, dtype=torch.float64, generator=draw)
    found = [delta_method(*pair) for pair in zip(over, under, strict=True)]
    assert sum(one["low"] < 3 < one["high"] for one in found) / 400 == pytest.approx(0.95, abs=0.03)


def test_no_other_file_writes_out_how_wide_an_interval_is():
    width = {"1.96", "1.959964", "0.025", "0.975", "97.5"}
    found = []
    for path in sorted(path for room in ("zoo", "compress", "plugins") for path in (ROOT / room).rglob("*.py")):
        words = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        found += [f"{path.relative_to(ROOT)}:{word.start[0]}" for word in words if word.string in width]
    assert {place.partition(":")[0] for place in found} == {"zoo/evaluation/intervals.py"}, found
