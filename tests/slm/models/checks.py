"""What every architecture of our own must hold, as functions: `from slm.models import checks`, build a tiny one with `tiny`, call these.

A model here is the transformers-style module. What is equal by its mathematics is compared in float64, where only
RMSNorm, rotary tables and an eager softmax (float32 in transformers' parts) leave a rounding of about 1e-7.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import stages
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from zoo_slm.language import TransformersText

import zoo
from zoo.catalog import ModelSpec
from zoo.model.model import Model

NEAR = 1e-5  # of float64 logits of size about 1, see above


# --- making -----------------------------------------------------------------------------------------------------------


def tiny(kind: type[nn.Module], config: Any, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Build `kind(config)` on CPU in eval mode, always with the same weights.

    Gains and biases are random too, since their defaults (ones and zeros) would hide a forgotten one, and matrices have
    a scale that lets attention matter.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
                else:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return module.to(dtype)


def tokens(model: Any, *, batch: int = 2, length: int = 12, seed: int = 0) -> Tensor:
    """Random ids (batch, length) that avoid the first three, which are often special; byte-level (batch, length, slots)."""
    generator = torch.Generator().manual_seed(seed)
    slots = getattr(model.config, "byte_context_window", 0)
    if slots:
        return torch.randint(0, 256, (batch, length, slots), generator=generator)
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=generator)


def logits(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, **inputs).logits
    return found


def params(config: Mapping[str, Any], task: str = "causal-lm") -> int:
    """The number of distinct parameters of the model of a config, built by our text family; nothing is materialised."""
    with torch.device("meta"):
        module = TransformersText().build(dict(config), task)
    return sum(parameter.numel() for parameter in module.parameters())  # a shared one comes once


def as_model(module: Any, *, task: str = "causal-lm") -> Model:
    """The module, in float32 and copied, as a `zoo` model without a tokenizer."""
    config = json.loads(json.dumps(module.config.to_dict()))
    spec = ModelSpec("tiny", "transformers", "text", task, plugin="zoo_slm", config=config)
    return Model(copy.deepcopy(module).float(), TransformersText(), spec, origin="random")


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a directory as the hub has it: config.json and one safetensors file with exactly these names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder


# --- literal formulas ------------------------------------------------------------------------------------------------


def rms_norm(x_TD: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * gain."""
    return torch.stack([x_D / (sum(x_D**2) / len(x_D) + eps) ** 0.5 for x_D in x_TD]) * gain_D


def rotary_frequencies(size: int, theta: float = 10000.0) -> Tensor:
    """theta ** (-2i / size) for i below size / 2 (RoFormer, 2104.09864, equation 15)."""
    return torch.tensor([theta ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)


def rotated(x_TK: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate the pair (i, i + K / 2) of the vector at place t by the angle t * frequencies[i]."""
    half, out = x_TK.shape[1] // 2, x_TK.clone()
    for t in range(len(x_TK)):
        cos, sin = torch.cos(t * frequencies), torch.sin(t * frequencies)
        out[t, :half] = x_TK[t, :half] * cos - x_TK[t, half:] * sin
        out[t, half:] = x_TK[t, half:] * cos + x_TK[t, :half] * sin
    return out


def llama_attention(
    x_TD: Tensor, tensors: Mapping[str, Tensor], place: str, *, heads: int, kv_heads: int, frequencies: Tensor
) -> Tensor:
    """Causal attention of a Llama layer, head by head, from the weights at `place`q_proj and so on."""
    q, k, v = (x_TD @ tensors[f"{place}{name}_proj.weight"].T for name in "qkv")
    size, out = q.shape[1] // heads, []
    for head in range(heads):
        mine, group = (slice(n * size, (n + 1) * size) for n in (head, head // (heads // kv_heads)))
        q_TK, k_TK = rotated(q[:, mine], frequencies), rotated(k[:, group], frequencies)
        rows = []
        for t in range(len(x_TD)):
            shares = torch.softmax(k_TK[: t + 1] @ q_TK[t] / size**0.5, 0)
            rows.append(shares @ v[: t + 1, group])
        out.append(torch.stack(rows))
    return torch.cat(out, 1) @ tensors[f"{place}o_proj.weight"].T


# --- checks -----------------------------------------------------------------------------------------------------------


def cached_equals_full(model: Any, *, length: int = 12, tolerance: float = NEAR) -> None:
    """Reading piece by piece with a cache gives what one pass gives, and `logits_to_keep` keeps the last."""
    ids = tokens(model, length=length)
    whole = logits(model, ids)
    near(logits(model, ids, logits_to_keep=2), whole[:, -2:], tolerance)
    cache, pieces, start = None, [], 0
    for size in (length // 2, 1, 1, length - length // 2 - 2):  # a prompt, two single tokens, a longer piece
        with torch.no_grad():
            found = model(input_ids=ids[:, start : start + size], cache=cache, use_cache=True)
        cache, start = found.cache, start + size
        pieces.append(found.logits)
    near(torch.cat(pieces, dim=1), whole, tolerance)


def generates_greedily(model: Any, *, new: int = 4) -> None:
    """`generate` (with its cache) picks what repeated whole passes would pick."""
    ids = tokens(model, length=6)
    expected = ids
    for _ in range(new):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(_greedy(model, ids, new), expected)


def padded_equals_alone(model: Any, *, tolerance: float = NEAR, causal: bool = True) -> None:
    """Rows of different lengths, padded on the left, give what each gives alone; so does `generate`."""
    rows = [tokens(model, batch=1, length=length, seed=length) for length in (9, 4, 1)]
    longest = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.cat([row.new_zeros(1, longest - row.shape[1], *row.shape[2:]), row], dim=1) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - row.shape[1] for row in rows]).long()
    places = (mask.cumsum(-1) - 1).clamp_min(0)  # as `generate` counts them
    together = logits(model, ids, attention_mask=mask, position_ids=places)
    assert together.isfinite().all()
    for row, found in zip(rows, together, strict=True):
        near(found[-row.shape[1] :], logits(model, row)[0], tolerance)
    if causal:
        written = _greedy(model, ids, 4, attention_mask=mask)[:, longest:]
        for row, found in zip(rows, written, strict=True):
            assert torch.equal(found, _greedy(model, row, 4)[0, row.shape[1] :])


def eager_equals_sdpa(model: Any, *, tolerance: float = NEAR) -> None:
    """Both attention implementations give the same, with padding too.

    In float32: transformers' eager softmax is, and a float64 mask overflows in it.
    """
    single = copy.deepcopy(model).float()
    ids, mask = tokens(model), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    found = []
    for name in ("eager", "sdpa"):
        single.set_attn_implementation(name)
        found.append(logits(single, ids, attention_mask=mask))
    near(found[0][0, 5:], found[1][0, 5:], tolerance)
    near(found[0][1], found[1][1], tolerance)


def gradients_reach_all(model: Any, *, but: Collection[str] = ()) -> None:
    """The loss that the model computes from labels moves every parameter, `but` those that are never read."""
    gradients = _gradients(model)
    for name in but:
        assert gradients.pop(name) is None, name
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def checkpointing_keeps_gradients(model: Any) -> None:
    """Gradient checkpointing is on in some layer, and changes no gradient."""
    before = _gradients(model)
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    assert any(getattr(part, "gradient_checkpointing", False) for part in checkpointed.modules())
    after = _gradients(checkpointed)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(
            after[name], gradient, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def bf16_is_near(model: Any, *, share: float = 0.05) -> None:
    """In bfloat16 (eight bits of precision: 0.4 % an operation) the logits stay within `share` of their size."""
    ids = tokens(model)
    exact, rough = logits(model, ids), logits(copy.deepcopy(model).bfloat16(), ids)
    assert rough.dtype == torch.bfloat16
    assert (rough.double() - exact.double()).norm() < share * exact.double().norm()


def roundtrip(model: Any, folder: Path, *, task: str = "causal-lm") -> Model:
    """Saved by zoo and loaded again it has the same tensors, the same sharing and bit-identical logits; returns what was loaded."""
    original = as_model(model, task=task)
    original.round()  # which also aligns, as loading does
    ids = tokens(model)
    original.save(folder)
    loaded = zoo.load(folder)
    assert type(loaded.module) is type(model)
    assert loaded.aliases() == original.aliases()
    before, after = original.tensors(), loaded.tensors()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert torch.equal(logits(loaded.module, ids), logits(original.module, ids))
    return loaded


def compressed(module: Any, folder: Path, stage: str, *, task: str = "causal-lm", **options: Any) -> Model:
    """Apply a stage to the module, save, load again: the logits are bit-identical. Returns the model; the module stays as it was.

    The vocabulary has to be that of the twins, whose words the calibration data is made of.
    """
    model = as_model(module, task=task)
    model.processor = stages.tokenizer()
    stages.apply(model, stage, options, stages.context())
    ids = tokens(module)
    model.save(folder)
    assert torch.equal(logits(zoo.load(folder).module, ids), logits(model.module, ids))
    return model


def near(found: Tensor, expected: Tensor, tolerance: float = NEAR) -> None:
    """Equal up to a part of the size that the expected values have as a whole."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    worst = float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30))
    assert worst <= tolerance, f"differs by {worst:.3g} of the largest value, more than {tolerance:.3g}"


# The checks that take a causal model and nothing else.
ALL = (
    cached_equals_full,
    generates_greedily,
    padded_equals_alone,
    eager_equals_sdpa,
    gradients_reach_all,
    checkpointing_keeps_gradients,
    bf16_is_near,
)


def _gradients(model: Any) -> dict[str, Tensor | None]:
    """The gradients of the loss of a copy in training mode."""
    learner = copy.deepcopy(model).train()
    ids = tokens(model, length=16)
    learner(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in learner.named_parameters()}


def _greedy(model: Any, ids: Tensor, new: int, attention_mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    with torch.no_grad():
        found: Tensor = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return found
