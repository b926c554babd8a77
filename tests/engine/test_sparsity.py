"""Zeros among weights: how many, which, that they stay; numbers of the first seeds."""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as library

from harness.checking import known_names
from harness.config import Known, load_run
from harness.engine.inventory import sparsity
from harness.engine.selection import select_ratios
from harness.engine.sparsity import (
    held_at_zero,
    make_zero,
    shares_of,
    smallest,
    weights_of,
    zeroed,
    zeros_of,
)
from harness.engine.tracing import trace
from harness.errors import ConfigError, ModelError, TrainingError
from harness.models import build
from harness.train import Recipe, Score, train


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


class Few:
    """Forty random pictures of three classes."""

    inputs = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(40) % 3


def fit(model: nn.Module, **changes: Any) -> None:
    recipe = Recipe(**{"epochs": 3, "lr": 0.05, "weight_decay": 1e-2, "batch_size": 8, **changes})
    train(model, Few(), recipe, seed=5, validate=lambda m: Score(0.0, 0.0))


@pytest.mark.rows("R093", "R040")
def test_of_equals_those_that_come_first_go_and_never_all_of_them() -> None:
    weight = torch.tensor([[0.5, -0.5, 0.5], [-0.25, 2.0, 0.5]])
    assert smallest(weight, 3).tolist() == [[True, True, False], [True, False, False]]
    assert not smallest(weight, 0).any()
    assert smallest(weight, 6).all()
    assert int(smallest(torch.ones(10), 4).sum()) == 4


@pytest.mark.rows("R093")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.floats(0, 1))
def test_exactly_round_amount_times_n_go_as_numpys_stable_sort_has_them(values: list[int],
                                                                        share: float) -> None:
    weight = torch.tensor(values, dtype=torch.float32)
    count = round(share * len(values))
    expected = set(np.argsort(np.abs(values), kind="stable")[:count].tolist())
    assert set(smallest(weight, count).nonzero().flatten().tolist()) == expected


@pytest.mark.rows("R093", "R097")
def test_layer_by_layer_it_is_what_the_library_takes_and_biases_stay() -> None:
    model, other = net(), net()
    shares = {"0": 0.3, "4": 0.8}
    before = {name: p.clone() for name, p in model.named_parameters()}
    make_zero(model, zeroed(model, shares))
    for name, share in shares.items():
        library.l1_unstructured(other.get_submodule(name), "weight", share)
        assert torch.equal(model.get_submodule(name).weight, other.get_submodule(name).weight)
    for name in ("0.bias", "1.weight", "1.bias", "4.bias", "6.weight", "6.bias"):
        assert torch.equal(model.get_parameter(name), before[name])
    assert [(z.layer, z.zeros) for z in zeros_of(model)] == [
        ("0", round(0.3 * 36)), ("4", round(0.8 * 512)), ("6", 0)]
    assert sparsity(model) == (11 + 410) / (36 + 512 + 24)


@pytest.mark.rows("R093")
def test_globally_it_is_what_the_library_takes_of_all_together() -> None:
    model, other = net(), net()
    make_zero(model, zeroed(model, shares_of(model, 0.5), "global"))
    library.global_unstructured([(other[0], "weight"), (other[4], "weight"), (other[6], "weight")],
                                library.L1Unstructured, amount=0.5)
    for place in (0, 4, 6):
        assert torch.equal(model[place].weight, other[place].weight)
    assert len({round(z.share, 2) for z in zeros_of(model)}) > 1


@pytest.mark.rows("R093")
def test_a_layers_share_may_round_to_no_weight_at_all() -> None:
    model = nn.Linear(3, 1)
    assert not zeroed(nn.Sequential(model), {"0": 0.1})["0"].any()


def test_a_plan_names_layers_or_what_they_stand_in() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)), nn.Linear(2, 2))
    assert shares_of(model, 0.1, {"0": 0.5, "0.1": 0.9}) == {"0.0": 0.5, "0.1": 0.9, "1": 0.1}
    assert shares_of(model, 0.0, {"1": 0.5}) == {"1": 0.5}
    assert shares_of(model, 0.5, {"1": 0.0}) == {"0.0": 0.5, "0.1": 0.5}


def test_all_that_is_wrong_with_a_plan_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        shares_of(net(), 1.5, {"44": 0.5, "1": 0.5, "4": -0.1})
    lines = str(caught.value).splitlines()
    assert lines == ["sparsify.amount: 1.5 must be from 0 to 1.",
                     "sparsify.layers.4: -0.1 must be from 0 to 1.",
                     "sparsify.layers: unknown module '44'. Nearest: 4. Known: 0, 4, 6.",
                     "sparsify.layers: unknown module '1'. Known: 0, 4, 6."]
    with pytest.raises(ConfigError, match="global takes one share for all"):
        zeroed(net(), {"0": 0.1, "4": 0.2}, "global")
    with pytest.raises(ConfigError, match="unknown scope 'local'"):
        zeroed(net(), {"0": 0.1}, "local")


def test_weights_that_are_no_numbers_have_no_order() -> None:
    model = net()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="weights of 4 are not finite"):
        zeroed(model, {"0": 0.5, "4": 0.5})


def test_a_shared_weight_counts_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert list(weights_of(nn.Sequential(first, second))) == ["0"]


@pytest.mark.rows("R075")
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam", "lr": 0.01}, {"momentum": 0.0},
                                     {"keep": "best"}], ids=str)
def test_training_leaves_zeros_zero_and_is_that_of_the_librarys_masks(changes: dict[str, Any],
                                                                      ) -> None:
    """Which multiplies by the mask in every forward: the same gradients, the same weights."""
    model, other = net(), net()
    places = zeroed(model, {"0": 0.5, "4": 0.75})
    whole = copy.deepcopy(model)
    for name, zero in places.items():
        library.custom_from_mask(other.get_submodule(name), "weight", ~zero)
    with held_at_zero(model, places):
        fit(model, **changes)
    fit(other, **changes)
    for name, zero in places.items():
        weight: Tensor = model.get_submodule(name).weight
        assert torch.equal(weight == 0, zero)
        assert not torch.allclose(weight[~zero], whole.get_submodule(name).weight[~zero])
        library.remove(other.get_submodule(name), "weight")
        torch.testing.assert_close(weight, other.get_submodule(name).weight)
    torch.testing.assert_close(model[6].weight, other[6].weight)
    fit(model)  # the hooks are gone
    assert bool((model[4].weight[places["4"]] != 0).any())


@pytest.mark.rows("R075")
def test_who_moves_them_all_the_same_is_found_out() -> None:
    model = net()

    def move() -> None:
        with held_at_zero(model, zeroed(model, {"4": 0.5})), torch.no_grad():
            model[4].weight.add_(1.0)

    with pytest.raises(TrainingError, match="have moved in 4"):
        move()


# Seed 003: VGG-11 with ten outputs; the plans are those of the committed configuration.

CONVOLUTIONS = [0, 3, 6, 8, 11, 13, 16, 18]
SIDES = [32, 16, 8, 8, 4, 4, 2, 2]  # of their maps, for pictures of 32 x 32
WIDTHS = [64, 128, 256, 256, 512, 512, 512, 512]
CUT = [57, 102, 128, 102, 128, 102, 76, 51]


def weights_by_hand(widths: list[int]) -> list[int]:
    """3 x 3 convolutions, then a head on 7 x 7 places: 4096, 4096, 10."""
    return [*(9 * old * new for old, new in pairwise([3, *widths])),
            49 * widths[-1] * 4096, 4096 * 4096, 4096 * 10]


def macs_by_hand(widths: list[int]) -> int:
    """Of the convolutions: every weight once at every place of its map."""
    return sum(weights * side**2 for weights, side in zip(weights_by_hand(widths), SIDES))


def of_seed_003(width: float = 1.0) -> nn.Module:
    return build("vgg11", num_classes=10, in_channels=3, width=width, input_size=32,
                 options={"head": "imagenet"})


@pytest.mark.rows("R093", "R097")
def test_the_layer_wise_plan_of_seed_003_makes_74_31_percent_zero() -> None:
    """At full width and on real weights: 128.8 million of them."""
    run = load_run("vgg11_cifar10", known=Known(**known_names()))
    model = of_seed_003()
    assert sum(p.numel() for p in model.parameters()) == 128_807_306
    shares = shares_of(model, run.sparsify.amount, run.sparsify.layers)
    assert list(shares.values()) == [.80, .80, .75, .75, .70, .70, .60, .60, .75, .75, .70]
    make_zero(model, zeroed(model, shares))
    weights = weights_by_hand(WIDTHS)
    by_hand = [round(share * n) for share, n in zip(shares.values(), weights, strict=True)]
    found = [int((p == 0).sum()) for name, p in model.named_parameters() if name.endswith("weight")]
    assert found == by_hand
    assert f"{100 * sum(by_hand) / sum(weights):.2f}" == "74.31"
    assert sparsity(model) == sum(by_hand) / sum(weights)
    assert all(z.zeros == round(shares[z.layer] * z.weights) for z in zeros_of(model))


@pytest.mark.rows("R039")
def test_the_ratios_of_seed_003_leave_its_widths_parameters_and_macs() -> None:
    run = load_run("vgg11_cifar10", known=Known(**known_names()))
    with torch.device("meta"):
        model = of_seed_003()
    graph = trace(model, torch.zeros(2, 3, 32, 32))
    scores = {g.name: torch.rand(g.channels) for g in graph.groups}
    chosen = select_ratios(graph, scores, run.prune.ratios)
    before, after = graph.cost(), graph.cost(chosen.plan)
    layers = {layer.layer: layer for layer in after.layers}
    names = [f"features.{n}" for n in CONVOLUTIONS]
    assert [layers[n].filters for n in names] == CUT
    assert (before.params, after.params) == (128_807_306, 27_691_561)
    macs = [sum(x.macs for x in cost.layers if x.layer in names) for cost in (before, after)]
    assert [f"{n / 1e6:.1f}" for n in macs] == ["152.8", "34.2"]
    assert macs == [macs_by_hand(WIDTHS), macs_by_hand(CUT)]
    assert [before.params, after.params] == [
        sum(weights_by_hand(widths)) + sum(widths) + 4096 + 4096 + 10 for widths in (WIDTHS, CUT)]
