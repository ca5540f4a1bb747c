"""What text-to-image pipelines have in common: parts by name, latents, noising, training items, prompts, anatomy.

A pipeline's module holds its trained components as children: a denoiser `unet` or `transformer`, an autoencoder `vae` or
`decoder`, and text encoders. Its processor is a dict of the rest: tokenizers, the scheduler, image processors.

Legend: B batch, C channels, H rows, W columns, T tokens, L latent channels, h rows and w columns of the latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from zoo.anatomy.detect import detect, plain_layers
from zoo.anatomy.modules import features, output_axis
from zoo.anatomy.parts import Anatomy, Attention, Block, Part, Stack
from zoo.errors import DataError, Refused, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    from zoo.data.dataset import Dataset
    from zoo.tensors.batch import Batch

DENOISERS, AUTOENCODERS = ("unet", "transformer"), ("decoder", "vae")
# share of captions that training replaces by the empty prompt, for guidance (Ho and Salimans, 2207.12598)
DROPPED = 0.1
JITTER = 0.1  # noise on latents while the autoencoder trains, so that it takes what a denoiser leaves
Thing = TypeVar("Thing")


# --- parts ----------------------------------------------------------------------------------------------------------


def part(module: nn.Module, names: Sequence[str]) -> Any:
    """Return the child of that role.

    Raises:
        RequestError: the pipeline has none of them.
    """
    children = dict(module.named_children())
    for name in names:
        if name in children:
            return children[name]
    raise RequestError(f"The pipeline has no {' or '.join(names)}, only {', '.join(children)}.")


def separable(module: nn.Module) -> bool:
    """Whether a pipeline is run part by part here: a unet that reads one text encoder's states, and an autoencoder.

    Others (several text encoders, a transformer, added conditions) run through their own call alone.
    """
    names = [name for name, _ in module.named_children()]
    config = getattr(getattr(module, "unet", None), "config", {})
    plain = not config.get("addition_embed_type") and not config.get("class_embed_type")
    encoders = [name for name in names if name.startswith("text_encoder")]
    return encoders == ["text_encoder"] and "unet" in names and plain and any(name in names for name in AUTOENCODERS)


def require_separable(module: nn.Module) -> None:
    """Refuse a pipeline that is not run part by part, as training does.

    Raises:
        Refused: says what it is made of.
    """
    if not separable(module):
        raise Refused(
            "Only pipelines of a unet, an autoencoder and one text encoder are run part by part, as training, distilling "
            f"and looking at activations do; this one is of {', '.join(name for name, _ in module.named_children())}."
        )


def scale(module: nn.Module) -> tuple[float, float]:
    """Scaling factor and shift of the latents: the denoiser works on (z - shift) * factor."""
    config = part(module, AUTOENCODERS).config
    return float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)


def image_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the images a pipeline makes when it is not told."""
    autoencoder, denoiser = part(module, AUTOENCODERS), part(module, DENOISERS)
    side = denoiser.config.sample_size * 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return autoencoder.config.out_channels, side, side


def latent_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the latent."""
    config = part(module, DENOISERS).config
    return config.in_channels, config.sample_size, config.sample_size


# --- running part by part -------------------------------------------------------------------------------------------


def encode(module: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Make latents (B, L, h, w) as the denoiser takes them, from images of bytes."""
    autoencoder = part(module, AUTOENCODERS)
    dtype = next(p.dtype for p in autoencoder.parameters() if p.is_floating_point())
    found = autoencoder.encode(image_BCHW.to(dtype) / 127.5 - 1)
    latent_BLhw: torch.Tensor = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
    factor, shift = scale(module)
    return (latent_BLhw - shift) * factor


def decode(module: nn.Module, latent_BLhw: torch.Tensor) -> torch.Tensor:
    """Make images (B, C, H, W) in -1..1 from latents."""
    factor, shift = scale(module)
    image_BCHW: torch.Tensor = part(module, AUTOENCODERS).decode(latent_BLhw / factor + shift).sample
    return image_BCHW


def denoise(module: nn.Module, noised_BLhw: torch.Tensor, step_B: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
    """Run text encoder and denoiser: what the scheduler calls the model's output (B, L, h, w)."""
    states_BTD = module.text_encoder(ids_BT)[0]  # type: ignore[operator]
    out_BLhw: torch.Tensor = part(module, DENOISERS)(noised_BLhw, step_B, encoder_hidden_states=states_BTD).sample
    return out_BLhw


def noised(
    scheduler: Any, latent_BLhw: torch.Tensor, noise_BLhw: torch.Tensor, time_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise latents to a time in [0, 1]: the noised latents, the denoiser's time steps (B,), and its target.

    Flow matching (the default): x = (1 - t) z + t eps, target eps - z. With a variance-preserving scheduler (one that
    has `alphas_cumprod`): x = sqrt(a) z + sqrt(1 - a) eps, target eps or, where it predicts velocities, v.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        t = time_B[:, None, None, None]
        return (1 - t) * latent_BLhw + t * noise_BLhw, 1000 * time_B, noise_BLhw - latent_BLhw
    step_B = (time_B * (len(alphas) - 1)).round().long()
    a = alphas.to(latent_BLhw.device)[step_B][:, None, None, None].to(latent_BLhw.dtype)
    noisy = a.sqrt() * latent_BLhw + (1 - a).sqrt() * noise_BLhw
    if scheduler.config.prediction_type == "v_prediction":
        return noisy, step_B, a.sqrt() * noise_BLhw - (1 - a).sqrt() * latent_BLhw
    return noisy, step_B, noise_BLhw


def without_noise(scheduler: Any, noisy: torch.Tensor, out: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
    """Undo `noised` with the denoiser's output in place of the target: the latents it points to."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return noisy - time_B[:, None, None, None] * out
    a = alphas.to(noisy.device)[(time_B * (len(alphas) - 1)).round().long()][:, None, None, None].to(noisy.dtype)
    v = scheduler.config.prediction_type == "v_prediction"
    found: torch.Tensor = (
        a.sqrt() * noisy - (1 - a).sqrt() * out if v else (noisy - (1 - a).sqrt() * out) / a.sqrt().clamp_min(1e-3)
    )
    return found


# --- training items and prompts -------------------------------------------------------------------------------------


class CaptionedImages(Sequence["Batch"]):
    """Records as images of bytes (C, H, W) of the pipeline's size and token ids (T,)."""

    def __init__(self, data: Dataset, ids_NT: torch.Tensor, shape: tuple[int, int, int]) -> None:
        self.images_NCHW = torch.stack(
            [image_bytes(sample.fields.get("image"), shape, sample.where) for sample in data]
        )
        self.ids_NT, self.data = ids_NT, data

    def __len__(self) -> int:
        return len(self.ids_NT)

    def __getitem__(self, index: Any) -> Any:
        return {"image": self.images_NCHW[index], "input_ids": self.ids_NT[index]}

    def where(self, index: int) -> str:
        return self.data[index].where

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def image_bytes(source: Any, shape: tuple[int, int, int], where: str) -> torch.Tensor:
    """Read a record's image as bytes (C, H, W), the middle cut out to the shape's proportions and scaled.

    Raises:
        DataError: the record has no image, or it cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from zoo.data.dataset import Sample, naming_record
    from zoo.images import read_image

    if source is None:
        raise DataError(f"{where}: no field 'image', which a text-to-image model learns from.")
    channels, rows, columns = shape
    with naming_record(Sample({}, where)):
        image = read_image(source).convert("L" if channels == 1 else "RGB")
    if image.size != (columns, rows):
        image = ImageOps.fit(image, (columns, rows), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Tokenise prompts to the length the text encoder reads (B, T); longer ones are cut."""
    encoded = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    return torch.tensor(encoded["input_ids"])


def require_prompt(tokenizer: Any, prompt: Any, *, name: str) -> str:
    """Return the prompt, or refuse what is no text or longer than the text encoder reads.

    Raises:
        RequestError: says how long it is and how long it may be.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"A prompt is one text, not {type(prompt).__name__}.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The prompt holds half a character at position {error.start}, which is not Unicode text."
        ) from None
    if tokenizer is not None:
        count, most = len(tokenizer(prompt, verbose=False)["input_ids"]), tokenizer.model_max_length
        if count > most:
            raise RequestError(f"The prompt is {count:,} tokens long; {name} reads at most {most}. Shorten it.")
    return prompt


def sheet(images: Sequence[Image], *, columns: int = 8, side: int = 0) -> Image:
    """Lay images out in rows on one, enlarged by whole factors to at least `side` pixels each."""
    from PIL import Image as Pillow

    width, height = images[0].size
    factor = max(1, -(-side // width))
    rows = -(-len(images) // columns)
    page = Pillow.new(images[0].mode, (min(columns, len(images)) * width * factor, rows * height * factor))
    for number, image in enumerate(images):
        place = (number % columns * width * factor, number // columns * height * factor)
        page.paste(image.resize((width * factor, height * factor), Pillow.Resampling.NEAREST), place)
    return page


# --- anatomy --------------------------------------------------------------------------------------------------------


def pipeline_anatomy(module: nn.Module) -> Anatomy:
    """Find the stacks of every component, under its name.

    A UNet has one for each list of transformer blocks: "unet.down.0" (where a stage has several, "unet.down.0.0" and
    "unet.down.0.1"), "unet.mid", "unet.up.0". Its convolutions and other linear layers are regions of the same names,
    "unet.in" and "unet.out"; those of the other components are regions of their names.
    """
    stacks: dict[str, Stack] = {}
    layers: dict[str, tuple[str, ...]] = {}
    for name, child in module.named_children():
        if hasattr(child, "down_blocks") and hasattr(child, "up_blocks") and name not in AUTOENCODERS:
            mine, regions = _unet(child)
        elif name in AUTOENCODERS:
            mine, regions = {}, {"": plain_layers(child, "")}
        else:
            mine, regions = _others(child)
        stacks |= {_join(name, key): replace(_below(stack, name), name=_join(name, key)) for key, stack in mine.items()}
        layers |= {_join(name, key): _below(paths, name) for key, paths in regions.items() if paths}
    return Anatomy(stacks=stacks, layers=layers)


def _others(child: nn.Module) -> tuple[dict[str, Stack], dict[str, tuple[str, ...]]]:
    """Stacks and regions of a text encoder or a transformer denoiser, its main stack under no name of its own."""
    found = detect(child)
    main = found.stack().name if found.stacks else ""
    stacks = {"" if key == main else key: stack for key, stack in found.stacks.items()}
    return stacks, {"": plain_layers(child, "", skip=[stack.path for stack in found.stacks.values()])}


def _unet(unet: nn.Module) -> tuple[dict[str, Stack], dict[str, tuple[str, ...]]]:
    """Stacks and regions of a UNet by stage: "down.0", "mid", "up.0", "in", "out"."""
    stages = {f"down.{i}": f"down_blocks.{i}" for i in range(len(unet.down_blocks))}  # type: ignore[arg-type]
    stages |= {"mid": "mid_block"} | {f"up.{i}": f"up_blocks.{i}" for i in range(len(unet.up_blocks))}  # type: ignore[arg-type]
    stacks: dict[str, Stack] = {}
    layers = {"in": plain_layers(unet, "", skip=["down_blocks", "mid_block", "up_blocks", "conv_out"])}
    for name, path in stages.items():
        stage = unet.get_submodule(path)
        lists = [f"{path}.{inner}" for inner, _ in stage.named_modules() if inner.endswith("transformer_blocks")]
        for number, place in enumerate(lists):
            key = name if len(lists) == 1 else f"{name}.{number}"
            stacks[key] = Stack(key, place, _blocks(unet, place))  # no width: cross-attention reads the residual too
        layers[name] = plain_layers(unet, path, skip=lists)
    return stacks, layers | {"out": plain_layers(unet, "conv_out")}


def _blocks(unet: nn.Module, path: str) -> tuple[Block, ...]:
    parent, _, name = path.rpartition(".")
    around = unet.get_submodule(parent)
    found = next((stack for stack in detect(around).stacks.values() if stack.path == name), None)
    blocks = found.blocks if found else tuple(Block(f"{name}.{i}") for i in range(len(unet.get_submodule(path))))  # type: ignore[arg-type]
    return tuple(replace(_below(block, parent), cross=_cross(unet, _join(parent, block.path))) for block in blocks)


def _cross(unet: nn.Module, path: str) -> Attention | None:
    """Read `attn2`, the attention to the text, where its projections have shapes that agree."""
    attention = getattr(unet.get_submodule(path), "attn2", None)
    if attention is None:
        return None
    names = ("to_q", "to_k", "to_v", "to_out.0")
    found = [attention.get_submodule(name) for name in names]
    sizes = [features(one) for one in found]
    head_dim = getattr(attention, "head_dim", None) or (sizes[0] or (0, 0))[1] // getattr(attention, "heads", 1)
    if not all(sizes) or not head_dim:
        return None
    (_, q), (_, k), (_, v), (o, _) = (size for size in sizes if size)
    if q != o or k != v or q % head_dim or k % head_dim:
        return None
    at = f"{path}.attn2"
    axes = [*(output_axis(one) for one in found[:3]), 1 - output_axis(found[3])]
    to_q, to_k, to_v, to_out = (
        Part(f"{at}.{name}", axis, size // head_dim, head_dim, stride=head_dim)
        for name, axis, size in zip(names, axes, (q, k, v, o), strict=True)
    )
    return Attention(at, to_q, to_k, to_v, to_out, q // head_dim, k // head_dim, head_dim)


_PATHS = ("path", "norms", "embeddings", "head", "readers", "writers", "router")


def _below(thing: Thing, prefix: str) -> Thing:
    """Copy an anatomy, or a part of one, with `prefix` before every path in it."""
    found: Any = thing
    if isinstance(thing, str):
        found = _join(prefix, thing)
    elif isinstance(thing, tuple):
        found = tuple(_below(one, prefix) for one in thing)
    elif is_dataclass(thing) and not isinstance(thing, type):
        values = {one.name: getattr(thing, one.name) for one in fields(thing)}
        found = replace(
            found,
            **{
                name: _below(value, prefix)
                for name, value in values.items()
                if name in _PATHS or is_dataclass(value) or isinstance(value, tuple)
            },
        )
    return cast(Thing, found)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")
