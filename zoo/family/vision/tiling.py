"""Dynamic tiling: cut an image of any shape into square tiles, with a thumbnail of the whole last (InternVL 1.5, 2404.16821).

The multi-scale cropping is H2OVL-Mississippi's (2410.13611): a second, different grid beside the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Grid = tuple[int, int]  # columns, rows

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, in RGB
STD = (0.229, 0.224, 0.225)


def grids(fewest: int, most: int) -> list[Grid]:
    """Every grid of `fewest` to `most` tiles; those of few tiles first."""
    candidates = [
        (cols, rows) for cols in range(1, most + 1) for rows in range(1, most + 1) if fewest <= cols * rows <= most
    ]
    return sorted(candidates, key=lambda grid: grid[0] * grid[1])


def pick(size: tuple[int, int], candidates: Sequence[Grid], *, side: int) -> Grid:
    """Return the grid whose shape is nearest to that of an image of `size` (width, height).

    Of equally near grids a later one is taken only where the image has more than half its pixels.
    """
    width, height = size
    best, nearest = (1, 1), float("inf")
    for cols, rows in candidates:
        distance = abs(width / height - cols / rows)
        if distance < nearest or (distance == nearest and width * height > 0.5 * side**2 * cols * rows):
            best, nearest = (cols, rows), distance
    return best


def cut(image: Image, grid: Grid, *, side: int, thumbnail: bool) -> list[Image]:
    """Resize an image to a grid and cut it row by row; where there is more than one tile, a thumbnail comes last."""
    from PIL import Image as Images

    cols, rows = grid
    whole = image.resize((side * cols, side * rows), Images.Resampling.BICUBIC)
    tiles = [whole.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for y in range(rows) for x in range(cols)]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((side, side), Images.Resampling.BICUBIC))
    return tiles


def tiles_of(
    image: Image, *, side: int, most: int, fewest: int = 1, thumbnail: bool = True, msac: bool = False
) -> list[Image]:
    """Cut an RGB image into tiles of `side` x `side` pixels.

    Args:
        msac: add the tiles of a second grid of at least three tiles, neither side of which divides the first grid's.
    """
    candidates = grids(fewest, most)
    first = pick(image.size, candidates, side=side)
    tiles = cut(image, first, side=side, thumbnail=thumbnail)
    if not msac:
        return tiles
    other = [(cols, rows) for cols, rows in grids(3, most) if first[0] % cols and first[1] % rows]
    finer = cut(image, pick(image.size, other, side=side), side=side, thumbnail=thumbnail)
    return finer[:-1] + tiles[:-1] + finer[-1:]


def to_pixels(tiles: Sequence[Image]) -> torch.Tensor:
    """Normalise tiles with ImageNet's mean and deviation: (N, 3, side, side) float32."""
    import numpy as np
    import torch

    stacked_NHWC = torch.from_numpy(np.stack([np.asarray(tile, dtype=np.float32) for tile in tiles])) / 255
    return ((stacked_NHWC - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
