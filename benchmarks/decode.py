"""Measure int4, int8 and NF4 layers beside fp32, torchao and bitsandbytes, one layer and one whole model at a time.

    python benchmarks/decode.py                      the tables, some minutes on two cores
    python benchmarks/decode.py --json out.json      the same numbers as JSON as well
    python benchmarks/decode.py --skip-model         only the single layers
    python benchmarks/decode.py --dtype bfloat16     a whole model's other layers in bf16

Every variant is timed in turn within each repeat, so a busy machine slows all of them alike; ratios are medians. With one
thread processor time counts. "torch int4" is torch's kernel in a layer that does nothing else.
A layer is repeated over enough copies to fall out of the cache, as it does between two tokens of a real model.
"""

import argparse
import copy
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import interleave
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.formats.int8_layers import Int8Embedding, Int8Linear
from zoo_compress.methods.quantize.formats.nf4_layers import NF4Linear
from zoo_compress.methods.quantize.solvers.grid import Grid

SHAPES = {  # (in, out)
    "tiny Llama": [(192, 192), (192, 512), (512, 192), (192, 4096)],
    "SmolLM2-135M": [(576, 576), (576, 1536), (1536, 576), (576, 49152)],
}
MODELS = {  # hidden size, ffn, layers, heads, key-value heads, vocabulary
    "tiny Llama": (192, 512, 8, 6, 2, 4096),
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152),
}
BEYOND_CACHE = 96 << 20  # bytes of fp32 weights to cycle through
GROUP = 64  # inputs of int4 that share a scale
PROMPT = 96  # tokens


def now() -> float:
    """Seconds of processor time; with several threads, which wait for each other, of the clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def read_bandwidth(repeats: int) -> float:
    """Return the bytes per second at which all threads together read memory that is not in the cache."""
    data = torch.ones(64 << 20)  # 256 MiB
    return data.nbytes / interleave({"read": data.sum}, repeats, clock=now)["read"]


class TorchInt4(nn.Module):
    """torch's kernel and the casts it needs."""

    def __init__(self, packed: Int4Linear) -> None:
        super().__init__()
        self.outputs, self.inputs, self.group = packed.zoo_shape
        layout, scales, _ = packed._made()
        self.register_buffer("layout", layout)
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.inputs).to(torch.bfloat16)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.layout, self.group, self.scales)
        return y.to(x.dtype).view(*x.shape[:-1], self.outputs)


def int4(linear: nn.Linear) -> Int4Linear:
    grid = Grid(4, GROUP, symmetric=False)
    codes = grid.nearest(linear.weight.detach().float())
    return Int4Linear.of(codes.codes, *codes.steps).eval()


def torchao_int8(module: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(module, Int8WeightOnlyConfig())
    return module


def bitsandbytes_layer(linear: nn.Linear, *, four_bit: bool) -> nn.Module:
    import bitsandbytes as bnb

    size = (linear.in_features, linear.out_features)
    if four_bit:
        packed = bnb.nn.Linear4bit(*size, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        packed.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", blocksize=64)
    else:
        packed = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=0.0)
        packed.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return packed.to("cpu").eval()


def layer_variants(linear: nn.Linear) -> dict[str, nn.Module]:
    return {
        "fp32": linear,
        "zoo int4": int4(linear),
        "torch int4": TorchInt4(int4(linear)),
        "zoo int8": Int8Linear.from_linear(linear),
        "zoo nf4": NF4Linear.from_linear(linear),
        "torchao int8": torchao_int8(nn.Sequential(copy.deepcopy(linear)))[0],
        "bnb int8": bitsandbytes_layer(linear, four_bit=False),
        "bnb nf4": bitsandbytes_layer(linear, four_bit=True),
    }


def run_layers(layers: list[nn.Module], x_TI: torch.Tensor) -> None:
    for layer in layers:
        layer(x_TI)


def measure_layer(in_features: int, out_features: int, rows: int, repeats: int) -> dict[str, Any]:
    """Time every variant of one layer for this many rows."""
    copies = max(1, min(48, BEYOND_CACHE // (4 * in_features * out_features)))
    stacks = [layer_variants(nn.Linear(in_features, out_features, bias=False)) for _ in range(copies)]
    x_TI = torch.randn(rows, in_features)
    layers = {name: [stack[name] for stack in stacks] for name in stacks[0]}
    calls = {name: lambda stack=stack: run_layers(stack, x_TI) for name, stack in layers.items()}
    seconds = interleave(calls, repeats, clock=now)
    return {
        "in": in_features,
        "out": out_features,
        "rows": rows,
        "fp32_us": seconds["fp32"] / copies * 1e6,
        "ratio": {name: value / seconds["fp32"] for name, value in seconds.items() if name != "fp32"},
    }


def replace_linears(model: nn.Module, build: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, build(child))
    return model


def zoo_int8(model: LlamaForCausalLM) -> LlamaForCausalLM:
    embedding = Int8Embedding.from_embedding(model.model.embed_tokens)
    model.lm_head = nn.Identity()  # the tied head is packed once, with the embedding
    replace_linears(model, Int8Linear.from_linear)
    model.model.embed_tokens, model.lm_head = embedding, embedding.tied_head()
    return model


def body_in(model: LlamaForCausalLM, build: Callable[[nn.Linear], nn.Module]) -> LlamaForCausalLM:
    """Replace all but the head, which is packed by row."""
    head = Int8Linear.from_linear(model.lm_head)
    model.lm_head = nn.Identity()
    replace_linears(model, build)
    model.lm_head = head
    return model


MODEL_VARIANTS: dict[str, Callable[[Any], Any]] = {
    "fp32": lambda model: model,
    "zoo int4": lambda model: body_in(model, int4),
    "torch int4": lambda model: body_in(model, lambda layer: TorchInt4(int4(layer))),
    "zoo int8": zoo_int8,
    "zoo nf4": lambda model: replace_linears(model, NF4Linear.from_linear),
    "torchao int8": torchao_int8,
    "bnb int8": lambda model: replace_linears(model, lambda layer: bitsandbytes_layer(layer, four_bit=False)),
    "bnb nf4": lambda model: replace_linears(model, lambda layer: bitsandbytes_layer(layer, four_bit=True)),
}


def model_variants(config: LlamaConfig, names: list[str], dtype: torch.dtype) -> dict[str, LlamaForCausalLM]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    dtypes = {name: torch.float32 if name == "fp32" else dtype for name in names}
    return {name: MODEL_VARIANTS[name](copy.deepcopy(model).to(dtypes[name])).eval() for name in names}


def weight_bytes(model: nn.Module) -> int:
    """Count the bytes of weights one token reads: every matrix once, and of the embedding a row."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Embedding | Int8Embedding):
            continue
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in tensors:
            parts = [tensor.qdata, tensor.scale] if hasattr(tensor, "qdata") else [tensor]
            parts += [state.absmax] if (state := getattr(tensor, "quant_state", None)) is not None else []
            total += sum(part.numel() * part.element_size() for part in parts)
    return total


def decode(model: LlamaForCausalLM, prompt_BT: torch.Tensor, tokens: int) -> float:
    """Decode greedily and return the median seconds per token after the prompt."""
    out = model(prompt_BT, use_cache=True)
    times = []
    for _ in range(tokens):
        next_B1 = out.logits[:, -1:].argmax(-1)
        start = now()
        out = model(next_B1, cache=out.cache, use_cache=True)
        times.append(now() - start)
    return statistics.median(times)


def measure_model(
    sizes: tuple[int, ...], bandwidth: float, *, variants: list[str], tokens: int, repeats: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Decode greedily with every variant in turn."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sized = dict(zip((*names, "vocab_size"), sizes, strict=True))
    config = LlamaConfig(**sized, tie_word_embeddings=True, max_position_embeddings=512)
    models = model_variants(config, ["fp32", *(name for name in variants if name != "fp32")], dtype)
    prompt_BT = torch.randint(0, config.vocab_size, (1, 8), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    logits = {name: model(prompt_BT).logits for name, model in models.items()}
    for _ in range(repeats):
        for name, model in models.items():
            seconds[name].append(decode(model, prompt_BT, tokens))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    long_BT = torch.randint(0, config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    calls = {name: lambda model=model: model(long_BT, logits_to_keep=1) for name, model in models.items()}
    prefill = interleave(calls, repeats, clock=now)
    return {
        name: {
            "tokens_per_s": 1 / median[name],
            "ratio": median[name] / median["fp32"],
            "prefill_ratio": prefill[name] / prefill["fp32"],
            "weight_mb": weight_bytes(model) / 1e6,
            "bound_tokens_per_s": bandwidth / weight_bytes(model),
            "logit_error": float((logits[name] - logits["fp32"]).norm() / logits["fp32"].norm()),
        }
        for name, model in models.items()
    }


def print_layers(title: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0]["ratio"])
    print(f"\n{title}: time relative to fp32 (below 1 is faster)")
    print(f"{'layer':>14} {'rows':>5} {'fp32 us':>9}  " + " ".join(f"{name:>12}" for name in names))
    for row in rows:
        ratios = " ".join(f"{row['ratio'][name]:12.2f}" for name in names)
        print(f"{row['in']:>7}->{row['out']:<6}{row['rows']:>5} {row['fp32_us']:9.1f}  {ratios}", flush=True)


def print_model(title: str, results: dict[str, Any]) -> None:
    print(f"\n{title}, random weights, greedy decode of one sequence, prompt of {PROMPT} tokens")
    print(
        f"{'':>14} {'tokens/s':>9} {'time/fp32':>9} {'prompt/fp32':>11} {'MB read':>8} {'bound t/s':>9} {'logit error':>11}"
    )
    for name, row in results.items():
        print(
            f"{name:>14} {row['tokens_per_s']:9.1f} {row['ratio']:9.2f} {row['prefill_ratio']:11.2f} {row['weight_mb']:8.1f} "
            f"{row['bound_tokens_per_s']:9.1f} {row['logit_error']:11.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 256], help="tokens per call of a single layer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=12, help="tokens decoded per repeat of a whole model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--variants", nargs="+", choices=MODEL_VARIANTS, default=list(MODEL_VARIANTS), help="of the whole model"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of what is not packed")
    parser.add_argument("--skip-model", action="store_true")
    parser.add_argument("--skip-layers", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # bitsandbytes warns at every call
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    results: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads, "layers": {}, "models": {}}
    results["cpu"] = torch.backends.cpu.get_cpu_capability()
    with torch.inference_mode():
        results["read_gb_s"] = read_bandwidth(args.repeats) / 1e9
        print(f"{results['cpu']}, {args.threads} threads, reads {results['read_gb_s']:.1f} GB/s")
        for title, shapes in SHAPES.items() if not args.skip_layers else ():
            rows = [measure_layer(*shape, rows, args.repeats) for rows in args.rows for shape in shapes]
            results["layers"][title] = rows
            print_layers(title, rows)
        for title in args.models if not args.skip_model else ():
            found = measure_model(
                MODELS[title],
                results["read_gb_s"] * 1e9,
                variants=args.variants,
                tokens=args.tokens,
                repeats=args.repeats,
                dtype=getattr(torch, args.dtype),
            )
            results["models"][title] = found
            print_model(title, found)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
