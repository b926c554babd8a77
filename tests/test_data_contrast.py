"""Gamma and CLAHE, against OpenCV and by hand, and where a person asks for them."""

from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import torch

from harness.data import load
from harness.data.contrast import equalized, with_gamma
from harness.errors import DataError

# Every fifth row and sixth column of cv2.createCLAHE(1.5, (8, 8)).apply(noise // 2), OpenCV 5.0;
# and the sum of all shades.
OPENCV = {
    (16, 24): ([[255, 234, 21, 212], [42, 212, 64, 234], [64, 223, 160, 234], [42, 64, 192, 106]],
               55187),
    (17, 21): ([[255, 241, 28, 156], [250, 168, 241, 225], [227, 154, 255, 146],
                [170, 64, 206, 220]], 49343)}


@pytest.mark.rows("R012")
@pytest.mark.parametrize("size", OPENCV)
def test_clahe_is_opencvs(size: tuple[int, int]) -> None:
    """Within one shade where two are equally near."""
    picture = torch.from_numpy(files.noise(3, *size) // 2)[None]
    found = equalized(picture, 1.5)
    some, total = OPENCV[size]
    assert found.shape == picture.shape
    assert found.dtype == torch.uint8
    assert np.abs(found[0, ::5, ::6].numpy().astype(int) - np.array(some)).max() <= 1
    assert abs(int(found.sum()) - total) <= 5


def test_clahe_keeps_the_order_of_shades_in_a_picture_that_is_alike_everywhere() -> None:
    """Tiles of 4 x 4 with the same sixteen shades: one table, by hand, at every place."""
    tile = torch.arange(16, dtype=torch.uint8).reshape(4, 4) + 100
    found = equalized(tile.repeat(8, 8)[None], 40.0)
    # 40 x 16 / 256 = 2: no shade is cut; the n-th of sixteen becomes n / 16 of 255.
    by_hand = ((torch.arange(16) + 1) * 255 / 16).round().to(torch.uint8).reshape(4, 4)
    assert torch.equal(found[0], by_hand.repeat(8, 8))


@pytest.mark.rows("R012")
def test_gamma_by_hand() -> None:
    picture = torch.tensor([[[0, 64, 128, 255]]], dtype=torch.uint8)
    expected = [0, round(255 * (64 / 255) ** 0.8), round(255 * (128 / 255) ** 0.8), 255]
    assert with_gamma(picture, 0.8).flatten().tolist() == expected
    assert torch.equal(with_gamma(picture, 1.0), picture)


@pytest.mark.rows("R012")
@pytest.mark.parametrize("name", ["folder", "masks"])
def test_pictures_are_read_in_the_contrast_that_is_asked_for(name: str, tmp_path: Path) -> None:
    """Gamma first, then CLAHE, of the picture as it is in the file; masks stay."""
    more: dict[str, Any] = {"root": str(tmp_path), "channels": 1, "scaling": "half"}
    if name == "folder":
        files.by_class(tmp_path, each=10)
    else:
        files.camvid(tmp_path, {"train": 10})
        more["colours"] = {"sky": 0, "road": 1, "car": 2}
    plain, other = (load(name, size=(20, 24), options={**more, **asked})
                    for asked in ({}, {"gamma": 0.8, "clahe": 1.5}))
    assert torch.equal(plain.train.targets, other.train.targets)
    read = [(127.5 * (data.train.inputs + 1)).round().to(torch.uint8) for data in (plain, other)]
    for before, after in zip(*read):
        assert torch.equal(after, equalized(with_gamma(before, 0.8), 1.5))
        assert not torch.equal(after, before)


@pytest.mark.parametrize(("options", "words"), [
    ({"gamma": 0.0}, "gamma is 0.0; it must be above 0"),
    ({"clahe": -1.0, "channels": 1}, "clahe is -1.0"),
    ({"clahe": 1.5}, r"clahe is 1.5, with channels 3; .* of grey pictures \(channels: 1\)")])
def test_contrasts_that_cannot_be_are_refused_before_a_file_is_read(
        options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load("folder", size=8, options={"root": str(tmp_path), **options})


def test_a_picture_too_small_for_tiles_is_named(tmp_path: Path) -> None:
    files.by_class(tmp_path)
    files.picture(tmp_path / "a" / "0.png", size=(15, 30))
    with pytest.raises(DataError, match=r"a/0.png is 15 x 30 pixels; clahe needs 16 x 16"):
        load("folder", size=8, options={"root": str(tmp_path), "channels": 1, "clahe": 2.0})
