"""Data sets: what a split promises, what a person's own set must be, and the digits."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from harness.data import Data, from_tensors, load, sides, stratified
from harness.data.splits import TEST, TRAIN, VAL, few_of_each
from harness.errors import ConfigError, DataError, UnknownName

torch.set_num_threads(1)


def toy(*, size: int, val: float, test: float, seed: int, channels: int = 2) -> Data:
    """Thirty noisy pictures of three classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = 7 + 3 * torch.randn(30, channels, size, size, generator=generator)
    return from_tensors("toy", inputs, torch.arange(30) % 3, labels=["a", "b", "c"],
                        val=val, test=test, seed=seed)


def not_data(*, size: int, val: float, test: float, seed: int) -> list[int]:
    return [1, 2]


def without_shares(*, size: int, seed: int) -> Data:
    return toy(size=size, val=0.2, test=0.2, seed=seed)


def broken(*, size: int, val: float, test: float, seed: int) -> Data:
    raise FileNotFoundError("pictures/")


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.rows("R011")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(9, 40), min_size=1, max_size=6),  # fewer may leave none
       val=st.floats(0.05, 0.45), test=st.floats(0.05, 0.45), seed=st.integers(0, 9))
def test_every_row_is_in_exactly_one_split_and_every_class_in_proportion(
        counts: list[int], val: float, test: float, seed: int) -> None:
    targets = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    train, held, tested = (rows.numpy() for rows in
                           stratified(targets, val=val, test=test, seed=seed))
    assert sorted(np.concatenate([train, held, tested])) == list(range(sum(counts)))
    for label, n in enumerate(counts):
        for rows, share in ((held, val), (tested, test)):
            found = int((targets.numpy()[rows] == label).sum())
            assert found == 1 or abs(found - share * n) <= 0.5
        assert (targets.numpy()[train] == label).any()


def test_another_seed_is_another_split() -> None:
    targets = torch.arange(100) % 5
    one, same, other = (stratified(targets, val=0.2, test=0.2, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert set(one.tolist()) != set(other.tolist())


def test_the_first_examples_are_a_fair_sample() -> None:
    """Whoever ranks on the first few examples must meet all classes, sorted source or not."""
    targets = torch.arange(10).repeat_interleave(100)  # sorted by class
    for rows in stratified(targets, val=0.2, test=0.2, seed=0):
        assert set(targets[rows[:80]].tolist()) == set(range(10))


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (1.2, 0.2),
                                           (-0.1, 0.2), (float("nan"), 0.2)])
def test_shares_that_leave_a_split_empty_are_refused(val: float, test: float) -> None:
    with pytest.raises(DataError, match="must be shares above 0"):
        stratified(torch.arange(9) % 3, val=val, test=test, seed=0)


def test_a_class_too_small_for_three_splits_is_refused() -> None:
    with pytest.raises(DataError, match="class 1 has 2 examples, too few"):
        stratified(torch.tensor([0, 0, 0, 0, 1, 1]), val=0.2, test=0.2, seed=0)


# --- Data ----------------------------------------------------------------------------------------


def test_scaling_is_learnt_from_the_training_split_alone() -> None:
    """Channel by channel; the other splits are scaled by it, so they are only nearly at 0 and 1."""
    data = toy(size=6, val=0.2, test=0.2, seed=0)
    train = data.train.inputs.double().numpy()
    np.testing.assert_allclose(train.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=(0, 2, 3)), 1, atol=1e-6)
    held = data.val.inputs.double().numpy()
    assert (abs(held.mean(axis=(0, 2, 3))) > 1e-4).all()


def test_what_is_learnt_from_training_does_not_depend_on_the_other_splits() -> None:
    """Change validation and test pictures beyond recognition: the training split stays the same."""
    inputs = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(30) % 3
    trained = stratified(targets, val=0.2, test=0.2, seed=3)[0]
    outside = torch.ones(30, dtype=torch.bool)
    outside[trained] = False
    changed = torch.where(outside[:, None, None, None], inputs * 100 + 5, inputs)
    made = [from_tensors("x", x, targets, labels="abc", val=0.2, test=0.2, seed=3)
            for x in (inputs, changed)]
    assert torch.equal(made[0].train.inputs, made[1].train.inputs)
    assert not torch.equal(made[0].val.inputs, made[1].val.inputs)


@pytest.mark.parametrize(("scaling", "kind"), [("train", torch.uint8), ("imagenet", torch.uint8),
                                               ("train", torch.float32)])
def test_the_scaling_brings_inputs_back_to_their_values(scaling: str, kind: torch.dtype) -> None:
    values = torch.randint(3, 200, (40, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    data = from_tensors("x", values.to(kind), torch.arange(40) % 2, labels=["a", "b"], val=0.2,
                        test=0.2, seed=0, scaling=scaling)
    found = data.scaling
    assert found is not None
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (found.mean, found.deviation))
    given = {tuple(picture.flatten().tolist()) for picture in values}
    for split in (data.train, data.val, data.read_test()):
        back = (split.inputs * deviation + mean).round().long()
        assert {tuple(picture.flatten().tolist()) for picture in back} <= given
    trained = data.train.inputs * deviation + mean
    assert (found.low, found.high) == ((0.0, 255.0) if kind == torch.uint8 else (
        pytest.approx(float(trained.min())), pytest.approx(float(trained.max()))))


def test_a_channel_that_never_changes_becomes_zero() -> None:
    inputs = torch.stack([torch.full((12, 4, 4), 9.0), torch.randn(12, 4, 4)], dim=1)
    data = from_tensors("x", inputs, torch.arange(12) % 2, labels="ab", val=0.2, test=0.2, seed=0)
    assert (data.train.inputs[:, 0] == 0).all()


@pytest.mark.rows("R011")
def test_the_test_split_cannot_be_had_without_being_counted() -> None:
    data = toy(size=4, val=0.2, test=0.2, seed=0)
    assert data.test_reads == 0
    elsewhere = data.to("cpu")
    assert len(elsewhere.read_test()) == 6
    data.read_test()
    assert data.test_reads == elsewhere.test_reads == 2
    public = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    assert [n for n, v in public.items() if type(v).__name__ == "Split"] == ["train", "val"]


def test_data_moves_as_a_whole_and_the_test_split_follows() -> None:
    data = toy(size=4, val=0.2, test=0.2, seed=0).to("meta")
    for split in (data.train, data.val, data.read_test()):
        assert split.inputs.device.type == split.targets.device.type == "meta"


def test_the_fingerprint_covers_every_split_and_the_labels() -> None:
    inputs = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(12) % 2
    rows = stratified(targets, val=0.2, test=0.2, seed=0)

    def fingerprint(x: torch.Tensor, labels: str = "ab") -> str:
        return from_tensors("x", x, targets, labels=labels, val=0.2, test=0.2, seed=0).fingerprint

    found = [fingerprint(inputs), fingerprint(inputs, "ac")]
    for part in rows:
        changed = inputs.clone()
        changed[part[0], 0, 0, 0] += 1
        found.append(fingerprint(changed))
    assert len(set(found)) == 5
    assert fingerprint(inputs.clone()) == found[0]
    assert len(found[0]) == hashlib.sha256().digest_size * 2


def test_data_prints_without_its_pixels_and_without_the_test_split() -> None:
    text = repr(toy(size=4, val=0.2, test=0.2, seed=0))
    assert "Split(18 of 2x4x4 on cpu)" in text
    assert "tensor(" not in text
    assert "_test" not in text


@pytest.mark.parametrize(("inputs", "targets", "words"), [
    (torch.zeros(6, 4, 4), torch.arange(6) % 2, r"\(N, C, H, W\)"),
    (torch.zeros(6, 1, 4, 4), torch.arange(5) % 2, r"targets \(N,\)"),
    (torch.zeros(0, 1, 4, 4), torch.zeros(0).long(), "with examples"),
    (torch.zeros(6, 1, 4, 4), torch.arange(6), "0 to 1, one a label"),
    (torch.zeros(6, 1, 4, 4), torch.arange(6) % 2 - 1, "0 to 1, one a label"),
    (torch.zeros(6, 1, 4, 4), torch.rand(6), "whole numbers"),
    (torch.full((6, 1, 4, 4), float("nan")), torch.arange(6) % 2, "finite"),
])
def test_tensors_that_are_no_pictures_with_classes_are_refused(
        inputs: torch.Tensor, targets: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_tensors("x", inputs, targets, labels="ab", val=0.2, test=0.2, seed=0)


# --- classes of pixels, parts, scalings -----------------------------------------------------------


def masks(count: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, 1, 4, 6, generator=generator),
            torch.randint(0, 3, (count, 4, 6), generator=generator))


def test_pixels_may_have_classes_and_keep_to_their_pictures() -> None:
    """Every picture is its mask, scaled: so it is in every split."""
    _, targets = masks()
    data = from_tensors("x", targets[:, None].float(), targets, labels="abc", val=0.2, test=0.3,
                        seed=0)
    assert (data.task, data.ignore_label) == ("pixels", -100)
    assert data.output_shape == (3, 4, 6)
    assert [len(s) for s in (data.train, data.val, data.read_test())] == [10, 4, 6]
    for split in (data.train, data.val, data.read_test()):
        values = [split.inputs[:, 0][split.targets == label].unique() for label in range(3)]
        assert [len(found) for found in values] == [1, 1, 1]


def test_whole_pictures_ignore_nothing() -> None:
    data = toy(size=4, val=0.2, test=0.2, seed=0)
    assert (data.task, data.ignore_label, data.output_shape) == ("classes", None, (3,))


def test_ignored_pixels_become_what_pytorchs_losses_pass_over() -> None:
    inputs, targets = masks()
    targets[:, 0] = 255
    data = from_tensors("x", inputs, targets, labels="abc", val=0.2, test=0.2, seed=0,
                        ignore_label=255)
    for split in (data.train, data.val, data.read_test()):
        assert (split.targets[:, 0] == -100).all()
        assert (split.targets[:, 1:] >= 0).all()
    logits = torch.randn(len(data.val), 3, 4, 6)
    loss = torch.nn.functional.cross_entropy(logits, data.val.targets)
    by_hand = torch.nn.functional.cross_entropy(logits[:, :, 1:], data.val.targets[:, 1:])
    assert loss == pytest.approx(float(by_hand), abs=1e-6)


@pytest.mark.parametrize(("ignore", "shape", "words"), [
    (2, (20, 4, 6), "must be none of the classes 0 to 2"),
    (255, (20,), "it is for pixels"),
    (None, (20, 6, 4), r"targets \(N,\) or \(N, H, W\)")])
def test_targets_of_pixels_that_do_not_fit_are_refused(ignore: int | None, shape: tuple[int, ...],
                                                       words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_tensors("x", masks()[0], torch.zeros(shape, dtype=torch.long), labels="abc", val=0.2,
                     test=0.2, seed=0, ignore_label=ignore)


def test_masks_that_count_for_nothing_everywhere_are_refused() -> None:
    with pytest.raises(DataError, match="every pixel is 9, which counts for nothing"):
        from_tensors("x", masks()[0], torch.full((20, 4, 6), 9), labels="abc", val=0.2, test=0.2,
                     seed=0, ignore_label=9)


@pytest.mark.rows("R011")
@pytest.mark.parametrize(("brought", "sizes"), [
    ([TRAIN, TEST], (32, 8, 20)), ([TRAIN, VAL, TEST], (20, 20, 20)), ([TRAIN, VAL], (28, 20, 12))])
def test_parts_that_a_data_set_brings_stay_and_others_are_taken_from_training(
        brought: list[int], sizes: tuple[int, int, int]) -> None:
    """Every picture carries its number; two classes in equal shares."""
    count = 20 * len(brought) if len(brought) == 3 else 60
    parts = torch.tensor(brought).repeat_interleave(20)
    if len(brought) == 2:
        parts = torch.cat([parts, torch.full((20,), TRAIN)])
    inputs = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = from_tensors("x", inputs, torch.arange(count) % 2, labels="ab", val=0.2, test=0.3,
                        seed=0, parts=parts)
    splits = (data.train, data.val, data.read_test())
    assert tuple(map(len, splits)) == sizes
    step = splits[0].inputs[:, 0, 0, 0].double().unique().diff().min()
    base = min(s.inputs.min() for s in splits)
    rows = [((s.inputs[:, 0, 0, 0].double() - base) / step).round().long() for s in splits]
    assert sorted(torch.cat(rows).tolist()) == list(range(count))
    for part, found in zip((TRAIN, VAL, TEST), rows):
        if part in brought and part != TRAIN:
            assert set(found.tolist()) == set((parts == part).nonzero().flatten().tolist())
    for split in splits:
        assert torch.bincount(split.targets).tolist() == [len(split) // 2] * 2
        assert split.targets.tolist() != sorted(split.targets.tolist())


def test_parts_without_training_are_refused() -> None:
    inputs, targets = masks()
    with pytest.raises(DataError, match="some are for training"):
        from_tensors("x", inputs, targets, labels="abc", val=0.2, test=0.2, seed=0,
                     parts=torch.full((20,), TEST))


@pytest.mark.rows("R007", "R009")
def test_known_scalings_are_those_of_torchvision() -> None:
    """ImageNet's mean and deviation, and a half, of pictures from 0 to 1."""
    pictures = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8,
                             generator=torch.Generator().manual_seed(0))
    unit = v2.functional.to_dtype(pictures, torch.float32, scale=True)
    for scaling, mean, std in (("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                               ("half", [0.5] * 3, [0.5] * 3)):
        expected = v2.functional.normalize(unit, mean, std)
        data = from_tensors("x", pictures, torch.arange(12) % 2, labels="ab", val=0.25, test=0.25,
                            seed=0, scaling=scaling)
        found = torch.cat([s.inputs for s in (data.train, data.val, data.read_test())])
        order = [int((expected - picture).abs().amax((1, 2, 3)).argmin()) for picture in found]
        assert sorted(order) == list(range(12))
        torch.testing.assert_close(found, expected[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("scaling", "inputs", "words"), [
    ("imagnet", torch.zeros(6, 3, 2, 2, dtype=torch.uint8), "unknown scaling.*Nearest: imagenet"),
    ("half", torch.zeros(6, 3, 2, 2), "for pictures of bytes; these are torch.float32"),
    ("imagenet", torch.zeros(6, 1, 2, 2, dtype=torch.uint8), "3 channels; these pictures have 1")])
def test_scalings_that_do_not_fit_are_refused(scaling: str, inputs: torch.Tensor, words: str,
                                              ) -> None:
    with pytest.raises(DataError, match=words):
        from_tensors("x", inputs, torch.arange(6) % 2, labels="ab", val=0.2, test=0.2, seed=0,
                     scaling=scaling)


def test_a_few_of_each_class_are_taken_from_every_part() -> None:
    targets = torch.arange(60) % 3
    parts = torch.arange(60) // 30
    rows = few_of_each(targets, parts, 4, seed=0)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.bincount(3 * parts[rows] + targets[rows]).tolist() == [4] * 6
    assert rows.tolist() != few_of_each(targets, parts, 4, seed=1).tolist()
    assert len(few_of_each(targets, parts, 99, seed=0)) == 60
    assert len(few_of_each(targets, parts, None, seed=0)) == 60


@pytest.mark.parametrize(("size", "found"), [(8, (8, 8)), ([3, 5], (3, 5)), ((7, 2), (7, 2))])
def test_one_number_is_both_sides(size: Any, found: tuple[int, int]) -> None:
    assert sides(size) == found


@pytest.mark.parametrize("size", [0, [4, 0], [4], [1, 2, 3]])
def test_sizes_without_pixels_are_refused(size: Any) -> None:
    with pytest.raises(DataError, match="data.size is"):
        sides(size)


def test_what_was_split_before_there_were_pixels_and_parts_is_split_so_still() -> None:
    """Printed by the code of that time: a study goes on with its stages."""
    assert load("digits", size=8).fingerprint.startswith("99f29f4ecc519129")
    assert load("digits", size=32).fingerprint.startswith("b2a939848121efd0")


# --- load ----------------------------------------------------------------------------------------


def test_a_persons_own_data_set_is_loaded_by_its_name() -> None:
    data = load(f"{__name__}:toy", size=5, val=0.1, test=0.3, seed=0, options={"channels": 4})
    assert data.input_shape == (4, 5, 5)
    assert (len(data.train), len(data.val), len(data.read_test())) == (18, 3, 9)


@pytest.mark.parametrize(("name", "options", "error", "words"), [
    ("digit", {}, UnknownName, "unknown data set 'digit'. Nearest: digits.*Or your own"),
    ("digits", {"siz": 3}, ConfigError, "unknown option of data set digits 'siz'"),
    (f"{__name__}:toy", {"chanels": 3}, ConfigError, "Nearest: channels"),
    (f"{__name__}:not_data", {}, DataError, "returned a list, not harness.data.Data"),
    (f"{__name__}:without_shares", {}, DataError, "it does not take val, test"),
    (f"{__name__}:broken", {}, DataError, "failed: FileNotFoundError: pictures/"),
])
def test_a_data_set_that_cannot_be_loaded_says_why(
        name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load(name, size=8, options=options)


# --- digits --------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_pictures() -> None:
    """At 8 x 8 nothing is interpolated: undo the scaling, and the original rows are back."""
    from sklearn.datasets import load_digits

    data = load("digits", size=8)
    splits = [data.train, data.val, data.read_test()]
    pixels = np.concatenate([s.inputs.double().numpy().reshape(len(s), 64) for s in splits])
    targets = np.concatenate([s.targets.numpy() for s in splits])
    original = load_digits()
    background, brightest = pixels.min(), pixels.max()
    undone = np.rint((pixels - background) / (brightest - background) * 16)
    found = {(*row, target) for row, target in zip(undone.tolist(), targets.tolist())}
    assert found == {(*row, target) for row, target in
                     zip(original.data.tolist(), original.target.tolist())}
    assert len(pixels) == 1797


def test_digits_are_split_by_sixty_twenty_twenty() -> None:
    data = load("digits", size=32)
    assert data.input_shape == (1, 32, 32)
    assert data.labels == tuple("0123456789")
    assert data.num_classes == 10
    shares = [len(s) / 1797 for s in (data.train, data.val, data.read_test())]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.003)


def test_digits_grow_bilinearly() -> None:
    """Twice the side: each new pixel is 9/16, 3/16, 3/16, 1/16 of its four old neighbours."""
    small, large = (load("digits", size=s).train for s in (8, 16))
    old = small.inputs[:, 0, 3:5, 3:5].reshape(-1, 4)
    new = large.inputs[:, 0, 7, 7]
    mixed = old @ torch.tensor([9.0, 3.0, 3.0, 1.0]) / 16
    # The two sizes are scaled by their own mean and deviation: equal up to one straight line.
    assert torch.corrcoef(torch.stack([mixed, new]))[0, 1] == pytest.approx(1, abs=1e-5)


def test_digits_of_no_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"data.size is 0"):
        load("digits", size=0)
