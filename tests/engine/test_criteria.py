"""Scores by hand, and what a score may never be."""

import math
from typing import cast

import nets
import pytest
import torch
from torch import Tensor, nn

from engine.by_hand import random_plan, traced
from harness.engine.criteria import CRITERIA, Criterion, criterion_of, score
from harness.engine.evidence import Activity, Evidence
from harness.engine.graph import Graph, Group, Plan, trace
from harness.engine.surgery import cut
from harness.errors import GraphError, UnknownName


def evidence_of(model: nn.Module, graph: Graph, plan: Plan | None = None,
                seed: int = 0) -> Evidence:
    weights = dict(model.named_parameters(remove_duplicate=False))
    return Evidence(graph, plan or graph.whole(), weights, {},
                    torch.Generator().manual_seed(seed))


def scored(model: nn.Module, graph: Graph, criterion: str, normalize: str = "none",
           plan: Plan | None = None) -> dict[str, list[float]]:
    scores = score(graph, CRITERIA[criterion], evidence_of(model, graph, plan), normalize)
    return {group: values.tolist() for group, values in scores.items()}


def absolute(numbers: object) -> float:
    """Sum of absolute values in nested lists."""
    return sum(map(absolute, numbers)) if isinstance(numbers, list) else abs(cast(float, numbers))


def three_filters() -> tuple[nn.Sequential, Graph]:
    """Filters (3, -4), (0, 0), (-1, 0) over two inputs."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        weight = torch.tensor([[3.0, -4.0], [0.0, 0.0], [-1.0, 0.0]])
        model[0].weight.copy_(weight.reshape(3, 2, 1, 1))  # type: ignore[operator]
    return model, trace(model, torch.zeros(1, 2, 2, 2))


def test_norms_of_weights_by_hand() -> None:
    model, graph = three_filters()
    assert scored(model, graph, "l1") == {"0": [7.0, 0.0, 1.0]}
    assert scored(model, graph, "l2") == {"0": [5.0, 0.0, 1.0]}


def test_normalisations_by_hand() -> None:
    model, graph = three_filters()
    assert scored(model, graph, "l1", "mean") == {"0": pytest.approx([21 / 8, 0.0, 3 / 8])}
    root = math.sqrt(7**2 + 1)
    assert scored(model, graph, "l1", "l2") == {"0": pytest.approx([7 / root, 0.0, 1 / root])}
    assert scored(model, graph, "l1", "auto") == scored(model, graph, "l1", "mean")


def test_members_of_a_group_are_added_up() -> None:
    """A depthwise layer with two filters a channel; transposed rows; residual partners."""
    model, _, graph = traced(nets.depthwise_multiplier)
    first, depthwise = (model.get_parameter(f"{n}.weight").tolist() for n in ("0.0", "1.0"))
    expected = [absolute(first[c]) + absolute(depthwise[2 * c: 2 * c + 2]) for c in range(5)]
    assert scored(model, graph, "l1")["0.0"] == pytest.approx(expected)

    model, _, graph = traced(nets.unet_transposed)
    up = model.get_parameter("up.weight")  # (in, out, height, width)
    assert scored(model, graph, "l2")["up"] == pytest.approx(
        up.square().sum((0, 2, 3)).sqrt().tolist())

    model, _, graph = traced(nets.residual)
    second, around = (model.get_parameter(f"2.{n}.weight") for n in ("second.0", "around"))
    assert scored(model, graph, "l2")["2.second.0"] == pytest.approx(
        (second.square().sum((1, 2, 3)).sqrt()
         + around.square().sum((1, 2, 3)).sqrt()).tolist())


def test_writers_of_parts_score_their_own_channels() -> None:
    """Of ten channels `a` writes four, `b` six, and `c` all."""
    model, _, graph = traced(nets.sum_with_concat)
    a, b, c = (model.get_parameter(f"{n}.weight").abs().flatten(1).sum(1).tolist()
               for n in ("a", "b.0", "c"))
    expected = [x + y for x, y in zip([*a, *b], c, strict=True)]
    assert scored(model, graph, "l1")["a"] == pytest.approx(expected)


def test_scores_of_a_cut_network_are_of_the_channels_that_are_left() -> None:
    """The weights that remain score as before, but for the inputs that have gone."""
    model, _, graph = traced(nets.flatten)
    plan = graph.plan({"3": [1, 4, 7]})
    whole = scored(model, graph, "l1")["3"]
    cut(model, graph.whole(), plan)
    assert scored(model, graph, "l1", plan=plan)["3"] == [whole[i] for i in (1, 4, 7)]


def test_taylor_reads_what_was_gathered() -> None:
    """Mean over examples of the absolute values; the absolute value of the signed sum."""
    _, graph = three_filters()
    activity = {"0": Activity(torch.tensor([2.0, 0.0, 6.0]), torch.tensor([-1.0, 0.5, -3.0]), 4)}
    evidence = Evidence(graph, graph.whole(), {}, activity, torch.Generator())
    assert score(graph, CRITERIA["taylor"], evidence, "none")["0"].tolist() == [0.5, 0.0, 1.5]
    origin = score(graph, CRITERIA["taylor_origin"], evidence, "none")
    assert origin["0"].tolist() == [1.0, 0.5, 3.0]


def test_taylor_without_activations_says_what_to_give() -> None:
    model, graph = three_filters()
    with pytest.raises(GraphError, match=r"no activations were gathered for 0\.weight"):
        scored(model, graph, "taylor")


def test_random_repeats_with_its_seed() -> None:
    model, _, graph = traced(nets.residual)
    plan = random_plan(graph, seed=0)
    one = scored(model, graph, "random", plan=plan)
    assert one == scored(model, graph, "random", plan=plan)
    assert {g: len(v) for g, v in one.items()} == {g: len(k) for g, k in plan.kept.items()}
    other = score(graph, CRITERIA["random"], evidence_of(model, graph, plan, seed=1), "none")
    assert one != {g: v.tolist() for g, v in other.items()}


@pytest.mark.parametrize("normalize", ["none", "l2", "mean"])
def test_a_layer_of_zeros_scores_evenly(normalize: str) -> None:
    """Equal numbers, never NaN."""
    model, graph = three_filters()
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    (values,) = scored(model, graph, "l1", normalize).values()
    assert values[0] > 0
    assert values == [values[0]] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_what_is_not_finite_is_an_error(criterion: str, bad: float) -> None:
    model, graph = three_filters()
    nn.init.constant_(model[0].weight, bad)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="group '0' must be 3 finite numbers"):
        scored(model, graph, criterion)


@pytest.mark.parametrize(("wrong", "words"), [
    ([1.0, -2.0, 3.0], r"not negative; got shape \(3,\) with \[-2\.0\]"),
    ([1.0, 2.0], r"got shape \(2,\)"),
    ([[1.0, 2.0, 3.0]], r"got shape \(1, 3\)"),
])
def test_a_users_criterion_is_checked(wrong: list[float], words: str) -> None:
    model, graph = three_filters()

    def mine(group: Group, evidence: Evidence) -> Tensor:
        return torch.tensor(wrong)

    with pytest.raises(GraphError, match=words):
        score(graph, criterion_of(mine), evidence_of(model, graph))


def test_a_users_criterion_is_a_function() -> None:
    """What it needs and how it is normalised stand beside it, if they are not the usual."""
    model, graph = three_filters()

    def by_index(group: Group, evidence: Evidence) -> Tensor:
        return torch.arange(len(evidence.plan.kept[group.name]))

    found = score(graph, criterion_of(by_index), evidence_of(model, graph))
    assert found["0"].tolist() == [0, 1, 2]
    by_index.normalize = "none"  # type: ignore[attr-defined]
    by_index.needs = "activity"  # type: ignore[attr-defined]
    assert criterion_of(by_index) == Criterion(by_index, "activity", "none")


def test_unknown_names_come_with_the_nearest() -> None:
    model, graph = three_filters()
    with pytest.raises(UnknownName, match=r"unknown criterion 'talyor'\. Nearest: taylor"):
        criterion_of("talyor")
    with pytest.raises(UnknownName, match=r"unknown normalisation 'maen'\. Nearest: mean"):
        scored(model, graph, "l1", "maen")


@pytest.mark.parametrize("name", CRITERIA)
def test_every_row_of_the_table_is_found_by_its_name(name: str) -> None:
    row = criterion_of(name)
    assert row is CRITERIA[name]
    assert row.needs in ("weights", "activity")
    assert row.score.__doc__
