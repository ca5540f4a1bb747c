"""`zoo spectrum MODEL`: how many of their dimensions the projections of a model really use.

The effective rank (Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality) is the exponential
of the entropy of the singular values, taken as shares of their sum: n where all n are equal, 1 where one is everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.cli import output

if TYPE_CHECKING:
    import torch
    from torch import nn
    from zoo.model import Model


def spectrum(model: output.ModelArgument, json: output.JsonOption = False) -> None:
    """Show the effective rank of every projection of a model."""
    with output.status(f"Reading {model}"):
        import zoo

        rows = ranks(zoo.load(model))
    if json:
        output.print_json(rows)
        return
    cells = [
        (row["module"], f"{row['outputs']} x {row['inputs']}", f"{row['effective_rank']:.1f}", f"{row['share']:.0%}")
        for row in rows
    ]
    output.print_table(
        ("module", "shape", "effective rank", "of full"), cells, right=("shape", "effective rank", "of full")
    )


def ranks(model: Model) -> list[dict[str, Any]]:
    """The effective rank of every projection and of the linear layers beside the blocks, as plain data.

    What has no `in_features` is left out: convolutions, and experts that share one tensor.
    """
    from zoo.anatomy.modules import features, resolve

    target = model.anatomy.select("all")
    rows = []
    for path in dict.fromkeys((*target.projections(), *target.layers)):
        module: Any = resolve(model.module, path)
        if (sizes := features(module)) is None:
            continue
        inputs, outputs = sizes
        rank = effective_rank(matrix(module, inputs))
        share = rank / min(inputs, outputs)
        rows.append({"module": path, "inputs": inputs, "outputs": outputs, "effective_rank": rank, "share": share})
    return rows


def matrix(layer: nn.Module, inputs: int) -> torch.Tensor:
    """What a linear layer does to each unit vector, without its bias: its weight, however it is stored."""
    import torch

    like = next(p for p in (*layer.parameters(), *layer.buffers()) if p.is_floating_point())
    with torch.inference_mode():
        unit = torch.eye(inputs, dtype=like.dtype, device=like.device)
        weight: torch.Tensor = layer(unit) - layer(torch.zeros_like(unit))
    return weight


def effective_rank(matrix: torch.Tensor) -> float:
    """exp(H(p)) of the singular values' shares p; 0 of a matrix of zeros."""
    import torch

    values = torch.linalg.svdvals(matrix.double())
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())
