"""Pictures are varied, and masks with them, pixel for pixel, and alike for the same seed."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.augment import AUGMENTATIONS, blur, crop, flip, lines, rotate, shift, vary
from harness.labels import IGNORE

CLASSES = torch.arange(50)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def quarters(count: int) -> Tensor:
    """Masks (count, 32, 32) of four squares, of classes 1 to 4."""
    rows, columns = (torch.arange(32) // 16,) * 2
    return (1 + 2 * rows[:, None] + columns[None, :]).repeat(count, 1, 1)


def dot(count: int) -> Tensor:
    picture = torch.zeros(count, 1, 32, 32)
    picture[:, 0, 16, 16] = 1.0
    return picture


def test_shift_moves_pictures_by_whole_pixels_and_fills_with_zeros() -> None:
    moved, _ = shift(dot(50), CLASSES, seeded())
    assert moved.shape == (50, 1, 32, 32)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(50))
    places = moved.flatten(1).argmax(1)
    rows, columns = places // 32 - 16, places % 32 - 16
    assert sorted(set(rows.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(set(columns.tolist())) == [-2, -1, 0, 1, 2]


def test_a_shifted_picture_is_a_slice_of_itself_with_a_border_and_its_mask_the_same_slice() -> None:
    """Oblong, of several channels: a sixteenth of the height, 1, at every side."""
    pictures = torch.randn(20, 3, 16, 24, generator=seeded())
    masks = torch.randint(0, 9, (20, 16, 24), generator=seeded())
    moved, found = shift(pictures, masks, seeded())
    assert moved.is_contiguous()
    places = set()
    for picture, mask, new, seen in zip(pictures, masks, moved, found):
        wide = np.pad(picture.numpy(), ((0, 0), (1, 1), (1, 1)))
        deep = np.pad(mask.numpy(), 1, constant_values=IGNORE)
        here = [(row, column) for row in range(3) for column in range(3)
                if np.array_equal(wide[:, row:row + 16, column:column + 24], new.numpy())]
        assert len(here) == 1
        (row, column), = here
        assert np.array_equal(deep[row:row + 16, column:column + 24], seen.numpy())
        places.add(here[0])
    assert len(places) > 3


@pytest.mark.rows("R007")
def test_flip_mirrors_about_half_of_the_pictures_left_to_right() -> None:
    pictures = torch.randn(200, 2, 6, 5, generator=seeded())
    found, _ = flip(pictures, torch.arange(200), seeded())
    same = [torch.equal(new, old) for new, old in zip(found, pictures)]
    mirrored = [torch.equal(new, old[:, :, [4, 3, 2, 1, 0]]) for new, old in zip(found, pictures)]
    assert all(one != other for one, other in zip(same, mirrored))
    assert 70 < sum(mirrored) < 130


@pytest.mark.rows("R007")
def test_crop_shows_a_part_of_every_picture_in_its_whole_size() -> None:
    """A picture whose pixels tell their place: what is seen is a connected part of it."""
    ramp = torch.arange(32.0).expand(50, 1, 32, 32)
    found, _ = crop(ramp, CLASSES, seeded())
    assert found.shape == ramp.shape
    widths = found[:, 0, 0, -1] - found[:, 0, 0, 0]
    assert (widths > 0).all()
    assert (widths < 31.01).all()
    assert widths.min() < 16
    assert (found.diff(dim=3) >= 0).all()


@pytest.mark.rows("R007")
def test_rotate_turns_about_the_middle_by_up_to_45_degrees() -> None:
    right = torch.zeros(50, 1, 33, 33)
    right[:, 0, 15:18, 27:30] = 1.0  # 12 pixels to the right of the middle
    found, _ = rotate(right, CLASSES, seeded())
    place = torch.arange(33.0) - 16
    weight = found[:, 0].sum((1, 2))
    x = (found[:, 0] * place).sum((1, 2)) / weight
    y = (found[:, 0] * place[:, None]).sum((1, 2)) / weight
    angles = torch.rad2deg(torch.atan2(y, x))
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((50,), 12.0), atol=0.3, rtol=0)
    assert angles.abs().max() < 46
    assert angles.min() < -30
    assert angles.max() > 30


@pytest.mark.rows("R012")
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_mask_goes_the_way_of_its_picture(name: str) -> None:
    """A picture painted like its mask still is, but where its edges were smoothed."""
    masks = quarters(40)
    pictures, found = vary(name, masks[:, None].float(), masks, seeded())
    assert found.dtype == torch.int64
    assert set(found.unique().tolist()) <= {IGNORE, 1, 2, 3, 4}
    counted = found != IGNORE
    agree = (pictures[:, 0].round() == found)[counted].double().mean()
    assert agree == 1 if name in ("none", "shift", "flip") else agree > 0.9
    assert torch.equal(found, masks) == (name in ("none", "blur", "lines"))


@pytest.mark.parametrize("name", ["shift", "rotate"])
def test_what_comes_in_from_outside_counts_for_nothing(name: str) -> None:
    ones = torch.ones(40, 32, 32, dtype=torch.int64)
    pictures, found = vary(name, ones[:, None].float(), ones, seeded())
    outside = found == IGNORE
    assert outside.any()
    assert (pictures[:, 0][outside] < 0.99).all()
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE


@pytest.mark.parametrize("name", ["blur", "lines"])
def test_about_a_fifth_of_the_pictures_is_spoilt_and_the_others_stay(name: str) -> None:
    pictures = torch.rand(500, 1, 16, 20, generator=seeded())
    before = pictures.clone()
    found, _ = vary(name, pictures, torch.arange(500), seeded())
    changed = (found != pictures).flatten(1).any(1)
    assert 70 <= int(changed.sum()) <= 130
    assert torch.equal(pictures, before), "the given batch is another's"


@pytest.mark.rows("R012")
def test_a_blur_spreads_a_dot_and_keeps_its_weight() -> None:
    found, _ = blur(dot(50), CLASSES, seeded())
    blurred = found[found[:, 0, 16, 16] < 1][:, 0]
    assert len(blurred)
    torch.testing.assert_close(blurred.sum((1, 2)), torch.ones(len(blurred)))
    assert bool((blurred[:, 13:20, 13:20] > 0).all())
    assert int((blurred > 0).sum()) == 49 * len(blurred)
    # Of 2 pixels or more: the corner has at least exp(-9 / 4) of the middle.
    assert bool((blurred[:, 13, 13] >= 0.99 * math.exp(-9 / 4) * blurred[:, 16, 16]).all())


@pytest.mark.rows("R012")
def test_lines_are_bright_thin_and_cross_the_middle_of_the_picture() -> None:
    dark = torch.zeros(100, 3, 64, 64)
    dark[0, 0, 0, 0] = 2.5
    found, _ = lines(dark, torch.arange(100), seeded())
    assert set(found.unique().tolist()) == {0.0, 2.5}
    lit = (found != dark).any(1)
    drawn = lit[lit.flatten(1).any(1)]
    assert torch.equal(found[:, 0, 1:], found[:, 2, 1:]), "of all channels alike"
    assert bool(drawn[:, 16:48, 16:48].flatten(1).any(1).all())
    # Nine lines of 32 pixels, one or two wide, at most.
    assert 1 <= int(drawn.sum((1, 2)).min()) <= int(drawn.sum((1, 2)).max()) <= 9 * 33 * 2
    spread = drawn.nonzero()[:, 1:]
    assert spread.min() < 12
    assert spread.max() > 51


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_classes_of_pictures_stay_and_the_same_seed_gives_the_same_bits(name: str) -> None:
    pictures = torch.randn(50, 1, 16, 24, generator=seeded())
    found, classes = vary(name, pictures, CLASSES, seeded())
    again, _ = vary(name, pictures, CLASSES, seeded())
    assert torch.equal(classes, CLASSES)
    assert torch.equal(found, again)
    if name != "none":
        other, _ = vary(name, pictures, CLASSES, torch.Generator().manual_seed(1))
        assert not torch.equal(found, other)


def test_several_ways_go_one_after_the_other() -> None:
    masks = quarters(8)
    pictures, found = vary(["flip", "shift"], masks[:, None].float(), masks, seeded())
    generator = seeded()
    by_hand = shift(*flip(masks[:, None].float(), masks, generator), generator)
    assert torch.equal(pictures, by_hand[0])
    assert torch.equal(found, by_hand[1])


def test_varying_leaves_pytorchs_own_randomness_alone() -> None:
    """Dropout draws from it: a stage must not depend on how a library draws its chances."""
    before = torch.get_rng_state()
    vary(["crop", "rotate"], torch.randn(4, 1, 16, 16, generator=seeded()), CLASSES[:4], seeded())
    assert torch.equal(torch.get_rng_state(), before)
