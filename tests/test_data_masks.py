"""Pictures with mask pictures: a class for every pixel."""

from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import Data, load
from harness.errors import DataError

NUMBERS = {"sky": 0, "road": 1, "car": 2}


def loaded(root: Path, size: Any = (20, 24), **options: Any) -> Data:
    return load("masks", size=size, options={"root": str(root), "colours": NUMBERS, **options})


def counts(data: Data) -> list[int]:
    targets = torch.cat([s.targets for s in (data.train, data.val, data.read_test())])
    return [int((targets == label).sum()) for label in (-100, *range(data.num_classes))]


@pytest.mark.rows("R012")
def test_the_layout_of_camvid_brings_its_parts(tmp_path: Path) -> None:
    data = loaded(files.camvid(tmp_path, {"train": 8, "val": 3, "test": 4}))
    assert (data.task, data.labels) == ("pixels", ("sky", "road", "car"))
    assert data.train.targets.shape == (8, 20, 24)
    assert [len(s) for s in (data.val, data.read_test())] == [3, 4]
    masks = [files.noise(200 + n, 20, 24, high=3) for n in range(4)]
    found = data.read_test().targets.numpy()
    assert {m.tobytes() for m in found} == {m.astype(np.int64).tobytes() for m in masks}


@pytest.mark.parametrize("has_parts", [False, True])
def test_folders_of_pictures_and_masks_may_have_any_name(tmp_path: Path, has_parts: bool) -> None:
    for part in ("train", "test") if has_parts else ("",):
        for number in range(10):
            files.picture(tmp_path / "photos" / part / f"{number}.jpg", seed=len(part) + number)
            files.mask(tmp_path / "drawn" / part / f"{number}.png",
                       files.noise(number, 20, 24, high=3))
    data = loaded(tmp_path, pictures="photos", masks="drawn")
    sizes = [len(s) for s in (data.train, data.val, data.read_test())]
    assert sizes == ([8, 2, 10] if has_parts else [6, 2, 2])


@pytest.mark.rows("R012")
def test_masks_of_colours_and_of_palettes_mean_the_same_as_masks_of_numbers(tmp_path: Path,
                                                                            ) -> None:
    colours = {"sky": [128, 128, 128], "road": [[128, 64, 128], [128, 64, 0]], "car": [64, 0, 128]}
    shades = np.array([[128, 128, 128], [128, 64, 128], [64, 0, 128], [128, 64, 0]], np.uint8)
    for kind in ("numbers", "palette", "coloured"):
        files.camvid(tmp_path / kind, {"train": 10})
        for number in range(10):
            values = files.noise(number, 20, 24, high=3)
            place = tmp_path / kind / "trainannot" / f"{number}.png"
            if kind == "coloured":
                values[0, :5] = 3  # road in its other colour
                files.mask(place, shades[values])
            elif kind == "palette":
                values[0, :5] = 1
                picture = Image.fromarray(values, "P")
                picture.putpalette(shades.flatten().tolist())
                picture.save(place)
            else:
                values[0, :5] = 1
                files.mask(place, values)
    first, *others = (loaded(tmp_path / kind, colours=given) for kind, given in (
        ("numbers", NUMBERS), ("palette", NUMBERS), ("palette", colours), ("coloured", colours)))
    for other in others:
        to_name = [first.labels.index(label) for label in other.labels]
        assert torch.equal(torch.tensor(to_name)[other.train.targets], first.train.targets)


def test_classes_are_counted_by_value_so_the_order_of_writing_changes_nothing(tmp_path: Path,
                                                                              ) -> None:
    files.camvid(tmp_path, {"train": 10})
    other = dict(reversed(NUMBERS.items()))
    assert loaded(tmp_path).fingerprint == loaded(tmp_path, colours=other).fingerprint


def test_an_ignored_number_counts_for_nothing(tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 10}, num_classes=4)
    expected = np.bincount(np.concatenate(
        [files.noise(n, 20, 24, high=4).flatten() for n in range(10)]), minlength=4).tolist()
    found = counts(loaded(tmp_path, ignore=3))
    assert found == [expected[3], *expected[:3]]


def test_every_mask_with_an_unknown_label_is_named(tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 6, "test": 2})
    for part, value in (("train", 7), ("test", 9)):
        values = files.noise(0, 20, 24, high=3)
        values[3, 3] = value
        files.mask(tmp_path / f"{part}annot" / "1.png", values)
    with pytest.raises(DataError) as caught:
        loaded(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "trainannot/1.png has pixels of 7, which data.options.colours and ignore do" in lines[0]
    assert "testannot/1.png has pixels of 9" in lines[1]


def test_an_unknown_colour_is_named(tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 6})
    for number in range(6):
        files.mask(tmp_path / "trainannot" / f"{number}.png", np.full((20, 24, 3), [1, 2, number]))
    colours = {f"c{n}": [1, 2, n] for n in range(5)}
    with pytest.raises(DataError, match=r"5.png has pixels of \[1, 2, 5\], which"):
        loaded(tmp_path, colours=colours)
    with pytest.raises(DataError, match=r"0.png is a mask of colours \(RGB\).*give \[red, green"):
        loaded(tmp_path)


def test_pictures_without_a_mask_and_masks_without_a_picture_are_named(tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 6, "val": 2})
    (tmp_path / "trainannot" / "4.png").unlink()
    (tmp_path / "val" / "0.jpg").unlink()
    with pytest.raises(DataError) as caught:
        loaded(tmp_path)
    assert "train/4.jpg has no mask in " in str(caught.value)
    assert "valannot/0.png has no picture in " in str(caught.value)


def test_a_mask_of_another_size_is_named_with_its_picture(tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 6})
    files.mask(tmp_path / "trainannot" / "2.png", np.zeros((10, 12)))
    with pytest.raises(DataError, match=r"2.jpg is 20 x 24 pixels, but its mask .*2.png is 10 x 1"):
        loaded(tmp_path)


def test_a_part_without_its_masks_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 6})
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="there is no folder .*testannot"):
        loaded(tmp_path)
    (tmp_path / "testannot").mkdir()
    with pytest.raises(DataError, match="/test has no pictures"):
        loaded(tmp_path)
    with pytest.raises(DataError, match="there is no folder .*images, .*masks. Pictures and masks"):
        loaded(tmp_path / "trainannot")


@pytest.mark.parametrize(("colours", "ignore", "words"), [
    ({}, None, "must name each class"), (3, None, "must name each class"),
    ({"a": 0, "b": [1, 2, 3]}, None, "all numbers, or all"),
    ({"a": 0, "b": 0}, None, "0 stands for more than one class"),
    ({"a": 0, "b": 1}, 1, "1 stands for more than one class"),
    ({"a": 256}, None, "colours.a is 256; it must be a number from 0 to 255"),
    ({"a": [1, 2]}, None, r"colours.a is \[1, 2\]; it must be"),
    ({"a": "red"}, None, "colours.a is red; it must be")])
def test_colours_that_are_none_or_not_clear_are_refused(tmp_path: Path, colours: Any, ignore: Any,
                                                        words: str) -> None:
    files.camvid(tmp_path, {"train": 6})
    with pytest.raises(DataError, match=words):
        loaded(tmp_path, colours=colours, ignore=ignore)
