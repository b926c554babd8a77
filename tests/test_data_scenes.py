"""Digits on textured ground: what is painted is what the mask says, and nothing is shared."""

from importlib import import_module
from typing import Any

import pytest
import torch

from harness.data import load
from harness.data.splits import stratified
from harness.errors import DataError


def test_scenes_have_a_ground_and_ten_digits() -> None:
    data = load("scenes", size=[32, 48], options={"count": 100})
    assert (data.task, data.input_shape) == ("pixels", (1, 32, 48))
    assert data.labels == ("ground", *"0123456789")
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [60, 20, 20]
    assert set(data.train.targets.unique().tolist()) == set(range(11))
    ground = (data.train.targets == 0).double().mean()
    assert 0.7 < ground < 0.98
    assert all((mask != 0).any() for mask in data.train.targets)


def test_digits_are_brighter_than_the_ground_which_is_textured() -> None:
    data = load("scenes", size=64, options={"count": 50})
    for picture, mask in zip(data.train.inputs[:, 0], data.train.targets):
        assert picture[mask > 0].mean() > picture[mask == 0].mean() + 1
        assert picture[mask == 0].std() > 0.1


def test_the_shapes_are_those_of_the_digits() -> None:
    """One digit a scene at 8 of 16 pixels, drawn as it comes: its ink is one of the real ones."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.as_tensor(found.images) / 16 > 6 / 16  # (1797, 8, 8)
    numbers = torch.as_tensor(found.target)
    data = load("scenes", size=16, options={"count": 100, "digits": 1})
    sizes = set()
    for mask in data.train.targets:
        rows, columns = (mask > 0).nonzero().T
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        sizes.add(height)
        number = int(mask.max()) - 1
        assert set(mask.unique().tolist()) == {0, number + 1}
        if height == 8:
            shape = mask[rows.min():rows.max() + 1, columns.min():columns.max() + 1] > 0
            alike = [real for real in ink[numbers == number]
                     if any(torch.equal(real[:, left:left + width], shape)
                            for left in range(9 - width))]
            assert alike
    assert 8 in sizes
    assert len(sizes) > 2


def test_a_digit_of_one_split_is_in_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scene draws from the rows of its own split: seen by whom the ink is asked for."""
    asked: list[list[int]] = []
    module = import_module("harness.data.scenes")
    real = module._scene

    def watched(ink: Any, numbers: Any, pool: Any, *rest: Any) -> Any:
        asked.append(sorted(pool.tolist()))
        return real(ink, numbers, pool, *rest)

    monkeypatch.setattr(module, "_scene", watched)
    load("scenes", size=16, options={"count": 10}, seed=3)
    from sklearn.datasets import load_digits

    rows = stratified(torch.as_tensor(load_digits().target), val=0.2, test=0.2, seed=3)
    train, val, test = (sorted(part.tolist()) for part in rows)
    assert asked == [train] * 6 + [val] * 2 + [test] * 2
    assert not set(train) & set(val) | set(train) & set(test) | set(val) & set(test)


@pytest.mark.parametrize(("size", "options", "words"), [
    (15, {}, "scenes need at least 16 pixels"), (32, {"count": 4}, "count of at least 5"),
    (32, {"digits": 0}, "1 digit or more")])
def test_scenes_that_cannot_be_are_refused(size: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load("scenes", size=size, options=options)
