"""A folder of pictures, one folder a class."""

from pathlib import Path
from typing import Any

import files
import pytest

from harness.data import Data, load
from harness.data.splits import Split
from harness.errors import ConfigError, DataError


def loaded(root: Path, size: Any = (20, 24), **options: Any) -> Data:
    return load("folder", size=size, options={"root": str(root), **options})


def seen(split: Split) -> dict[bytes, int]:
    return {x.numpy().tobytes(): int(t) for x, t in zip(split.inputs, split.targets)}


@pytest.mark.rows("R007")
def test_folders_are_classes_by_name(tmp_path: Path) -> None:
    data = loaded(files.by_class(tmp_path, classes=["b", "c", "a"]))
    assert data.labels == ("a", "b", "c")
    assert data.input_shape == (3, 20, 24)
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [18, 6, 6]


@pytest.mark.rows("R007")
def test_every_picture_keeps_its_class(tmp_path: Path) -> None:
    """Of one shade a class, so that the scaled pictures tell it too."""
    for name, shade in (("dark", 0), ("light", 200)):
        for number in range(10):
            files.mask(tmp_path / name / f"{number}.png", [[[shade + number] * 3] * 4] * 4)
    data = loaded(tmp_path, size=4)
    for split in (data.train, data.val, data.read_test()):
        assert ((split.inputs.mean((1, 2, 3)) > 0).long() == split.targets).all()


@pytest.mark.rows("R007")
def test_its_own_parts_are_taken_and_validation_comes_out_of_training(tmp_path: Path) -> None:
    files.by_class(tmp_path / "train", each=10)
    files.by_class(tmp_path / "test", each=4, seed=1)
    data = loaded(tmp_path)
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [24, 6, 12]
    files.by_class(tmp_path / "val", each=3, seed=2)
    data = loaded(tmp_path)
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [30, 9, 12]


def test_some_classes_and_a_few_pictures_of_each_may_be_asked_for(tmp_path: Path) -> None:
    files.by_class(tmp_path, each=12)
    data = loaded(tmp_path, classes=["c", "a"], limit=10)
    assert data.labels == ("a", "c")
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [12, 4, 4]
    assert seen(data.train) != seen(loaded(tmp_path, classes=["c", "a"]).train)


def test_grey_and_known_scalings_reach_the_pictures(tmp_path: Path) -> None:
    data = loaded(files.by_class(tmp_path), channels=1, scaling="half")
    assert data.input_shape == (1, 20, 24)
    assert data.train.inputs.min() >= -1
    assert data.train.inputs.max() <= 1


def test_all_that_is_wrong_with_a_folder_is_told_at_once(tmp_path: Path) -> None:
    files.by_class(tmp_path / "train", "ab")
    files.by_class(tmp_path / "test", "a")
    files.picture(tmp_path / "train" / "loose.png")
    (tmp_path / "unlabelled").mkdir()
    with pytest.raises(DataError) as caught:
        loaded(tmp_path)
    told = sorted(str(caught.value).splitlines(), key=str.strip)
    assert len(told) == 3
    assert "test has no folder b, but another part has" in told[0]
    assert "loose.png lies beside the classes' folders" in told[1]
    assert "unlabelled is none of train, val and test" in told[2]


@pytest.mark.parametrize(("made", "words"), [
    ({"a": 3, "b": 0}, "b has no pictures: the class is empty"),
    ({"a": 3}, "has one class only, a"),
    ({}, "has no folder for a class. .*harness data dogs-vs-cats")])
def test_folders_without_classes_or_pictures_are_named(tmp_path: Path, made: dict[str, int],
                                                       words: str) -> None:
    for name, count in made.items():
        (tmp_path / name).mkdir()
        files.by_class(tmp_path, [name], each=count)
    with pytest.raises(DataError, match=words):
        loaded(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"data set folder: there is no folder {tmp_path}/gone"):
        loaded(tmp_path / "gone")
    with pytest.raises(ConfigError, match="missing a required .*argument: 'root'"):
        load("folder", size=8)


def test_a_class_that_is_none_is_told_with_the_nearest(tmp_path: Path) -> None:
    files.by_class(tmp_path, ["cats", "dogs"])
    with pytest.raises(DataError, match="'cat'. Nearest: cats. Known: cats, dogs"):
        loaded(tmp_path, classes=["cat", "dogs"])


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    files.by_class(tmp_path)
    (tmp_path / "b" / "3.png").write_text("no picture")
    with pytest.raises(DataError, match=r"b/3.png cannot be read: it is no picture"):
        loaded(tmp_path)
