"""minGRU, a gated recurrent unit that trains in parallel, as a small causal language model.

Paper: Were RNNs All We Needed? (Feng et al. 2024, 2410.01201), section 3.1 and its appendix on the log-space form.
The gate and the candidate follow from the input alone, so the recurrence is linear in the state and all of its steps
can be summed at once; in log space, which keeps a long product of small numbers finite. The block around it (norms,
output projection, gated feed-forward layer) is this package's own. Code written here; licence Apache-2.0.

Legend: B batch, T tokens, D width, F feed-forward channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    """The values of `[model.config]`; the names are those that zoo knows sizes by."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    max_position_embeddings: int  # tokens of one pass; a state can be carried on for ever
    model_type: str = "mingru"


@dataclass
class Output:
    """What a pass returns: logits (B, T, V), or the hidden states (B, T, D) of the body, and the state of every block."""

    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    cache: list[torch.Tensor] | None = None  # log h (B, D) of each block after the last token


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t) with z_t = sigmoid(W_z x_t), for all t at once (section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.candidate = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: torch.Tensor, log_h_BD: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        gate_BTD, candidate_BTD = self.gate(x_BTD).float(), self.candidate(x_BTD).float()
        log_keep_BTD = -F.softplus(gate_BTD)  # log(1 - z)
        log_new_BTD = -F.softplus(-gate_BTD) + log_g(candidate_BTD)  # log z g
        log_states_BTD = scan(log_keep_BTD, log_new_BTD, log_h_BD)
        return self.out(log_states_BTD.exp().to(x_BTD.dtype)), log_states_BTD[:, -1]


def log_g(x: torch.Tensor) -> torch.Tensor:
    """log of g(x), which is x + 0.5 where x is positive and sigmoid(x) elsewhere: continuous and above zero."""
    return torch.where(x >= 0, (x.clamp_min(0) + 0.5).log(), -F.softplus(-x))


def scan(log_a_BTD: torch.Tensor, log_b_BTD: torch.Tensor, log_h_BD: torch.Tensor | None) -> torch.Tensor:
    """log h_t of h_t = a_t h_{t-1} + b_t, from log h before the first token; None: nothing came before, h is 0.

    With A_t the product of all a up to t, h_t = A_t (h_0 + sum of b_i / A_i): a cumulative sum and a cumulative logsumexp.
    """
    if log_h_BD is not None:  # the state is one more b, in front, that decays from the first token on
        log_b_BTD = torch.cat([log_h_BD[:, None], log_b_BTD], dim=1)
        log_a_BTD = F.pad(log_a_BTD, (0, 0, 1, 0))
    sum_BTD = log_a_BTD.cumsum(dim=1)
    log_states_BTD = sum_BTD + (log_b_BTD - sum_BTD).logcumsumexp(dim=1)
    return log_states_BTD if log_h_BD is None else log_states_BTD[:, 1:]


class GatedFFN(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, 2002.05202)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, channels, bias=False)
        self.up_proj = nn.Linear(width, channels, bias=False)
        self.down_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y_BTD: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return y_BTD


class Block(nn.Module):
    """The recurrence, then the feed-forward layer, each on the normalised residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.hidden_size, eps=1e-5)
        self.mixer = MinGRU(config.hidden_size)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=1e-5)
        self.ffn = GatedFFN(config.hidden_size, config.intermediate_size)

    def forward(self, x_BTD: torch.Tensor, log_h_BD: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        mixed_BTD, log_h_BD = self.mixer(self.mixer_norm(x_BTD), log_h_BD)
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.ffn(self.ffn_norm(x_BTD)), log_h_BD


class MinGRULM(nn.Module):
    """Token table, blocks, norm, and a head that is the token table again."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-5)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def body(
        self, input_ids: torch.Tensor, cache: Sequence[torch.Tensor] | None = None, use_cache: bool = False
    ) -> Output:
        """Run tokens (B, T), after those that left the states `cache`, up to the head."""
        x_BTD, states = self.embed_tokens(input_ids), []
        for index, block in enumerate(self.blocks):
            x_BTD, state = block(x_BTD, cache[index] if cache else None)
            states.append(state)
        return Output(last_hidden_state=self.norm(x_BTD), cache=states if use_cache else None)

    def forward(
        self,
        input_ids: torch.Tensor,
        cache: Sequence[torch.Tensor] | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Output:
        """Return logits, of all positions or of the last `logits_to_keep`."""
        found = self.body(input_ids, cache, use_cache)
        assert found.last_hidden_state is not None
        return Output(logits=self.lm_head(found.last_hidden_state[:, -logits_to_keep:]), cache=found.cache)
