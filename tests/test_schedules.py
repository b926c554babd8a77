"""How the learning rate moves, against PyTorch's own schedulers and by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from test_train import data, net
from torch import Tensor, nn

from harness.schedules import Plateau, rate_at
from harness.train import Recipe, Score, facts, train


def rates(recipe: Recipe, losses: Callable[[int], float] = lambda epoch: 1.0) -> list[float]:
    """The learning rate at the end of every epoch."""
    seen: list[int] = []

    def validate(_: nn.Module) -> Score:
        seen.append(1)
        return Score(0.0, losses(len(seen) - 1))

    return [row.lr for row in train(net(), data(), recipe, seed=0, validate=validate)]


@pytest.mark.rows("R066")
def test_milestones_are_adapts_pairs_of_epoch_and_rate() -> None:
    """Seed 004's for AlexNet: 0 .0001, 5 .001, 15 and 25 times .2."""
    pairs = [(0, 1e-4), (5, 1e-3), (15, -1), (25, -1)]
    known = {0: 1e-4, 4: 1e-4, 5: 1e-3, 14: 1e-3, 15: 2e-4, 24: 2e-4, 25: 4e-5, 99: 4e-5}
    assert {epoch: rate_at(pairs, 1.0, 0.2, epoch) for epoch in known} == pytest.approx(known)


@pytest.mark.rows("R066")
def test_a_list_of_steps_is_pytorchs_multi_step() -> None:
    recipe = Recipe(epochs=6, lr=0.1, batch_size=8, schedule="milestones", gamma=0.5,
                    milestones=((2, -1), (4, -1)))
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5)
    known = []
    for _ in range(6):
        optimizer.step()
        theirs.step()
        known.append(theirs.get_last_lr()[0])
    assert rates(recipe) == pytest.approx(known)


@pytest.mark.rows("R066", "R072")
@pytest.mark.parametrize("losses", [
    [5, 4, 4, 4, 4, 3, 3, 3, 3, 3], [1] * 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    [3, 4, 2, 5, 5, 1, 6, 6, 6, 6]])
def test_a_plateau_is_pytorchs(losses: list[float]) -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.2, patience=2, threshold=0.0)
    ours = Plateau(0.2, 2)
    for loss in losses:
        optimizer.step()
        theirs.step(loss)
        ours.see(loss)
        assert ours.factor == pytest.approx(theirs.get_last_lr()[0])


@pytest.mark.rows("R066")
def test_the_rate_falls_in_the_epoch_after_a_plateau() -> None:
    recipe = Recipe(epochs=5, lr=0.1, batch_size=8, schedule="plateau", patience=1, gamma=0.5)
    assert rates(recipe) == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.rows("R063")
@pytest.mark.parametrize(("updates", "epochs"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_updates_are_minibatches_and_no_more(updates: int, epochs: int) -> None:
    """20 examples in batches of 8 are three minibatches a pass."""
    model, other, recipe = net(), net(), Recipe(0, 0.1, batch_size=8, updates=updates)
    rows = train(model, data(), recipe, seed=5, validate=lambda _: Score(0.0, 0.0))
    assert len(rows) == epochs
    examples, generator = data(), torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    done = 0
    while done < updates:
        order = torch.randperm(20, generator=generator)
        for chosen in (order[:8], order[8:16], order[16:])[:updates - done]:
            optimizer.zero_grad()
            other.train()
            nn.functional.cross_entropy(other(examples.inputs[chosen]),
                                        examples.targets[chosen]).backward()
            optimizer.step()
            done += 1
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)


def trained(recipe: Recipe, losses: list[float]) -> tuple[list[float], list[dict[str, Tensor]],
                                                          nn.Module]:
    """(losses of the rows, weights after every epoch, the network as it was left)."""
    model, states = net(), list[dict[str, Tensor]]()

    def validate(given: nn.Module) -> Score:
        states.append(copy.deepcopy(given.state_dict()))
        return Score(0.0, losses[len(states) - 1])

    rows = train(model, data(), recipe, seed=1, validate=validate)
    return [row.val.loss for row in rows], states, model


@pytest.mark.rows("R072", "R091")
def test_the_best_epochs_weights_stay_and_the_rows_end_with_it() -> None:
    recipe = Recipe(epochs=4, lr=0.1, batch_size=8, keep="best")
    rows, states, model = trained(recipe, [3.0, 1.0, 2.0, 1.5])
    assert rows == [3.0, 1.0]
    assert all(torch.equal(model.state_dict()[name], t) for name, t in states[1].items())
    assert not torch.equal(states[1]["0.weight"], states[3]["0.weight"])


@pytest.mark.rows("R072")
def test_training_ends_early_when_validation_has_not_improved() -> None:
    recipe = Recipe(epochs=9, lr=0.1, batch_size=8, early_stop=2)
    rows, states, model = trained(recipe, [3.0, 1.0, 2.0, 1.0, 0.5, 0.1])
    assert rows == [3.0, 1.0, 2.0, 1.0]
    assert all(torch.equal(model.state_dict()[name], t) for name, t in states[3].items())


def test_what_has_no_effect_is_no_part_of_what_stages_are_known_by() -> None:
    known = {"epochs", "lr", "optimizer", "momentum", "weight_decay", "schedule", "batch_size",
             "augment", "label_smoothing"}
    assert facts(Recipe(2, 0.1)).keys() == known
    assert facts(Recipe(2, 0.1, keep="best", updates=3)).keys() == known | {"keep", "updates"}


