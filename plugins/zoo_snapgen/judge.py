"""The judge: a small classifier of handwritten digits, which says what a generated image shows.

It ships as judge.safetensors (a quarter of a MB), trained in half a minute on the training split of "digits-captions" alone:

    python -m zoo_snapgen.judge plugins/zoo_snapgen/judge.safetensors

Its accuracy on the held-out split is measured and reported wherever it judges.

Legend: N images, F features, D digits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo.family.diffusion.captions import image_bytes

SIZE, FEATURES = 32, 48
WEIGHTS = Path(__file__).with_name("judge.safetensors")


class Judge(nn.Module):
    """Three convolutions, each after halving the resolution, and the features that Fréchet distances compare."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, pixels_N1HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, F) and logits (N, D) of images in 0..1."""
        features_NF = self.layers(pixels_N1HW)
        return features_NF, self.head(features_NF)


@cache
def judge() -> Judge:
    """Load the judge that ships."""
    from safetensors.torch import load_file

    made = Judge()
    made.load_state_dict(load_file(WEIGHTS))
    return made.eval()


@torch.no_grad()
def look(images: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, F) and digits (N,) of images of any size."""
    features, digits = [], []
    for start in range(0, len(images), 256):
        features_NF, logits_ND = judge()(pixels(images[start : start + 256]))
        features.append(features_NF)
        digits.append(logits_ND.argmax(-1))
    return torch.cat(features), torch.cat(digits)


def pixels(images: Sequence[Any]) -> torch.Tensor:
    """Images as grey (N, 1, 32, 32) in 0..1."""
    return torch.stack([image_bytes(image, (1, SIZE, SIZE), "image") for image in images]).float() / 255


def train(images: Sequence[Any], digits: Sequence[int], *, steps: int = 1500, batch: int = 64, seed: int = 0) -> Judge:
    """Train a judge: Adam with a linearly falling rate, images moved by up to two pixels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Judge()
    all_N1HW, labels_N = pixels(images), torch.tensor(digits)
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        picks = torch.randint(0, len(labels_N), (batch,), generator=generator)
        down, right = (int(n) for n in torch.randint(-2, 3, (2,), generator=generator))
        _, logits_ND = made(torch.roll(all_N1HW[picks], (down, right), dims=(2, 3)))
        F.cross_entropy(logits_ND, labels_N[picks], label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return made.eval()


def main(place: str) -> None:
    """Train on the training split, write the weights, and print the accuracy on the held-out split."""
    from safetensors.torch import save_file

    from zoo_snapgen.data import DIGITS, DigitsCaptions

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    splits = {name: list(DigitsCaptions().records(name)) for name in DigitsCaptions.splits}
    images = {name: [sample.fields["image"] for sample in found] for name, found in splits.items()}
    digits = {name: [DIGITS.index(sample.fields["digit"]) for sample in found] for name, found in splits.items()}
    made = train(images["train"], digits["train"])
    save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, place)
    with torch.no_grad():
        for name in splits:
            right = made(pixels(images[name]))[1].argmax(-1) == torch.tensor(digits[name])
            print(f"{name}: {int(right.sum())} of {len(right)} right ({100 * float(right.float().mean()):.2f}%)")


if __name__ == "__main__":
    main(sys.argv[1])
