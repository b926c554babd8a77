"""Training does what plain PyTorch does, repeats to the bit, and says when it diverged."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from harness.errors import TrainingError
from harness.schedules import SCHEDULES
from harness.train import Recipe, Score, batches, train


@dataclass
class Examples:
    inputs: Tensor
    targets: Tensor


def data(count: int = 20) -> Examples:
    generator = torch.Generator().manual_seed(1)
    return Examples(torch.randn(count, 1, 8, 8, generator=generator),
                    torch.randint(0, 3, (count,), generator=generator))


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 3))


def unscored(_: nn.Module) -> Score:
    return Score(0.0, 0.0)


@pytest.mark.rows("R013", "R065")
def test_an_epoch_is_plain_sgd_over_the_shuffled_batches() -> None:
    examples, recipe = data(), Recipe(epochs=1, lr=0.1, momentum=0.9, batch_size=8)
    model, other = net(), net()
    train(model, examples, recipe, seed=5, validate=unscored)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    other.train()
    for chosen in (order[:8], order[8:16], order[16:]):
        optimizer.zero_grad()
        logits = other(examples.inputs[chosen])
        nn.functional.cross_entropy(logits, examples.targets[chosen]).backward()
        optimizer.step()
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.rows("R014")
def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    recipe = Recipe(epochs=2, lr=0.05, augment="shift", batch_size=8)

    def weights(seed: int) -> Tensor:
        model = net()
        train(model, data(), recipe, seed=seed, validate=unscored)
        return model[0].weight.detach()  # type: ignore[index]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.rows("R065")
def test_every_parameter_moves() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    train(model, data(), Recipe(epochs=1, lr=0.1), seed=0, validate=unscored)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_rows_carry_the_mean_loss_and_the_rate() -> None:
    rows = train(net(), data(), Recipe(epochs=3, lr=0.2, schedule="cosine"), seed=0,
                 validate=lambda m: Score(0.5, 1.5))
    assert [round(r.lr, 6) for r in rows] == [
        round(0.2 * (1 + math.cos(math.pi * k / 3)) / 2, 6) for k in (1, 2, 3)]
    assert all(r.val == Score(0.5, 1.5) for r in rows)
    assert all(0 < r.train_loss < 10 for r in rows)


@pytest.mark.rows("R006")
def test_a_frozen_module_stays_as_it_is_and_is_free_again_afterwards() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    train(model, data(), Recipe(epochs=1, lr=0.1, freeze=("0", "1")), seed=0, validate=unscored)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"4.weight", "4.bias"}  # the norm's statistics have not moved either
    assert all(parameter.requires_grad for parameter in model.parameters())


def losses(*values: float) -> Callable[[nn.Module], Score]:
    """Validation that says these, one after the other."""
    given = iter(values)
    return lambda _: Score(0.5, next(given))


@pytest.mark.rows("R068")
def test_the_gap_ends_a_training_once_it_was_wider_for_three_epochs_in_a_row() -> None:
    """Training loss stays between 0 and 2 here, so these gaps are far apart."""
    recipe = Recipe(epochs=9, lr=1e-3, until="gap")
    rows = train(net(), data(), recipe, seed=0,
                 validate=losses(10, 50, 20, 30, 10, 30, 30, 30, 30))
    assert len(rows) == 8  # epochs 5, 6 and 7 are wider than epoch 2; 3 is alone
    rows = train(net(), data(), recipe, seed=0, validate=losses(*[10.0 - k for k in range(9)]))
    assert len(rows) == 9


@pytest.mark.rows("R113")
def test_the_training_accuracy_is_that_of_the_batches_as_they_went_by() -> None:
    """Without steps of any size the network stays, so it is that of the whole in train mode."""
    examples, model = data(), net()
    model[1].momentum = 0.0  # type: ignore[index]
    (row,) = train(model, examples, Recipe(epochs=1, lr=1e-12, batch_size=20), seed=0,
                   validate=unscored)
    with torch.no_grad():
        answers = model.train()(examples.inputs).argmax(1)
    assert row.train_accuracy == pytest.approx(
        float((answers == examples.targets).double().mean()))


def test_a_last_batch_of_one_is_left_out() -> None:
    """A batch norm over one value has no statistics."""
    recipe = Recipe(epochs=1, lr=0.1, batch_size=8)
    sizes = [len(t) for _, t in batches(data(17), recipe, torch.Generator())]
    assert sizes == [8, 8]


def test_batches_of_one_are_trained_on_if_all_are() -> None:
    """Else nothing would be trained, and its loss would be 0."""
    recipe = Recipe(epochs=1, lr=0.1, batch_size=1)
    assert [len(t) for _, t in batches(data(3), recipe, torch.Generator())] == [1, 1, 1]
    (row,) = train(net(), data(3), recipe, seed=0, validate=unscored)
    assert row.train_loss > 0


@pytest.mark.rows("R137")
def test_divergence_is_said_and_not_trained_through() -> None:
    with pytest.raises(TrainingError, match=r"after epoch \d+ of 9.*Lower the learning rate"):
        train(net(), data(), Recipe(epochs=9, lr=1e30), seed=0, validate=unscored)


@pytest.mark.rows("R066")
@pytest.mark.parametrize(("name", "at", "factor"), [
    ("constant", 0.7, 1.0), ("cosine", 0.0, 1.0), ("cosine", 0.5, 0.5), ("cosine", 1.0, 0.0),
    ("one_cycle", 0.0, 0.04), ("one_cycle", 0.15, 0.52), ("one_cycle", 0.3, 1.0),
    ("one_cycle", 1.0, 1e-4)])
def test_schedules_at_known_points(name: str, at: float, factor: float) -> None:
    assert SCHEDULES[name](at) == pytest.approx(factor, abs=1e-9)
