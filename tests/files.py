"""Tiny data sets on disk, in the formats of the real ones; made of seeded noise."""

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def noise(seed: int, *shape: int, high: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def picture(file: Path, seed: int = 0, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Path:
    """A picture of (height, width); PNG keeps it to the bit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    depth = {"RGB": (3,), "RGBA": (4,), "LA": (2,), "L": ()}[mode]
    Image.fromarray(noise(seed, *size, *depth), mode).save(file)
    return file


def mask(file: Path, values: Any) -> Path:
    """A grey mask of these numbers (h, w), or a coloured one (h, w, 3)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(file)
    return file


def by_class(root: Path, classes: Sequence[str] = "abc", each: int = 10, seed: int = 0) -> Path:
    """ROOT/CLASS/0.png, 1.png, ..."""
    for place, name in enumerate(classes):
        for number in range(each):
            picture(root / name / f"{number}.png", 1000 * (seed + 1) + 100 * place + number)
    return root


def camvid(root: Path, parts: Mapping[str, int], num_classes: int = 3, size: tuple[int, int] =
           (20, 24)) -> Path:
    """ROOT/train/0.jpg with ROOT/trainannot/0.png, and so on; masks of numbers."""
    for place, (part, count) in enumerate(parts.items()):
        for number in range(count):
            seed = 100 * place + number
            picture(root / part / f"{number}.jpg", seed, size)
            mask(root / f"{part}annot" / f"{number}.png", noise(seed, *size, high=num_classes))
    return root


CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                 "truck")
# Eight classes of four coarse ones stand for the hundred of twenty.
CIFAR100_NAMES = {"aquarium_fish": "fish", "bed": "household_furniture",
                  "bottle": "food_containers", "chair": "household_furniture",
                  "dolphin": "aquatic_mammals", "otter": "aquatic_mammals",
                  "plate": "food_containers", "shark": "fish"}


def _rows(seed: int, count: int) -> Bytes:
    return noise(seed, count, 3072)


def _pickled(file: Path, content: Any, checksums: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    checksums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, each: int = 2) -> Path:
    """Five batches of `each` pictures of each class, and a test batch, with their checksums."""
    sums: dict[str, str] = {}
    folder = root / CIFAR10.base_folder
    labels = [label for label in range(10) for _ in range(each)]
    for place, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        _pickled(folder / name, {"data": _rows(place, len(labels)), "labels": labels,
                                 "batch_label": name}, sums)
    _pickled(folder / "batches.meta", {"label_names": list(CIFAR10_NAMES)}, sums)
    _believe(monkeypatch, CIFAR10, sums)
    return root


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch, each: int = 10) -> Path:
    """`each` pictures of eight classes to train on, half as many to test."""
    sums: dict[str, str] = {}
    folder = root / CIFAR100.base_folder
    coarse = sorted(set(CIFAR100_NAMES.values()))
    for seed, (name, count) in enumerate({"train": each, "test": each // 2}.items()):
        fine = [label for label in range(len(CIFAR100_NAMES)) for _ in range(count)]
        above = [coarse.index(list(CIFAR100_NAMES.values())[label]) for label in fine]
        _pickled(folder / name, {"data": _rows(seed, len(fine)), "fine_labels": fine,
                                 "coarse_labels": above}, sums)
    _pickled(folder / "meta", {"fine_label_names": list(CIFAR100_NAMES),
                               "coarse_label_names": coarse}, sums)
    _believe(monkeypatch, CIFAR100, sums)
    return root


def _believe(monkeypatch: pytest.MonkeyPatch, kind: type[CIFAR10], sums: Mapping[str, str],
             ) -> None:
    """Put the checksums of our files where torchvision keeps those of the real ones."""
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(kind, name, [[file, sums[file]] for file, _ in getattr(kind, name)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})


def pets(root: Path, each: int = 10) -> Path:
    """Two breeds of cats and one of dogs, with lists and trimaps."""
    folder = root / "oxford-iiit-pet"
    breeds = {"Abyssinian": (1, 1, 1), "Sphynx": (2, 1, 2), "pug": (3, 2, 1)}
    for part, (list_name, count) in enumerate({"trainval": each, "test": each // 2}.items()):
        lines = []
        for name, numbers in breeds.items():
            for number in range(count):
                stem, seed = f"{name}_{part}{number}", 100 * part + 10 * numbers[0] + number
                picture(folder / "images" / f"{stem}.jpg", seed)
                mask(folder / "annotations" / "trimaps" / f"{stem}.png",
                     1 + noise(seed, 20, 24, high=3))
                lines.append(" ".join([stem, *map(str, numbers)]))
        (folder / "annotations" / f"{list_name}.txt").write_text("\n".join(lines) + "\n")
    return root


def kaggle(root: Path, each: int = 8) -> Path:
    """ROOT/train/cat.0.jpg, dog.0.jpg, ... as the download is when it is unpacked."""
    for place, label in enumerate(("cat", "dog")):
        for number in range(each):
            picture(root / "train" / f"{label}.{number}.jpg", 100 * place + number)
    return root


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for each in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(each, each.relative_to(folder))
    return file


# Name in DATASETS -> what makes its files in a folder and returns its options.
OPTIONS: Mapping[str, Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]] = {
    "cifar10": lambda root, patch: {"root": str(cifar10(root, patch))},
    "cifar100": lambda root, patch: {"root": str(cifar100(root, patch))},
    "digits": lambda root, patch: {},
    "folder": lambda root, patch: {"root": str(by_class(root))},
    "masks": lambda root, patch: {"root": str(camvid(root, {"train": 20})),
                                  "colours": {"sky": 0, "road": 1, "car": 2}},
    "pets": lambda root, patch: {"root": str(pets(root))},
    "scenes": lambda root, patch: {"count": 40},
}
