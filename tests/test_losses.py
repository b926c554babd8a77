"""What is added to the cross-entropy, against numpy and numbers worked out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.labels import IGNORE
from harness.losses import (
    Mixture,
    Terms,
    distances,
    edge_weighted,
    edges,
    generalised_dice,
    surface,
)


def halves() -> Tensor:
    """One mask of 6 x 6: the three columns on the left are class 0, the others class 1."""
    return torch.tensor([[0, 0, 0, 1, 1, 1]] * 6).unsqueeze(0)


def logits(count: int = 2, classes: int = 3, side: int = 6) -> Tensor:
    return torch.randn(count, classes, side, side, generator=torch.Generator().manual_seed(1))


def masks(count: int = 2, classes: int = 3, side: int = 6) -> Tensor:
    return torch.randint(0, classes, (count, side, side),
                         generator=torch.Generator().manual_seed(2))


@pytest.mark.rows("R012")
@pytest.mark.parametrize(("width", "columns"), [
    (1, [2, 3]), (2, [1, 2, 3, 4]), (3, [0, 1, 2, 3, 4, 5])])
def test_a_pixel_is_near_an_edge_if_another_class_is_so_few_columns_away(
        width: int, columns: list[int]) -> None:
    found = edges(halves(), width)[0]
    assert [column for column in range(6) if found[:, column].all()] == columns
    assert found.any(0).sum() == len(columns)


def test_pixels_that_count_for_nothing_make_no_edge() -> None:
    mask = halves()
    mask[:, :, 3:] = IGNORE
    assert not edges(mask, 3).any()


@pytest.mark.rows("R073")
def test_edge_weighted_cross_entropy_is_the_mean_of_one_plus_weight_times_each() -> None:
    given, mask = logits(1, 2), halves()
    values = given[0].double().numpy()
    shares = np.exp(values) / np.exp(values).sum(0)
    each = -np.log(np.where(mask[0].numpy() == 0, shares[0], shares[1]))
    each[:, [2, 3]] *= 1 + 4.0
    assert float(edge_weighted(given, mask, 4.0, 1)) == pytest.approx(each.mean(), rel=1e-5)


def test_without_weight_it_is_pytorchs_cross_entropy_also_where_pixels_do_not_count() -> None:
    given, mask = logits(), masks()
    mask[:, 0] = IGNORE
    assert float(edge_weighted(given, mask, 0.0, 3, 0.1)) == pytest.approx(
        float(nn.CrossEntropyLoss(label_smoothing=0.1)(given, mask)), rel=1e-5)


@pytest.mark.rows("R073")
def test_generalised_dice_is_the_papers_formula() -> None:
    given, mask = logits(), masks()
    values = given.double().numpy()
    shares = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    found = []
    for share, truth in zip(shares, mask.numpy()):
        above = below = 0.0
        for c in range(3):
            is_c = (truth == c).astype(float)
            weight = 1 / is_c.sum() ** 2
            above += weight * (share[c] * is_c).sum()
            below += weight * (share[c] + is_c).sum()
        found.append(1 - 2 * above / below)
    assert float(generalised_dice(given, mask)) == pytest.approx(np.mean(found), rel=1e-5)


def test_dice_is_nothing_for_a_sure_and_right_answer_and_near_one_for_a_wrong_one() -> None:
    mask = halves()
    right = torch.stack([mask == 0, mask == 1], 1).float() * 200 - 100
    assert float(generalised_dice(right, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(generalised_dice(-right, mask)) == pytest.approx(1.0, abs=1e-6)


def test_a_class_that_is_not_there_brings_no_nan() -> None:
    given = logits(1, 3).requires_grad_()
    loss = generalised_dice(given, halves()) + surface(given, halves())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(given.grad).all()  # type: ignore[arg-type]


@pytest.mark.rows("R012")
def test_signed_distances_are_columns_to_the_border_in_shares_of_the_diagonal() -> None:
    truth = torch.stack([halves()[0] == 0, halves()[0] == 1]).unsqueeze(0).float()
    found = distances(truth)[0, 0] * np.hypot(6, 6)
    assert found[0].tolist() == pytest.approx([-2, -1, 0, 1, 2, 3], abs=1e-6)


@pytest.mark.rows("R073")
def test_the_surface_loss_is_less_the_further_inside_a_class_its_pixels_lie() -> None:
    mask = halves()
    right = torch.stack([mask == 0, mask == 1], 1).float() * 20 - 10
    assert float(surface(right, mask)) < float(surface(torch.zeros_like(right), mask))
    assert float(surface(torch.zeros_like(right), mask)) < float(surface(-right, mask))
    inside = np.array([-2, -1, 0]) / np.hypot(6, 6)
    assert float(surface(right * 50, mask)) == pytest.approx(inside.mean() / 2, abs=1e-4)


@pytest.mark.rows("R072")
def test_dice_gives_way_to_surface_over_the_epochs() -> None:
    given, mask = logits(), masks()
    mixture = Mixture(Terms(dice=2.0, surface=3.0, blend_epochs=4))
    plain = float(nn.functional.cross_entropy(given, mask))
    one, other = float(generalised_dice(given, mask)), float(surface(given, mask))
    for epoch, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        assert float(mixture.at(epoch)(given, mask)) == pytest.approx(
            plain + 2 * (1 - share) * one + 3 * share * other, rel=1e-5)


def test_without_terms_the_loss_is_pytorchs_own_to_the_bit() -> None:
    given, mask = logits(), masks()
    assert torch.equal(Mixture(Terms(), 0.1).at(3)(given, mask),
                       nn.CrossEntropyLoss(label_smoothing=0.1)(given, mask))
