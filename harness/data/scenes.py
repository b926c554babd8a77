"""Handwritten digits on textured ground, a class for every pixel: made in memory, seeded.

Shapes: N scenes of one channel, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from harness.data.splits import TEST, TRAIN, VAL, Data, Size, from_tensors, sides, stratified
from harness.errors import DataError

_SMALLEST = 16  # pixels; in less than that no digit can be told
_INK = 6.0 / 16  # a pixel of a digit that is darker than this belongs to the ground


def scenes(*, size: Size, val: float, test: float, seed: int, count: int = 600,
           digits: int = 2) -> Data:
    """Eleven classes: 0 the ground, 1 to 10 the digits 0 to 9, of scikit-learn's 1797 pictures.

    Every scene shows up to `digits` of them, three to five eighths of its shorter side high, each
    of its own brightness; a later one hides what is below. A digit of one split is in no other.
    count: scenes in all.

    Raises: DataError if size, shares or numbers do not fit.
    """
    height, width = sides(size)
    if min(height, width) < _SMALLEST:
        raise DataError(f"data.size is {size}; scenes need at least {_SMALLEST} pixels a side.")
    if count < 5 or digits < 1:
        raise DataError(f"scenes take a count of at least 5 and 1 digit or more; got {count} and "
                        f"{digits}.")
    from sklearn.datasets import load_digits  # here: its import costs a second

    found = load_digits()
    ink = torch.as_tensor(found.images, dtype=torch.float32) / 16  # (1797, 8, 8)
    numbers = torch.as_tensor(found.target).long()
    pools = stratified(numbers, val=val, test=test, seed=seed)
    parts = _parts(count, val, test)
    generator = torch.Generator().manual_seed(seed)
    made = [_scene(ink, numbers, pools[part], (height, width), digits, generator)
            for part in parts.tolist()]
    return from_tensors(
        "scenes", torch.stack([picture for picture, _ in made]).unsqueeze(1),
        torch.stack([mask for _, mask in made]),
        labels=["ground", *(str(name) for name in found.target_names)], val=val, test=test,
        seed=seed, parts=parts)


def _parts(count: int, val: float, test: float) -> Tensor:
    num_val, num_test = (max(1, round(count * share)) for share in (val, test))
    if count - num_val - num_test < 1:
        raise DataError(f"{count} scenes are too few for val {val} and test {test}.")
    return torch.tensor([TRAIN] * (count - num_val - num_test) + [VAL] * num_val
                        + [TEST] * num_test)


def _scene(ink: Tensor, numbers: Tensor, pool: Tensor, size: tuple[int, int], most: int,
           generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(picture, mask), both (H, W)."""
    picture = _ground(size, generator)
    mask = torch.zeros(size, dtype=torch.long)
    for _ in range(_whole(1, most, generator)):
        row = int(pool[_whole(0, len(pool) - 1, generator)])
        side = _whole(3 * min(size) // 8, 5 * min(size) // 8, generator)
        top, left = (_whole(0, whole - side, generator) for whole in size)
        drawn = interpolate(ink[row][None, None], size=(side, side), mode="bilinear",
                            align_corners=False)[0, 0]
        window = (slice(top, top + side), slice(left, left + side))
        brightness = 0.7 + 0.3 * _share(generator)
        picture[window] = torch.lerp(picture[window], torch.tensor(brightness), drawn)
        mask[window] = torch.where(drawn > _INK, numbers[row] + 1, mask[window])
    return picture, mask


def _ground(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Patches, grain and stripes, (H, W), from 0 to about 0.6."""
    patches = interpolate(torch.rand(1, 1, 4, 4, generator=generator), size=size, mode="bicubic",
                          align_corners=False)[0, 0].clamp(0, 1)
    grain = torch.rand(size, generator=generator)
    angle, pitch = 3.14159 * _share(generator), 4 + 12 * _share(generator)
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None, :]
    along = rows * torch.sin(torch.tensor(angle)) + columns * torch.cos(torch.tensor(angle))
    stripes = 0.5 + 0.5 * torch.sin(6.28318 * along / pitch)
    return 0.3 * patches + 0.1 * grain + 0.2 * _share(generator) * stripes


def _whole(least: int, most: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, most + 1, (1,), generator=generator))


def _share(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))
