"""Which places of a batch are tokens."""

from __future__ import annotations

import torch

from zoo.tensors.batch import without_padding


def test_padding_is_left_out_of_what_lies_as_tokens_do_and_of_nothing_else():
    kept_BT = torch.tensor([[True, True, False], [True, False, False]])
    states_BTD = torch.arange(12.0).reshape(2, 3, 2)
    assert torch.equal(without_padding(states_BTD, kept_BT), states_BTD[kept_BT][None])
    pooled_BD = torch.ones(2, 3)  # a vector for each sentence, as wide as the longest is long
    assert without_padding(pooled_BD, kept_BT) is pooled_BD
