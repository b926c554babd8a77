"""`harness data`: what a person reads of a data set, and of one that is made."""

import re
from pathlib import Path

import files
import pytest
import torch

from harness.cli import main
from harness.data import from_tensors
from harness.data.overview import overview


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", *words])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out, err


def rows(out: str) -> dict[str, list[int]]:
    """First word -> numbers, of every line of the table that has three."""
    found = re.findall(r"^(\S.*?)\s{2,}(\d+)\s+(\d+)\s+(\d+)$", out, re.M)
    return {name: [int(number) for number in numbers] for name, *numbers in found}


def test_a_data_set_is_shown_by_class_and_split(capsys: pytest.CaptureFixture[str]) -> None:
    """As scikit-learn's digits are counted."""
    from sklearn.datasets import load_digits

    code, out, err = typed(capsys, "digits", "--set", "data.size=8")
    assert (code, err) == (0, "")
    counted = rows(out)
    assert counted["all pictures"] == [1079, 359, 359]
    of_digit = torch.bincount(torch.as_tensor(load_digits().target)).tolist()
    assert [sum(counted[str(digit)]) for digit in range(10)] == of_digit
    assert "1 channel, 8 x 8 pixels; a class for every picture, 10 of them" in out
    assert "fingerprint 99f29f4ecc519129ea67" in out


def test_pixels_and_what_counts_for_nothing_are_counted(capsys: pytest.CaptureFixture[str],
                                                        tmp_path: Path) -> None:
    files.camvid(tmp_path, {"train": 10}, num_classes=3)
    code, out, _ = typed(capsys, "masks", "--set", f"data.options.root={tmp_path} data.size=[20,24]"
                         " data.options.colours={sky: 0, road: 1} data.options.ignore=2")
    assert code == 0
    counted = rows(out)
    assert list(counted) == ["sky", "road", "(counts for nothing)", "all pictures"]
    assert sum(counted.pop("all pictures")) == 10
    assert sum(map(sum, counted.values())) == 10 * 20 * 24
    assert "a class for every pixel" in out


def test_a_configuration_and_a_persons_own_function_are_shown_too(
        capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "vgg16_digits", "--set", "data.size=8")
    assert code == 0
    assert "fingerprint 99f29f4ecc519129ea67" in out
    code, out, _ = typed(capsys, "show", "tiny:digits", "--set", "data.size=8")
    assert code == 0
    assert rows(out)["all pictures"] == [180, 60, 60]


@pytest.mark.parametrize(("words", "said"), [
    (["digts"], "unknown data set 'digts'. Nearest: digits.*Nor is it a configuration"),
    (["digits", "--set", "data.siz=8"], "unknown key 'data.siz'. Nearest: data.size"),
    (["folder", "--set", "data.options.root=gone"], "there is no folder gone"),
    (["folder", "--set", "data.options.rot=gone"], "unknown option of data set folder 'rot'"),
    (["dogs-vs-cats", "--source", "gone.zip"], "there is no file or folder gone.zip")])
def test_mistakes_are_sentences(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch, words: list[str], said: str,
                                ) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = typed(capsys, *words)
    assert code == 1
    assert re.search(said, err.replace("\n", " "))


@pytest.mark.rows("R008")
def test_a_folder_of_dogs_and_cats_is_made_and_shown(capsys: pytest.CaptureFixture[str],
                                                     tmp_path: Path) -> None:
    source = files.kaggle(tmp_path / "download")
    (source / "train" / "dog.1.jpg").write_text("no picture")
    out_folder = tmp_path / "made"
    code, out, err = typed(capsys, "dogs-vs-cats", "--source", str(source), "--train", "4",
                           "--test", "3", "--out", str(out_folder))
    assert code == 0
    assert re.findall(r"^(cat|dog)\s+4\s+3$", out, re.M) == ["cat", "dog"]
    assert "left out:" in err
    assert "dog.1.jpg cannot be read" in err.replace("\n", "")
    code, out, _ = typed(capsys, "folder", "--set", f"data.options.root={out_folder} data.size=16 "
                         "data.val=0.25")
    assert code == 0
    assert rows(out) == {"cat": [3, 1, 3], "dog": [3, 1, 3], "all pictures": [6, 2, 6]}


def test_what_one_should_know_of_a_data_set_is_told() -> None:
    """One class twenty times another, one that validation lacks, a channel without content."""
    targets = torch.tensor([0] * 60 + [1] * 3 + [2] * 40)
    inputs = torch.randn(103, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = 7.0
    parts = torch.tensor([0] * 40 + [1] * 10 + [2] * 10 + [0] * 2 + [2] + [0] * 20 + [1] * 10
                         + [2] * 10)
    data = from_tensors("x", inputs, targets, labels=["many", "rare", "some"], val=0.2, test=0.2,
                        seed=0, parts=parts)
    found = overview(data)
    assert found.counts == {"train": (40, 2, 20), "val": (10, 0, 10), "test": (10, 1, 10)}
    assert found.examples == {"train": 62, "val": 20, "test": 21}
    told = " ".join(found.warnings)
    for words in ("val has no rare.", "many is 20 times as frequent as rare",
                  "test has fewer than 10 of some classes", "channel 1 never changes in train"):
        assert words in told
    assert len(found.warnings) == 4


def test_an_even_data_set_warns_of_nothing() -> None:
    data = from_tensors("x", torch.randn(120, 1, 2, 2), torch.arange(120) % 2, labels="ab",
                        val=0.25, test=0.25, seed=0)
    assert overview(data).warnings == ()
