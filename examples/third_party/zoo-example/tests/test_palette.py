"""Palettes: k-means against trying every split, bytes that hold exactly what they should, and refusals."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
import zoo
from zoo.testing import check_estimate, check_exact_reload, check_refuses, random_state_kept

from zoo_example.palette import fold, kmeans, nearest, palette, unfold


def test_kmeans_finds_the_best_split_where_there_is_one():
    values = torch.tensor([0.0, 0.1, 0.2, 4.0, 4.1, 9.0, 9.3, 9.6])

    def loss(cuts: tuple[int, ...]) -> float:
        parts = [values[a:b] for a, b in zip((0, *cuts), (*cuts, len(values)), strict=True)]
        return sum(float(((part - part.mean()) ** 2).sum()) for part in parts)

    best = min(loss(cuts) for cuts in combinations(range(1, len(values)), 2))
    found = kmeans(values[torch.randperm(8, generator=torch.Generator().manual_seed(0))], 3, iterations=20)
    assert float(((found[nearest(values, found).long()] - values) ** 2).sum()) == pytest.approx(best, rel=1e-5)


def test_no_iteration_is_evenly_spread():
    torch.testing.assert_close(kmeans(torch.tensor([1.0, 1.1, 3.0]), 3, iterations=0), torch.tensor([1.0, 2.0, 3.0]))


def test_zeros_stay_zero():
    values = torch.randn(64, generator=torch.Generator().manual_seed(0))
    values[::2] = 0
    found = palette(values, 4, iterations=20)
    assert not found[nearest(values, found).long()][::2].any() and found.count_nonzero() == 3
    assert not palette(torch.zeros(8), 4, iterations=20).any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_come_back_out_of_their_bytes(bits: int):
    numbers = torch.randint(0, 2**bits, (128,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    folded = fold(numbers, bits=bits)
    assert len(folded) == 128 // (8 // bits)
    assert torch.equal(unfold(folded, bits=bits), numbers.int())


def test_sizes_are_as_planned_and_a_reload_is_exact(tmp_path: Path):
    model = zoo.load("tiny-mingru")
    layers = 3 * 3 * 96 * 96 + 3 * 3 * 96 * 128
    finished = []
    for bits, to_a_byte in ((1, 8), (2, 4), (3, 2), (4, 2), (8, 1)):
        with random_state_kept("palette.kmeans"):
            done = check_estimate(model, "palette.kmeans", {"bits": bits})
        assert done.params == model.params
        palettes = 18 * 4 * 2**bits
        assert (
            done.bytes == model.bytes - 2 * layers + layers // to_a_byte + palettes
        )  # a weight was stored in two bytes
        finished.append(done)
    check_exact_reload(finished, tmp_path)


def test_more_bits_are_nearer():
    model = zoo.load("tiny-mingru")
    weight = model.module.get_submodule("blocks.0.mixer.gate").weight.detach()
    errors = []
    for bits in (1, 2, 4, 8):
        done = check_estimate(model, "palette.kmeans", {"bits": bits, "target": "language.mixer"})
        errors.append(
            float((done.module.get_submodule("blocks.0.mixer.gate").dequantize() - weight).norm() / weight.norm())
        )
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02


def test_it_refuses_what_is_packed_already():
    packed = check_estimate(zoo.load("tiny-mingru"), "quantize.int8", {"target": "language.ffn"})
    assert "blocks.0.ffn.gate_proj is packed (8 bits) by stage 3 (quantize.int8)" in check_refuses(
        packed, "palette.kmeans"
    )


def test_it_refuses_numbers_that_do_not_fill_their_bytes():
    odd = check_estimate(zoo.load("tiny-mingru"), "prune.structured", {"width": 95, "ffn": 95})
    assert "has 9025 weights, and 8 numbers of 1 bits share a byte" in check_refuses(odd, "palette.kmeans", {"bits": 1})
