"""From the vectors of a sentence's tokens to one vector, as sentence-transformers' Pooling computes it.

Legend: B sentences, T tokens, D width of a token's vector; padding may stand on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Pool = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def pooled(
    hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, modes: Sequence[str], *, read_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Pool tokens in each way of `modes`, one vector after the other: (B, D * modes).

    Args:
        mask_BT: 1 where a token counts.
        read_BT: 1 where a token was read, where a prompt was that does not count; it moves the weights of "weightedmean".
    """
    import torch

    read_BT = mask_BT if read_BT is None else read_BT
    return torch.cat([POOLS[mode](hidden_BTD, mask_BT, read_BT) for mode in modes], dim=-1)


def _first(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, read_BT: torch.Tensor) -> torch.Tensor:
    return _at(hidden_BTD, mask_BT.int().argmax(1))


def _last(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, read_BT: torch.Tensor) -> torch.Tensor:
    return _at(hidden_BTD, mask_BT.shape[1] - 1 - mask_BT.flip(1).int().argmax(1))


def _largest(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, read_BT: torch.Tensor) -> torch.Tensor:
    return hidden_BTD.masked_fill(mask_BT[..., None] == 0, float("-inf")).amax(1)


def _mean(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, read_BT: torch.Tensor) -> torch.Tensor:
    total_BD, count_B1 = _sum(hidden_BTD, mask_BT)
    return (total_BD / count_B1).to(hidden_BTD.dtype)


def _mean_by_root(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, read_BT: torch.Tensor) -> torch.Tensor:
    total_BD, count_B1 = _sum(hidden_BTD, mask_BT)
    return (total_BD / count_B1.sqrt()).to(hidden_BTD.dtype)


def _weighted_mean(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor, read_BT: torch.Tensor) -> torch.Tensor:
    """The n-th token that was read weighs n (Muennighoff 2022, 2202.08904, section 4)."""
    return _mean(hidden_BTD.float(), mask_BT * read_BT.cumsum(1), read_BT).to(hidden_BTD.dtype)


def _sum(hidden_BTD: torch.Tensor, weight_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the tokens with their weights in float32, and the weights."""
    total_BD = (hidden_BTD * weight_BT[..., None].to(hidden_BTD.dtype)).float().sum(1)
    return total_BD, weight_BT.float().sum(1, keepdim=True).clamp_min(1e-9)


def _at(hidden_BTD: torch.Tensor, place_B: torch.Tensor) -> torch.Tensor:
    return hidden_BTD.gather(1, place_B[:, None, None].expand(-1, 1, hidden_BTD.shape[-1]))[:, 0]


# In the order in which configs that name them one by one put their vectors.
POOLS: dict[str, Pool] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
