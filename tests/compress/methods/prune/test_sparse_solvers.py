"""Wanda and SparseGPT as functions: equal to the formulas written out, in the order the papers promise, exact in number."""

from __future__ import annotations

import pytest
import torch
from synthetic_layer import synthetic_layer
from torch import Tensor
from zoo_compress.methods.prune.magnitude import magnitude_pruned
from zoo_compress.methods.prune.sparsegpt import inverse_factor, sparsegpt_pruned
from zoo_compress.methods.prune.wanda import wanda_pruned

PATTERNS = [None, (2, 4), (4, 8), (1, 3)]


def pruned(method: str, weight: Tensor, gram: Tensor, sparsity: float, groups: tuple[int, int] | None) -> Tensor:
    if method == "magnitude":
        return magnitude_pruned(weight, sparsity, groups)
    if method == "wanda":
        return wanda_pruned(weight, gram.diagonal(), sparsity, groups)
    factor = inverse_factor(gram)
    assert factor is not None
    return sparsegpt_pruned(weight, factor, sparsity, groups)


def layer(seed: int = 0, *, out: int = 24, inputs: int = 48) -> tuple[Tensor, Tensor]:
    """A small weight and gram; 48 inputs are no multiple of 32."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(96, inputs, generator=draw, dtype=torch.float64) @ torch.randn(
        inputs, inputs, generator=draw, dtype=torch.float64
    )
    return torch.randn(out, inputs, generator=draw, dtype=torch.float64), mixed.T @ mixed


# --- the formulas, written out ---------------------------------------------------------------------------------------


def wanda_reference(weight: Tensor, gram: Tensor, sparsity: float, groups: tuple[int, int] | None) -> Tensor:
    """Row by row, entry by entry."""
    result = weight.clone()
    inputs = weight.shape[1]
    size, gone = (inputs, round(sparsity * inputs)) if groups is None else (groups[1], groups[1] - groups[0])
    for row in result:
        for start in range(0, inputs, size):
            score = {i: abs(float(row[i])) * float(gram[i, i]) ** 0.5 for i in range(start, start + size)}
            for i in sorted(score, key=score.__getitem__)[:gone]:
                row[i] = 0
    return result


def sparsegpt_reference(
    weight: Tensor, gram: Tensor, sparsity: float, groups: tuple[int, int] | None, *, columns: int
) -> Tensor:
    """Optimal brain surgeon with the inverse of what is left of H, in place of its Cholesky factor.

    U_jj^2 is the first entry of the inverse of H[j:, j:], and U_j,j: / U_jj its first row over its first entry.
    """
    w, out, inputs = weight.clone(), *weight.shape
    h = gram + 0.01 * gram.diagonal().mean() * torch.eye(inputs, dtype=gram.dtype)
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(inputs)]
    drop = torch.zeros(out, inputs, dtype=torch.bool)
    for j in range(inputs):
        if groups is None and j % columns == 0:
            stop = min(j + columns, inputs)
            cost = torch.tensor([float(inverses[i][0, 0]) for i in range(j, stop)], dtype=w.dtype)
            score = (w[:, j:stop] ** 2 / cost).flatten()
            gone = round(sparsity * out * stop) - round(sparsity * out * j)
            chosen = torch.zeros_like(score, dtype=torch.bool)
            chosen[score.argsort()[:gone]] = True
            drop[:, j:stop] = chosen.view(out, -1)
        if groups and j % groups[1] == 0:
            cost = torch.tensor([float(inverses[i][0, 0]) for i in range(j, j + groups[1])], dtype=w.dtype)
            score = w[:, j : j + groups[1]] ** 2 / cost
            for row in range(out):
                drop[row, j + score[row].argsort()[: groups[1] - groups[0]]] = True
        error = torch.where(drop[:, j], w[:, j], 0.0)
        w[:, j:] -= error[:, None] * inverses[j][0] / inverses[j][0, 0]
        w[drop[:, j], j] = 0
    return w


@pytest.mark.quick
@pytest.mark.parametrize("groups", PATTERNS)
def test_wanda_equals_its_formula(groups: tuple[int, int] | None) -> None:
    weight, gram = layer()
    assert torch.equal(pruned("wanda", weight, gram, 0.4, groups), wanda_reference(weight, gram, 0.4, groups))


@pytest.mark.parametrize("groups", PATTERNS)
@pytest.mark.parametrize("columns", [16, 32, 128])
def test_sparsegpt_equals_optimal_brain_surgeon(groups: tuple[int, int] | None, columns: int) -> None:
    """Tolerance: inverses of a gram of condition 1e4 in float64."""
    weight, gram = layer()
    factor = inverse_factor(gram)
    assert factor is not None and factor.damping == 0.01
    result = sparsegpt_pruned(weight, factor, 0.6, groups, columns=columns)
    torch.testing.assert_close(
        result, sparsegpt_reference(weight, gram, 0.6, groups, columns=columns), rtol=1e-7, atol=1e-9
    )


# --- how good they are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("groups", "ranges"),
    [
        (None, {"magnitude": (0.23, 0.31), "wanda": (0.14, 0.2), "sparsegpt": (0.1, 0.14)}),
        ((2, 4), {"magnitude": (0.31, 0.41), "wanda": (0.2, 0.27), "sparsegpt": (0.13, 0.17)}),
    ],
)
def test_each_method_beats_the_plainer_one(
    seed: int, groups: tuple[int, int] | None, ranges: dict[str, tuple[float, float]]
) -> None:
    """At half the weights, on inputs that calibration has not seen; the ranges are those measured elsewhere, a little wider."""
    made = synthetic_layer(seed)
    errors = {method: made.error(pruned(method, made.weight, made.gram, 0.5, groups)) for method in ranges}
    assert errors["magnitude"] > errors["wanda"] > errors["sparsegpt"]
    for method, (low, high) in ranges.items():
        assert low < errors[method] < high, (method, errors)


# --- what holds for every matrix -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77])
def test_the_number_of_zeros_is_exact(method: str, sparsity: float, dtype: torch.dtype) -> None:
    weight, gram = layer(inputs=300)
    zeros = pruned(method, weight.to(dtype), gram, sparsity, None) == 0
    if method == "wanda":
        assert (zeros.sum(1) == round(sparsity * 300)).all()
    assert int(zeros.sum()) == round(sparsity * 300) * 24


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("groups", [(2, 4), (4, 8), (1, 3)])
def test_every_group_keeps_n_of_m(method: str, groups: tuple[int, int]) -> None:
    weight, gram = layer(inputs=288)
    left = (pruned(method, weight, gram, 0.5, groups) != 0).view(24, -1, groups[1]).sum(-1)
    assert (left == groups[0]).all()


@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_wanda_with_equal_norms_is_magnitude_in_each_row(groups: tuple[int, int] | None) -> None:
    weight, _ = layer()
    by_row = torch.cat([magnitude_pruned(row[None], 0.4, groups) for row in weight])
    assert torch.equal(wanda_pruned(weight, torch.full((48,), 3.0), 0.4, groups), by_row)


@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_sparsegpt_with_uncorrelated_inputs_is_magnitude_in_blocks(groups: tuple[int, int] | None) -> None:
    weight, _ = layer(inputs=300)
    by_block = torch.cat([magnitude_pruned(block, 0.4, groups) for block in weight.split(128, dim=1)], dim=1)
    result = pruned("sparsegpt", weight, 7.0 * torch.eye(300, dtype=torch.float64), 0.4, groups)
    assert torch.equal(result, by_block)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_nothing_asked_changes_nothing(method: str) -> None:
    weight, gram = layer()
    assert torch.equal(pruned(method, weight, gram, 0.0, None), weight)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_zeros_that_were_there_stay_and_count(method: str, groups: tuple[int, int] | None) -> None:
    """Half the zeros asked for lie in the first columns already, which one block alone would not take."""
    weight, gram = layer(inputs=256)
    weight[:, :64] = 0
    weight[:, 128] = 0
    result = pruned(method, weight, gram, 0.5, groups)
    assert (result[:, :64] == 0).all() and (result[:, 128] == 0).all()
    if groups:
        assert ((result != 0).view(24, -1, 4).sum(-1) <= 2).all()
    else:
        assert int((result == 0).sum()) == result.numel() // 2


@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_the_weights_of_dead_inputs_go_first(groups: tuple[int, int] | None) -> None:
    weight, gram = layer()
    dead = [3, 17]
    gram[dead], gram[:, dead] = 0, 0
    weight[:, dead] *= 100
    for method in ("wanda", "sparsegpt"):
        result = pruned(method, weight, gram, 0.5, groups)
        assert (result[:, dead] == 0).all() and int((result == 0).sum()) == result.numel() // 2


def test_damping_rises_where_a_gram_has_no_factor() -> None:
    """Eigenvalues a little below zero, as rounding makes them: .01 of the mean does not lift this one."""
    _, gram = layer()
    broken = gram - 0.05 * gram.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    factor = inverse_factor(broken)
    assert factor is not None and factor.damping == 0.1
    assert inverse_factor(-gram) is None
    assert inverse_factor(torch.zeros(48, 48)) is None


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_same_bytes_every_time(method: str) -> None:
    made = synthetic_layer(7, tokens=512)
    weight = made.weight.float()
    before = weight.clone()
    first, second = (pruned(method, weight, made.gram, 0.5, None) for _ in range(2))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert torch.equal(weight, before) and first.dtype == torch.float32
