"""What every data set of the table keeps to."""

from functools import cache

import pytest
import torch

from harness.data import DATASETS, Data, Split, load

torch.set_num_threads(1)
SIZE = 16


@cache
def loaded(name: str, seed: int = 0) -> tuple[Data, Split]:
    data = load(name, size=SIZE, val=0.2, test=0.2, seed=seed)
    return data, data.read_test()


def splits(name: str, seed: int = 0) -> dict[str, Split]:
    data, test = loaded(name, seed)
    return {"train": data.train, "val": data.val, "test": test}


def pictures(split: Split) -> list[bytes]:
    return [picture.numpy().tobytes() for picture in split.inputs]


def test_the_table_is_not_empty() -> None:
    assert DATASETS


@pytest.mark.parametrize("name", DATASETS)
def test_tensors_have_the_promised_shapes_and_types(name: str) -> None:
    data, _ = loaded(name)
    for split in splits(name).values():
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == torch.int64
        assert tuple(split.inputs.shape) == (len(split.targets), *data.input_shape)
        assert data.input_shape[1:] == (SIZE, SIZE)
        assert split.inputs.isfinite().all()


@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_disjoint(name: str) -> None:
    """No picture of one split, pixel by pixel, is in another."""
    found = {part: set(pictures(split)) for part, split in splits(name).items()}
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]


@pytest.mark.parametrize("name", DATASETS)
def test_every_class_has_its_share_of_every_split(name: str) -> None:
    data, _ = loaded(name)
    counts = torch.stack([torch.bincount(s.targets, minlength=data.num_classes)
                          for s in splits(name).values()]).double()  # (3, K)
    expected = counts.sum(0) * torch.tensor([[0.6], [0.2], [0.2]])
    assert ((counts - expected).abs() <= 1).all()  # training takes the rounding of both others


@pytest.mark.parametrize("name", DATASETS)
def test_the_same_seed_gives_the_same_splits_to_the_bit(name: str) -> None:
    again = load(name, size=SIZE, val=0.2, test=0.2, seed=0)
    assert again.fingerprint == loaded(name)[0].fingerprint
    assert pictures(again.train) == pictures(splits(name)["train"])
    assert pictures(again.read_test()) == pictures(splits(name)["test"])


@pytest.mark.parametrize("name", DATASETS)
def test_another_seed_gives_other_splits(name: str) -> None:
    one, other = loaded(name, 0)[0], loaded(name, 1)[0]
    assert one.fingerprint != other.fingerprint
    assert one.train.targets.tolist() != other.train.targets.tolist()


@pytest.mark.parametrize("name", DATASETS)
def test_loading_opens_no_test_split(name: str) -> None:
    assert load(name, size=SIZE).test_reads == 0
