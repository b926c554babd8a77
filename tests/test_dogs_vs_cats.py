"""A small part of Kaggle's Dogs vs. Cats: counted, disjoint, and read by data set `folder`."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import files
import pytest

from harness.data import load
from harness.data.dogs_vs_cats import make
from harness.errors import DataError


def names(folder: Path) -> dict[str, list[str]]:
    return {f"{part}/{label}": sorted(p.name for p in (folder / part / label).iterdir())
            for part in ("train", "test") for label in ("cat", "dog")}


def digests(folder: Path) -> set[str]:
    found = [hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.jpg")]
    assert len(set(found)) == len(found)
    return set(found)


def as_folder(root: Path) -> Path:
    return files.kaggle(root / "download")


def as_flat_folder(root: Path) -> Path:
    return files.kaggle(root / "download") / "train"


def as_zip(root: Path) -> Path:
    return files.zipped(files.kaggle(root / "download"), root / "train.zip")


def as_zip_in_zip(root: Path) -> Path:
    """The download itself: train.zip, test1.zip and a table, in one zip."""
    outer = root / "dogs-vs-cats.zip"
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(as_zip(root), "train.zip")
        archive.writestr("test1.zip", b"")
        archive.writestr("sampleSubmission.csv", "id,label\n")
    return outer


def as_folder_with_zip(root: Path) -> Path:
    as_zip(root)
    shutil.rmtree(root / "download")
    return root


FORMS = [as_folder, as_flat_folder, as_zip, as_zip_in_zip, as_folder_with_zip]


@pytest.mark.rows("R008")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_of_the_download_gives_the_same_folder(form: Callable[[Path], Path],
                                                          tmp_path: Path) -> None:
    """By number from 1, as in the origin; 0 would come last."""
    (tmp_path / "in").mkdir()
    source = form(tmp_path / "in")
    out = tmp_path / "out"
    made = make(source, out, train=4, test=3)
    assert made.left_out == ()
    assert names(out) == {
        "train/cat": ["cat.1.jpg", "cat.2.jpg", "cat.3.jpg", "cat.4.jpg"],
        "train/dog": ["dog.1.jpg", "dog.2.jpg", "dog.3.jpg", "dog.4.jpg"],
        "test/cat": ["cat.5.jpg", "cat.6.jpg", "cat.7.jpg"],
        "test/dog": ["dog.5.jpg", "dog.6.jpg", "dog.7.jpg"]}
    assert not digests(out / "train") & digests(out / "test")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_the_bytes_are_those_of_the_download_and_folder_reads_them(tmp_path: Path) -> None:
    source = as_folder(tmp_path)
    out = tmp_path / "out"
    make(source, out, train=5, test=2)
    assert digests(out) <= digests(source)
    data = load("folder", size=16, options={"root": str(out)})
    assert data.labels == ("cat", "dog")
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [8, 2, 4]


def test_a_seed_chooses_at_random_and_again_the_same(tmp_path: Path) -> None:
    source = as_folder(tmp_path)
    found = []
    for place, seed in enumerate((None, 1, 1, 2)):
        make(source, tmp_path / f"out{place}", train=4, test=3, seed=seed)
        found.append(names(tmp_path / f"out{place}"))
    assert found[1] == found[2]
    assert found[0] != found[1] != found[3]
    for each in found:
        assert not set(each["train/cat"]) & set(each["test/cat"])


@pytest.mark.rows("R008")
def test_broken_pictures_and_doubles_are_left_out_and_told(tmp_path: Path) -> None:
    """Else a picture of training could be in the test under another number."""
    source = as_folder(tmp_path)
    (source / "train" / "cat.2.jpg").write_text("no picture")
    shutil.copy(source / "train" / "cat.1.jpg", source / "train" / "cat.4.jpg")
    made = make(source, tmp_path / "out", train=3, test=3)
    assert names(tmp_path / "out")["train/cat"] == ["cat.1.jpg", "cat.3.jpg", "cat.5.jpg"]
    assert names(tmp_path / "out")["test/cat"] == ["cat.0.jpg", "cat.6.jpg", "cat.7.jpg"]
    assert len(made.left_out) == 2
    assert "cat.2.jpg cannot be read" in made.left_out[0]
    assert "cat.4.jpg is the same picture as " in made.left_out[1]
    assert made.left_out[1].endswith("cat.1.jpg")
    assert not digests(tmp_path / "out" / "train") & digests(tmp_path / "out" / "test")


@pytest.mark.rows("R008")
def test_too_few_pictures_are_told_and_nothing_is_left_behind(tmp_path: Path) -> None:
    source = as_folder(tmp_path)
    with pytest.raises(DataError, match=r"too few pictures of a cat: 8, of which 6 \+ 3 good ones"):
        make(source, tmp_path / "out", train=6, test=3)
    assert [p.name for p in tmp_path.iterdir()] == ["download"]


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out is there already; name another folder with --out"):
        make(as_folder(tmp_path), tmp_path / "out", train=1, test=1)


def test_sources_that_are_no_download_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="there is no file or folder .*gone.zip"):
        make(tmp_path / "gone.zip", out, train=1, test=1)
    text = tmp_path / "text.zip"
    text.write_text("no zip")
    with pytest.raises(DataError, match="text.zip is no zip file. It must be Kaggle's"):
        make(text, out, train=1, test=1)
    files.by_class(tmp_path / "other", "ab", each=3)
    wrong = files.zipped(tmp_path / "other", tmp_path / "wrong.zip")
    with pytest.raises(DataError, match=r"wrong.zip has no cat.0.jpg and no dog.0.jpg or the like.*"
                                        r"it holds a/0.png, a/1.png, a/2.png, \.\.\."):
        make(wrong, out, train=1, test=1)
    for cat in (as_folder(tmp_path) / "train").glob("cat.*"):
        cat.unlink()
    with pytest.raises(DataError, match="download has no cat.0.jpg or the like"):
        make(tmp_path / "download", out, train=1, test=1)


def test_a_number_that_is_there_twice_is_told(tmp_path: Path) -> None:
    source = as_folder(tmp_path)
    files.picture(source / "more" / "cat.3.jpg", seed=77)
    with pytest.raises(DataError, match="has cat.3 twice: .*more/cat.3.jpg and .*train/cat.3.jpg"):
        make(source, tmp_path / "out", train=1, test=1)


def test_a_zip_whose_names_are_no_text_is_refused(tmp_path: Path) -> None:
    """The flag of a name in UTF-8 is set, and the name is none."""
    source = tmp_path / "pictures.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("cat.é.jpg", b"")
    source.write_bytes(source.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(DataError, match=r"pictures\.zip is a broken zip file: .*can't decode"):
        make(source, tmp_path / "out", train=2, test=2)
