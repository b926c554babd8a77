"""Oxford-IIIT Pet from tiny files in its layout; torchvision reads the same."""

from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
from torchvision.datasets import OxfordIIITPet

from harness.data import Data, load
from harness.errors import DataError


def loaded(root: Path, **options: Any) -> Data:
    return load("pets", size=[20, 24], options={"root": str(files.pets(root)), **options})


@pytest.mark.parametrize(("target", "theirs", "labels"), [
    ("breed", "category", ("Abyssinian", "Sphynx", "pug")),
    ("species", "binary-category", ("cat", "dog"))])
def test_classes_are_breeds_or_cat_and_dog(target: str, theirs: str, labels: tuple[str, ...],
                                           tmp_path: Path) -> None:
    data = loaded(tmp_path, target=target, scaling="half")
    assert data.labels == labels
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [24, 6, 15]
    expected = {np.asarray(picture).transpose(2, 0, 1).tobytes(): number for picture, number in
                OxfordIIITPet(tmp_path, split="test", target_types=theirs)}
    test = data.read_test()
    pixels = (test.inputs.double() * 127.5 + 127.5).round().byte()
    assert {x.numpy().tobytes(): int(t) for x, t in zip(pixels, test.targets)} == expected


def test_trimaps_are_pet_ground_and_border_of_every_pixel(tmp_path: Path) -> None:
    data = loaded(tmp_path, target="trimap")
    assert (data.task, data.labels) == ("pixels", ("pet", "ground", "border"))
    theirs = OxfordIIITPet(tmp_path, split="test", target_types="segmentation")
    expected = {(np.asarray(trimap).astype(np.int64) - 1).tobytes() for _, trimap in theirs}
    assert {mask.numpy().tobytes() for mask in data.read_test().targets} == expected


def test_the_border_may_count_for_nothing(tmp_path: Path) -> None:
    whole, without = (loaded(tmp_path, target="trimap", ignore_border=b) for b in (False, True))
    assert without.labels == ("pet", "ground")
    assert ((whole.val.targets == 2) == (without.val.targets == -100)).all()
    assert ((whole.val.targets == 1) == (without.val.targets == 1)).all()


def test_files_that_are_not_there_or_no_trimaps_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images or no annotations. Download it with"):
        load("pets", size=8, options={"root": str(tmp_path)})
    folder = files.pets(tmp_path) / "oxford-iiit-pet"
    (folder / "images" / "pug_00.jpg").unlink()
    with pytest.raises(DataError, match="pug_00.jpg cannot be read: .*No such file"):
        load("pets", size=8, options={"root": str(tmp_path)})
    loaded(tmp_path)
    files.mask(folder / "annotations" / "trimaps" / "pug_00.png", np.zeros((20, 24)))
    with pytest.raises(DataError, match="pug_00.png is no trimap: its pixels must be 1, 2 or 3"):
        load("pets", size=8, options={"root": str(tmp_path), "target": "trimap"})
    (folder / "annotations" / "test.txt").write_text("pug_00 3 2 1\npug_01 three\n")
    with pytest.raises(DataError, match="test.txt, line 2: 'pug_01 three' is not a name and three"):
        load("pets", size=8, options={"root": str(tmp_path)})


def test_torchvision_fetches_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               ) -> None:
    asked: list[str] = []

    def fetch(url: str, *words: Any, **named: Any) -> None:
        asked.append(url)
        files.pets(tmp_path)

    monkeypatch.setattr("torchvision.datasets.oxford_iiit_pet.download_and_extract_archive", fetch)
    data = load("pets", size=8, options={"root": str(tmp_path), "download": True})
    assert len(data.train) == 24
    assert [Path(url).name for url in asked] == ["images.tar.gz", "annotations.tar.gz"]


@pytest.mark.parametrize(("options", "words"), [
    ({"target": "breeds"}, "unknown target of pets 'breeds'. Nearest: breed"),
    ({"ignore_border": True}, "ignore_border is for target trimap, not breed")])
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str, tmp_path: Path,
                                             ) -> None:
    with pytest.raises(DataError, match=words):
        loaded(tmp_path, **options)
