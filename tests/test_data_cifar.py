"""CIFAR-10 and CIFAR-100 from tiny files in their own format; torchvision checks their sums."""

import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from harness.data import Data, load
from harness.data.cifar import SUBSETS
from harness.errors import DataError


def loaded(name: str, root: Path, size: Any = 32, **options: Any) -> Data:
    return load(name, size=size, options={"root": str(root), **options})


def bytes_of(inputs: Tensor) -> list[bytes]:
    """Undo the scaling `half`."""
    pixels = (inputs.double() * 127.5 + 127.5).round().to(torch.uint8)
    return [picture.numpy().tobytes() for picture in pixels]


@pytest.mark.rows("R009")
@pytest.mark.parametrize(("name", "make", "kind"), [
    ("cifar10", files.cifar10, CIFAR10), ("cifar100", files.cifar100, CIFAR100)])
def test_pictures_and_classes_are_those_that_torchvision_reads(
        name: str, make: Any, kind: type[CIFAR10], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch)
    data = loaded(name, tmp_path, scaling="half")
    for is_train, splits in ((True, (data.train, data.val)), (False, (data.read_test(),))):
        theirs = kind(str(tmp_path), train=is_train)
        expected = Counter((picture.transpose(2, 0, 1).tobytes(), theirs.classes[target])
                           for picture, target in zip(theirs.data, theirs.targets))
        found = Counter((picture, data.labels[target]) for split in splits
                        for picture, target in zip(bytes_of(split.inputs), split.targets.tolist()))
        assert found == expected


def test_validation_is_an_equal_share_of_every_class_of_training(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = loaded("cifar10", files.cifar10(tmp_path, monkeypatch))
    assert torch.bincount(data.val.targets).tolist() == [2] * 10
    assert torch.bincount(data.train.targets).tolist() == [8] * 10
    assert torch.bincount(data.read_test().targets).tolist() == [2] * 10


@pytest.mark.rows("R010")
@pytest.mark.parametrize(("options", "labels"), [
    ({"subset": "aquatic"}, ["aquarium_fish", "dolphin", "otter", "shark"]),
    ({"subset": "indoors"}, ["bed", "bottle", "chair", "plate"]),
    ({"classes": ["fish"]}, ["aquarium_fish", "shark"]),
    ({"classes": ["plate", "fish"]}, ["aquarium_fish", "plate", "shark"]),
    ({"subset": "entire_dataset"}, sorted(files.CIFAR100_NAMES))])
def test_subsets_are_the_classes_of_their_coarse_classes(
        options: dict[str, Any], labels: list[str], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pictures of a class to train on, five to test; the coarse classes are in the files."""
    files.cifar100(tmp_path, monkeypatch)
    if options.get("subset") == "indoors":  # the third coarse class is not among ours
        monkeypatch.setitem(SUBSETS, "indoors",  # type: ignore[arg-type]
                            ("food_containers", "household_furniture"))
    data = loaded("cifar100", tmp_path, scaling="half", **options)
    assert list(data.labels) == labels
    assert len(data.train) + len(data.val) == 10 * len(labels)
    assert len(data.read_test()) == 5 * len(labels)
    theirs = CIFAR100(str(tmp_path), train=False)
    expected = Counter((picture.transpose(2, 0, 1).tobytes(), theirs.classes[target])
                       for picture, target in zip(theirs.data, theirs.targets)
                       if theirs.classes[target] in labels)
    test = data.read_test()
    assert Counter(zip(bytes_of(test.inputs), (data.labels[t] for t in test.targets))) == expected


@pytest.mark.rows("R010")
def test_the_named_sets_have_the_coarse_classes_of_the_paper() -> None:
    """Five classes and 3000 pictures each in the real set; 13 coarse classes in random1."""
    sizes = {name: len(set(coarse or range(20))) for name, coarse in SUBSETS.items()}
    assert sizes == {"entire_dataset": 20, "aquatic": 2, "indoors": 3, "natural": 8, "random1": 13,
                     "subset1": 7, "outdoor": 7}
    real = {"aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables",
            "household_electrical_devices", "household_furniture", "insects", "large_carnivores",
            "large_man-made_outdoor_things", "large_natural_outdoor_scenes",
            "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
            "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2"}
    assert {name for coarse in SUBSETS.values() for name in coarse or ()} <= real


@pytest.mark.rows("R010")
def test_a_network_of_all_classes_may_look_at_a_subset(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    files.cifar100(tmp_path, monkeypatch)
    some = loaded("cifar100", tmp_path, classes=["fish"], outputs="all", scaling="half")
    assert some.labels == loaded("cifar100", tmp_path).labels
    named = {some.labels[target] for target in some.train.targets.tolist()}
    assert named == {"aquarium_fish", "shark"}


def test_a_few_pictures_of_each_class_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 ) -> None:
    files.cifar10(tmp_path, monkeypatch)
    data = loaded("cifar10", tmp_path, limit=5, classes=["cat", "dog"])
    assert (data.labels, len(data.train), len(data.val)) == (("cat", "dog"), 8, 2)
    assert len(data.read_test()) == 4


def test_pictures_grow_and_shrink_to_the_size_asked_for(tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the side: the mean of a picture stays."""
    files.cifar10(tmp_path, monkeypatch)
    whole, half = (loaded("cifar10", tmp_path, size, scaling="half") for size in (32, 16))
    assert half.input_shape == (3, 16, 16)
    assert half.val.targets.tolist() == whole.val.targets.tolist()
    np.testing.assert_allclose(half.val.inputs.mean((1, 2, 3)), whole.val.inputs.mean((1, 2, 3)),
                               atol=0.02)


def test_files_that_are_not_there_are_named_and_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*cifar-10-batches-py. Download it "
                                        r"with data.options.download=true, or say with "
                                        r"data.options.root"):
        loaded("cifar10", tmp_path)


def test_a_damaged_file_and_a_missing_one_are_both_named_and_nothing_is_unpickled(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.cifar10(tmp_path, monkeypatch)
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": []}))
    (folder / "test_batch").unlink()
    monkeypatch.setattr("harness.data.cifar.pickle.load", None)
    with pytest.raises(DataError, match="data_batch_3 is damaged; .*test_batch is not there"):
        loaded("cifar10", tmp_path)


@pytest.mark.rows("R009")
def test_what_is_there_is_not_fetched_and_what_is_not_there_is(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision fetches; here a stranger does in its place."""
    asked: list[tuple[Any, ...]] = []
    elsewhere = files.cifar10(tmp_path / "elsewhere", monkeypatch)

    def fetch(*words: Any, **named: Any) -> None:
        asked.append(words)
        shutil.copytree(elsewhere, tmp_path, dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    data = loaded("cifar10", tmp_path, download=True)
    assert len(data.train) == 80
    loaded("cifar10", tmp_path, download=True)
    assert len(asked) == 1
    assert asked[0][0] == CIFAR10.url


def test_a_download_that_fails_says_how_to_do_without(tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **named: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"could not be downloaded into .*no route to host. Fetch "
                                        r"https://.*cifar-100-python.tar.gz in another way"):
        loaded("cifar100", tmp_path, download=True)


@pytest.mark.parametrize(("options", "words"), [
    ({"subset": "aquatc"}, "unknown subset of cifar100 'aquatc'. Nearest: aquatic"),
    ({"subset": "aquatic", "classes": ["fish"]}, "subset aquatic and classes both say"),
    ({"classes": ["fisch", "brd"]}, "(?s)'fisch'. Nearest: fish.*'brd'"),
    ({"classes": []}, "classes is empty"), ({"outputs": "some"}, "unknown outputs of cifar100"),
    ({"memory_gb": 1e-6}, "more than data.options.memory_gb"), ({"limit": 0}, "limit is 0")])
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    files.cifar100(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=words):
        loaded("cifar100", tmp_path, **options)


def test_downloads_lie_in_the_users_cache_if_nothing_else_is_said(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files.cifar10(tmp_path / "harness", monkeypatch)
    assert len(load("cifar10", size=32).train) == 80
