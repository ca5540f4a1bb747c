"""Tiling: the published choice of grids, written as a table and as the published loop."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.family.vision.tiling import MEAN, STD, cut, grids, pick, tiles_of, to_pixels

pytestmark = pytest.mark.quick

SIDE = 448
# width, height -> first grid, tiles; second grid, tiles with multi-scale cropping (facts/vision-language.md, 2.3)
TABLE = [
    (448, 448, (1, 1), 1, (2, 2), 5),
    (633, 634, (1, 1), 1, (2, 2), 5),
    (634, 634, (2, 2), 5, None, 5),
    (640, 480, (3, 2), 7, (2, 3), 13),
    (1920, 1080, (2, 1), 3, (3, 2), 9),
    (2000, 500, (4, 1), 5, (3, 2), 11),
    (3000, 400, (6, 1), 7, None, 7),
    (1700, 2200, (2, 3), 7, (3, 2), 13),
]
TIES = [(500, 400, (1, 1), 1), (750, 600, (2, 2), 5), (1000, 800, (3, 2), 7)]  # 5:4 is as far from 1 as from 1.5


def published(width, height, fewest, most, side):
    """The choice as the published code has it (image_process.py, find_closest_aspect_ratio)."""
    ratios = {
        (i, j)
        for n in range(fewest, most + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if fewest <= i * j <= most
    }
    best, best_difference = (1, 1), float("inf")
    for ratio in sorted(ratios, key=lambda one: one[0] * one[1]):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < best_difference:
            best, best_difference = ratio, difference
        elif difference == best_difference and width * height > 0.5 * side * side * ratio[0] * ratio[1]:
            best = ratio
    return best


def test_six_tiles_allow_fourteen_grids():
    found = grids(1, 6)
    assert len(found) == 14
    assert {(1, 1), (6, 1), (2, 3), (3, 2)} <= set(found)
    assert [c * r for c, r in found] == sorted(c * r for c, r in found)


@pytest.mark.parametrize(("width", "height", "grid"), [row[:3] for row in TABLE] + [row[:3] for row in TIES])
def test_the_grid_is_that_of_the_published_vectors(width, height, grid):
    assert pick((width, height), grids(1, 6), side=SIDE) == grid


@pytest.mark.parametrize(("width", "height", "plain", "msac"), [(w, h, n, m) for w, h, _, n, _, m in TABLE])
def test_tiles_are_counted_as_published(width, height, plain, msac):
    image = Image.new("RGB", (width, height))
    assert len(tiles_of(image, side=SIDE, most=6)) == plain
    assert len(tiles_of(image, side=SIDE, most=6, msac=True)) == msac


def test_the_grid_agrees_with_the_published_loop():
    draw = random.Random(0)
    for _ in range(3000):
        width, height, side = draw.randint(1, 900), draw.randint(1, 900), draw.choice([32, 48, 448])
        assert pick((width, height), grids(1, 6), side=side) == published(width, height, 1, 6, side)


def test_tiles_are_cut_row_by_row_with_the_thumbnail_last():
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            pixels[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 40 * (3 * row + column)
    tiles = cut(Image.fromarray(pixels), (3, 2), side=32, thumbnail=True)
    assert [round(np.asarray(tile).mean() / 40) for tile in tiles[:6]] == [0, 1, 2, 3, 4, 5]
    assert len(tiles) == 7
    assert abs(np.asarray(tiles[6]).mean() - pixels.mean()) < 2
    assert len(cut(Image.fromarray(pixels), (3, 2), side=32, thumbnail=False)) == 6


def test_a_single_tile_has_no_thumbnail():
    assert len(tiles_of(Image.new("RGB", (32, 32)), side=32, most=6)) == 1


def test_pixels_are_normalised_with_the_figures_of_imagenet():
    tile = Image.new("RGB", (4, 4), (255, 0, 51))
    expected = [(value / 255 - mean) / std for value, mean, std in zip((255, 0, 51), MEAN, STD, strict=True)]
    pixels = to_pixels([tile, tile])
    assert pixels.shape == (2, 3, 4, 4)
    torch.testing.assert_close(pixels[1, :, 2, 3], torch.tensor(expected))
