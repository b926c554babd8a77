"""What every data set of the table keeps to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import files
import pytest
import torch

from harness.data import DATASETS, Data, Split, load

torch.set_num_threads(1)
SIZE = 16
BRING_A_TEST_PART = {"cifar10", "cifar100", "pets"}


@dataclass
class Loader:
    """Loads a data set of the table by name and seed; its files lie ready."""

    options: Mapping[str, Mapping[str, Any]]
    kept: dict[tuple[str, int], tuple[Data, dict[str, Split]]] = field(default_factory=dict)

    def __call__(self, name: str, seed: int = 0) -> tuple[Data, dict[str, Split]]:
        if (name, seed) not in self.kept:
            self.kept[name, seed] = self.again(name, seed)
        return self.kept[name, seed]

    def again(self, name: str, seed: int = 0) -> tuple[Data, dict[str, Split]]:
        data = load(name, size=SIZE, val=0.2, test=0.2, seed=seed, options=self.options[name])
        assert data.test_reads == 0
        return data, {"train": data.train, "val": data.val, "test": data.read_test()}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    with pytest.MonkeyPatch.context() as patch:
        yield Loader({name: make(tmp_path_factory.mktemp(name), patch)
                      for name, make in files.OPTIONS.items()})


def pictures(split: Split) -> list[bytes]:
    return [picture.numpy().tobytes() for picture in split.inputs]


def test_every_data_set_of_the_table_is_tried() -> None:
    assert set(DATASETS) == set(files.OPTIONS)


@pytest.mark.parametrize("name", DATASETS)
def test_tensors_have_the_promised_shapes_and_types(name: str, loaded: Loader) -> None:
    data, splits = loaded(name)
    for split in splits.values():
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == torch.int64
        assert tuple(split.inputs.shape) == (len(split), *data.input_shape)
        assert data.input_shape[1:] == (SIZE, SIZE)
        assert tuple(split.targets.shape[1:]) == {"classes": (), "pixels": (SIZE, SIZE)}[data.task]
        assert split.inputs.isfinite().all()
        counted = split.targets[split.targets != data.ignore_label]
        assert counted.min() >= 0
        assert counted.max() < data.num_classes


@pytest.mark.rows("R011")
@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_disjoint(name: str, loaded: Loader) -> None:
    """No picture of one split, pixel by pixel, is in another."""
    found = {part: set(pictures(split)) for part, split in loaded(name)[1].items()}
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]


@pytest.mark.rows("R011")
@pytest.mark.parametrize("name", DATASETS)
def test_every_class_has_its_share_of_every_split(name: str, loaded: Loader) -> None:
    """Where whole pictures have no class, all of them are one. Training takes the rounding."""
    data, splits = loaded(name)
    is_one = data.task == "pixels"
    counts = torch.stack([
        torch.bincount(torch.zeros(len(s), dtype=torch.long) if is_one else s.targets,
                       minlength=1 if is_one else data.num_classes)
        for s in splits.values()]).double()  # (3, K)
    whole = counts[:2].sum(0) if name in BRING_A_TEST_PART else counts.sum(0)
    assert ((counts[1] - 0.2 * whole).abs() <= 1).all()
    assert counts.min() >= 1
    if name not in BRING_A_TEST_PART:
        assert ((counts[2] - 0.2 * whole).abs() <= 1).all()


@pytest.mark.parametrize("name", DATASETS)
def test_the_same_seed_gives_the_same_splits_to_the_bit(name: str, loaded: Loader) -> None:
    again, splits = loaded.again(name)
    assert again.fingerprint == loaded(name)[0].fingerprint
    for part, split in loaded(name)[1].items():
        assert pictures(splits[part]) == pictures(split)
        assert torch.equal(splits[part].targets, split.targets)


@pytest.mark.parametrize("name", DATASETS)
def test_another_seed_gives_other_splits(name: str, loaded: Loader) -> None:
    one, other = loaded(name, 0)[0], loaded(name, 1)[0]
    assert one.fingerprint != other.fingerprint
    assert one.train.targets.tolist() != other.train.targets.tolist()


@pytest.mark.parametrize("name", sorted(BRING_A_TEST_PART))
def test_an_official_test_part_does_not_depend_on_the_seed(name: str, loaded: Loader) -> None:
    targets = [sorted(loaded(name, seed)[1]["test"].targets.flatten().tolist()) for seed in (0, 1)]
    assert targets[0] == targets[1]
