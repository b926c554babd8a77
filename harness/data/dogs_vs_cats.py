"""A small part of Kaggle's Dogs vs. Cats as a folder of pictures, one folder a class.

Of the download: a zip of cat.0.jpg, dog.0.jpg, ...; the zip around it, with train.zip inside; or a
folder of them, or around it. The folder that is made is what data set `folder` reads.
"""

import hashlib
import io
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from harness.data.pictures import opened
from harness.errors import DataError

CLASSES = ("cat", "dog")
_NAME = re.compile(rf"({'|'.join(CLASSES)})\.(\d{{1,9}})\.jpe?g", re.IGNORECASE)
_INNER = "train.zip"
_OF_ZIPS = (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)
_LARGEST_ZIP, _LARGEST_PICTURE = 2 * 10**9, 64 * 10**6  # bytes, unpacked


@dataclass(frozen=True)
class Picture:
    """A picture of the download: its class, its number there, and how to read its bytes."""

    label: str
    number: int
    place: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Made:
    """What was written: part -> class -> names; left_out: pictures that could not be, and why."""

    folder: Path
    names: Mapping[str, Mapping[str, tuple[str, ...]]]
    left_out: tuple[str, ...]


def make(source: Path, out: Path, *, train: int, test: int, seed: int | None = None) -> Made:
    """Write `train` and `test` pictures of each class to OUT/train and OUT/test.

    They go by number from 1 (0 comes last, as in the second seed, which left it out); with a seed
    in random order. A broken picture, or one that is the same as an earlier one byte by byte, is
    left out and told, and the next takes its place. Nothing is at OUT before all is.

    Raises: DataError if SOURCE is no download, OUT is there already, or pictures are too few.
    """
    if train < 1 or test < 1:
        raise DataError(f"train {train} and test {test} must both be 1 picture of a class or more.")
    if out.exists():
        raise DataError(f"{out} is there already; name another folder with --out, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _pictures(source) as found, tempfile.TemporaryDirectory(dir=out.parent) as folder:
        left_out: list[str] = []
        names: dict[str, dict[str, tuple[str, ...]]] = {"train": {}, "test": {}}
        seen: dict[str, str] = {}
        for label in CLASSES:
            mine = _ordered([each for each in found if each.label == label], seed)
            good = _good(mine, seen, left_out)
            for part, count in (("train", train), ("test", test)):
                names[part][label] = _written(good, Path(folder) / "made" / part / label, count,
                                              f"{source} has too few pictures of a {label}: "
                                              f"{len(mine)}, of which {train} + {test} good ones "
                                              "are asked for. Ask for fewer with --train and "
                                              "--test.")
        _check(Path(folder) / "made")
        (Path(folder) / "made").rename(out)
    return Made(out, names, tuple(left_out))


@contextmanager
def _pictures(source: Path) -> Iterator[list[Picture]]:
    """All pictures of a download, for as long as its files are open."""
    if (source / _INNER).is_file() and not (source / "train").is_dir():
        source = source / _INNER  # the download, unpacked once
    if source.is_dir():
        yield _of_folder(source)
    elif not source.is_file():
        raise DataError(f"there is no file or folder {source}.")
    elif not zipfile.is_zipfile(source):
        raise DataError(f"{source} is no zip file. It must be Kaggle's download of Dogs vs. Cats, "
                        "as it came or unpacked.")
    else:
        with zipfile.ZipFile(source) as outer, tempfile.TemporaryFile() as copy:
            inner = [name for name in outer.namelist() if Path(name).name == _INNER]
            if not inner:
                yield _of_zip(outer, source)
                return
            _unpack(outer, inner[0], copy, source)
            with zipfile.ZipFile(copy) as archive:
                yield _of_zip(archive, source / inner[0])


def _unpack(outer: zipfile.ZipFile, name: str, copy: IO[bytes], source: Path) -> None:
    """The zip within the zip, which cannot be read where it is at a fair price."""
    if (size := outer.getinfo(name).file_size) > _LARGEST_ZIP:
        raise DataError(f"{name} in {source} has {size} bytes, unpacked; Kaggle's has half a "
                        f"gigabyte, and at most {_LARGEST_ZIP} are unpacked.")
    try:
        with outer.open(name) as packed:
            shutil.copyfileobj(packed, copy)
    except _OF_ZIPS as error:
        raise DataError(f"{name} in {source} cannot be read: {error}.") from error
    if not zipfile.is_zipfile(copy):
        raise DataError(f"{name} in {source} is no zip file.")


def _of_folder(source: Path) -> list[Picture]:
    files = sorted(file for file in source.rglob("*") if file.is_file())
    return _named({str(file): file.read_bytes for file in files}, source)


def _of_zip(archive: zipfile.ZipFile, place: Path) -> list[Picture]:
    def reader(name: str) -> Callable[[], bytes]:
        return lambda: _unpacked(archive, name)

    return _named({name: reader(name) for name in sorted(archive.namelist())}, place)


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip, if it is no larger than a picture; what it says of its size is not believed.
    """
    with archive.open(name) as packed:
        data = packed.read(_LARGEST_PICTURE + 1)
    if len(data) > _LARGEST_PICTURE:
        raise OSError(f"unpacked it has more than {_LARGEST_PICTURE} bytes")
    return data


def _named(files: Mapping[str, Callable[[], bytes]], source: Path) -> list[Picture]:
    """Those that have a name as in the download, one for each number."""
    found: dict[tuple[str, int], Picture] = {}
    for place, read in files.items():
        match = _NAME.fullmatch(Path(place).name)
        if match:
            key = (match[1].lower(), int(match[2]))
            if key in found:
                raise DataError(f"{source} has {key[0]}.{key[1]} twice: {found[key].place} and "
                                f"{place}.")
            found[key] = Picture(*key, place, read)
    lacking = [label for label in CLASSES if label not in {label for label, _ in found}]
    if lacking:
        few = ", ".join(list(files)[:3]) or "nothing"
        raise DataError(f"{source} has no {' and no '.join(f'{each}.0.jpg' for each in lacking)} "
                        f"or the like. It must be Kaggle's download of Dogs vs. Cats; it holds "
                        f"{few}{', ...' if len(files) > 3 else ''}.")
    return list(found.values())


def _ordered(pictures: list[Picture], seed: int | None) -> list[Picture]:
    ordered = sorted(pictures, key=lambda picture: (picture.number == 0, picture.number))
    if seed is None:
        return ordered
    generator = torch.Generator().manual_seed(seed)
    return [ordered[place] for place in torch.randperm(len(ordered), generator=generator).tolist()]


def _good(pictures: list[Picture], seen: dict[str, str], left_out: list[str],
          ) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of what can be read and was not there yet; the rest goes to left_out."""
    for picture in pictures:
        try:
            data = picture.read()
            opened(Path(picture.place), None, io.BytesIO(data))
        except DataError as error:
            left_out.append(str(error))
            continue
        except _OF_ZIPS as error:
            left_out.append(f"{picture.place} cannot be read: {error}")
            continue
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            left_out.append(f"{picture.place} is the same picture as {seen[digest]}")
            continue
        seen[digest] = picture.place
        yield f"{picture.label}.{picture.number}.jpg", data


def _written(good: Iterator[tuple[str, bytes]], folder: Path, count: int, if_few: str,
             ) -> tuple[str, ...]:
    folder.mkdir(parents=True)
    names: list[str] = []
    while len(names) < count:
        found = next(good, None)
        if found is None:
            raise DataError(if_few)
        name, data = found
        (folder / name).write_bytes(data)
        names.append(name)
    return tuple(names)


def _check(made: Path) -> None:
    """Read what was written: no picture of the one part is in the other."""
    train, test = ({hashlib.sha256(file.read_bytes()).digest(): file
                    for file in (made / part).rglob("*.jpg")} for part in ("train", "test"))
    for digest in train.keys() & test.keys():
        raise DataError(f"{train[digest].name} is in both parts, also as {test[digest].name}; the "
                        "files changed while they were read. Run it again.")
