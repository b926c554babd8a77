"""Ways to vary training pictures; what a picture goes through, its mask goes through with it.

Shapes: inputs (B, C, H, W); targets (B,) classes of pictures, which stay, or (B, H, W) of pixels.
Each way is called as way(inputs, targets, generator) and returns both. What comes in from outside
a picture is 0, its mean; in a mask it is IGNORE, which counts for nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from harness.labels import IGNORE

Pair = tuple[Tensor, Tensor]
Way = Callable[[Tensor, Tensor, torch.Generator], Pair]


def vary(names: str | Sequence[str], inputs: Tensor, targets: Tensor,
         generator: torch.Generator) -> Pair:
    """A batch, varied in the ways of these names, one after the other."""
    for name in [names] if isinstance(names, str) else names:
        inputs, targets = AUGMENTATIONS[name](inputs, targets, generator)
    return inputs, targets


def none(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """Leave all as it is."""
    return inputs, targets


def shift(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """Move every picture by up to a sixteenth of its size, each by itself."""
    most = max(1, inputs.shape[2] // 16)
    moves = torch.randint(0, 2 * most + 1, (2, len(inputs)), generator=generator)
    moves = moves.to(inputs.device, non_blocking=True)  # else a card's queue is waited for
    down, right = moves.unbind()  # (B,) each
    moved = _window(inputs, down, right, most, 0)
    if targets.dim() == 1:
        return moved, targets
    return moved, _window(targets.unsqueeze(1), down, right, most, IGNORE).squeeze(1)


def flip(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """Mirror every picture left to right, or not, by a coin."""
    coins = (torch.rand(len(inputs), generator=generator) < 0.5).to(
        inputs.device, non_blocking=True)
    mirrored = _plain(v2.functional.horizontal_flip(tv_tensors.Image(inputs)))
    inputs = torch.where(coins[:, None, None, None], mirrored, inputs)
    if targets.dim() == 3:
        mirrored = _plain(v2.functional.horizontal_flip(tv_tensors.Mask(targets)))
        targets = torch.where(coins[:, None, None], mirrored, targets)
    return inputs, targets


def crop(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """A random part of every picture, 8 to 100 % of its area, drawn to its size."""
    size = (inputs.shape[2], inputs.shape[3])
    return _one_by_one(v2.RandomResizedCrop(size, antialias=True), inputs, targets, generator)


def rotate(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """Turn every picture by up to 45 degrees either way."""
    turn = v2.RandomRotation(45, interpolation=InterpolationMode.BILINEAR,
                             fill={tv_tensors.Image: 0.0, tv_tensors.Mask: IGNORE})
    return _one_by_one(turn, inputs, targets, generator)


def blur(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """Every fifth picture, by chance, out of focus: a Gaussian of 2 to 7 pixels, as seed 001's."""
    inputs = inputs.clone()
    for picture in _some(len(inputs), generator):
        deviation = 2 + 5 * float(torch.rand((), generator=generator))
        inputs[picture] = v2.functional.gaussian_blur(inputs[picture], [7, 7], [deviation] * 2)
    return inputs, targets


def lines(inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Pair:
    """One to nine bright lines over every fifth picture, by chance: glints, as seed 001 has them.

    From places in the middle of the picture in all directions, up to half of it long; masks stay.
    """
    _, _, height, width = inputs.shape
    side = max(height, width)
    rows = torch.arange(height)[:, None] - (height - 1) / 2
    columns = torch.arange(width)[None, :] - (width - 1) / 2
    inputs, bright = inputs.clone(), inputs.amax()
    for picture in _some(len(inputs), generator):
        lit = torch.zeros(height, width, dtype=torch.bool)
        for _ in range(int(torch.randint(1, 10, (), generator=generator))):
            x, y, turn, long = torch.rand(4, generator=generator).tolist()
            turn *= 2 * math.pi
            right, down = columns - 0.4 * (x - 0.5) * width, rows - 0.4 * (y - 0.5) * height
            along = (right * math.cos(turn) + down * math.sin(turn)).clamp(0, long * side / 2)
            away = torch.hypot(right - along * math.cos(turn), down - along * math.sin(turn))
            lit |= away <= max(0.5, side / 250)
        inputs[picture] = torch.where(lit.to(inputs.device), bright, inputs[picture])
    return inputs, targets


AUGMENTATIONS: Mapping[str, Way] = {
    "none": none, "shift": shift, "flip": flip, "crop": crop, "rotate": rotate, "blur": blur,
    "lines": lines}


def _some(count: int, generator: torch.Generator) -> list[int]:
    """Numbers of about a fifth of so many pictures."""
    chosen: list[int] = (torch.rand(count, generator=generator) < 0.2).nonzero().flatten().tolist()
    return chosen


def _window(maps: Tensor, down: Tensor, right: Tensor, most: int, outside: int) -> Tensor:
    """Each picture from so many pixels down and right (B,) of what has `most` more on each side."""
    height, width = maps.shape[2:]
    padded = pad(maps, [most] * 4, value=outside)
    places = padded.unfold(2, height, 1).unfold(3, width, 1)  # every window there is, as a view
    # Rows are copied whole: indices of single pixels took five times as long.
    chosen = places[torch.arange(len(maps), device=maps.device), :, down, right]
    return chosen.contiguous()


def _one_by_one(transform: Callable[..., Any], inputs: Tensor, targets: Tensor,
                generator: torch.Generator) -> Pair:
    """torchvision draws one chance a call, from PyTorch's own generator: lend it a seeded one."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if targets.dim() == 1:
            pictures = [transform(tv_tensors.Image(picture)) for picture in inputs]
            return torch.stack([_plain(picture) for picture in pictures]), targets
        pairs = [transform(tv_tensors.Image(picture), tv_tensors.Mask(mask))
                 for picture, mask in zip(inputs, targets)]
    return (torch.stack([_plain(picture) for picture, _ in pairs]),
            torch.stack([_plain(mask) for _, mask in pairs]))


def _plain(typed: Tensor) -> Tensor:
    return typed.as_subclass(Tensor)
