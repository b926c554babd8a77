"""Scores by hand, and what a score may never be."""

import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import random_plan, traced
from harness.engine.criteria import CRITERIA, Criterion, criterion_of, mflops, score
from harness.engine.evidence import (
    KINDS,
    Activations,
    Activity,
    Evidence,
    Gathered,
    Gradient,
    Map,
    Pooled,
    gather,
)
from harness.engine.graph import Graph, Group, Plan
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.errors import ConfigError, GraphError, UnknownName


def evidence_of(model: nn.Module, graph: Graph, plan: Plan | None = None,
                seed: int = 0) -> Evidence:
    weights = dict(model.named_parameters(remove_duplicate=False))
    return Evidence(graph, plan or graph.whole(), weights, Gathered(),
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


@pytest.mark.rows("R021")
def test_norms_of_weights_by_hand() -> None:
    model, graph = three_filters()
    assert scored(model, graph, "l1") == {"0": [7.0, 0.0, 1.0]}
    assert scored(model, graph, "l2") == {"0": [5.0, 0.0, 1.0]}


@pytest.mark.rows("R020")
def test_normalisations_by_hand() -> None:
    model, graph = three_filters()
    assert scored(model, graph, "l1", "mean") == {"0": pytest.approx([21 / 8, 0.0, 3 / 8])}
    root = math.sqrt(7**2 + 1)
    assert scored(model, graph, "l1", "l2") == {"0": pytest.approx([7 / root, 0.0, 1 / root])}
    assert scored(model, graph, "l1", "auto") == scored(model, graph, "l1", "mean")


@pytest.mark.rows("R057")
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


@pytest.mark.rows("R016", "R017")
def test_taylor_reads_what_was_gathered() -> None:
    """Mean over examples of the absolute values; the absolute value of the signed sum."""
    _, graph = three_filters()
    activity = {"0": Activity(torch.tensor([2.0, 0.0, 6.0]), torch.tensor([-1.0, 0.5, -3.0]), 4)}
    evidence = Evidence(graph, graph.whole(), {}, Gathered(activity), torch.Generator())
    assert score(graph, CRITERIA["taylor"], evidence, "none")["0"].tolist() == [0.5, 0.0, 1.5]
    origin = score(graph, CRITERIA["taylor_origin"], evidence, "none")
    assert origin["0"].tolist() == [1.0, 0.5, 3.0]


def test_taylor_without_activations_says_what_to_give() -> None:
    model, graph = three_filters()
    with pytest.raises(GraphError, match=r"no activations were gathered for 0\.weight"):
        scored(model, graph, "taylor")


@pytest.mark.rows("R025")
def test_random_repeats_with_its_seed() -> None:
    model, _, graph = traced(nets.residual)
    plan = random_plan(graph, seed=0)
    one = scored(model, graph, "random", plan=plan)
    assert one == scored(model, graph, "random", plan=plan)
    assert {g: len(v) for g, v in one.items()} == {g: len(k) for g, k in plan.kept.items()}
    other = score(graph, CRITERIA["random"], evidence_of(model, graph, plan, seed=1), "none")
    assert one != {g: v.tolist() for g, v in other.items()}


@pytest.mark.rows("R020")
@pytest.mark.parametrize("normalize", ["none", "l2", "mean"])
def test_a_layer_of_zeros_scores_evenly(normalize: str) -> None:
    """Equal numbers, never NaN."""
    model, graph = three_filters()
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    (values,) = scored(model, graph, "l1", normalize).values()
    assert values[0] > 0
    assert values == [values[0]] * 3


@pytest.mark.rows("R137")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_what_is_not_finite_is_an_error(criterion: str, bad: float) -> None:
    model, graph = three_filters()
    nn.init.constant_(model[0].weight, bad)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="group '0' must be 3 finite numbers"):
        scored(model, graph, criterion)


@pytest.mark.rows("R137")
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


@pytest.mark.rows("R028")
@pytest.mark.parametrize("name", CRITERIA)
def test_every_row_of_the_table_is_found_by_its_name(name: str) -> None:
    row = criterion_of(name)
    assert row is CRITERIA[name]
    assert row.wants <= KINDS.keys()
    assert row.score.__doc__


# --- weights, by hand -----------------------------------------------------------------------------


def by(criterion: str, options: Mapping[str, Any] | None = None, gathered: Gathered | None = None,
       model: nn.Module | None = None, graph: Graph | None = None) -> list[float]:
    """Scores of the first group of `three_filters`, neither normalised nor evened out."""
    if model is None or graph is None:
        model, graph = three_filters()
    evidence = Evidence(graph, graph.whole(), dict(model.named_parameters()),
                        gathered or Gathered(), torch.Generator().manual_seed(0))
    found: list[float] = criterion_of(criterion, options).score(graph.groups[0], evidence).tolist()
    return found


@pytest.mark.rows("R021")
def test_norms_of_any_p_by_hand() -> None:
    """Filters (3, -4), (0, 0), (-1, 0); n = 2."""
    assert by("lp") == [5.0, 0.0, 1.0]
    assert by("lp", {"p": 1}) == [7.0, 0.0, 1.0]
    assert by("lp", {"p": 3}) == pytest.approx([(27 + 64) ** (1 / 3), 0.0, 1.0])
    assert by("l1", {"scale": "fan_in"}) == [3.5, 0.0, 0.5]
    assert by("lp", {"p": 2, "scale": "fan_in"}) == [2.5, 0.0, 0.5]


@pytest.mark.rows("R021")
def test_resized_norms_by_hand() -> None:
    """A 1x1 kernel becomes nine equal weights, a 3x3 kernel stays; the norm is over the inputs."""
    assert by("l1", {"scale": "resized"}) == pytest.approx([9 * 7 / 2, 0.0, 9 / 2])
    assert by("l2", {"scale": "resized"}) == pytest.approx([3 * 5 / 2, 0.0, 3 / 2])
    wide = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 1, 1))
    graph = trace(wide, torch.zeros(1, 2, 4, 4))
    weight = wide[0].weight.detach().double().numpy()  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(by("l1", {"scale": "resized"}, model=wide, graph=graph),
                               np.abs(weight).sum((1, 2, 3)) / 2)


@pytest.mark.rows("R021")
def test_a_kernel_of_five_is_resized_linearly() -> None:
    """Of a ramp 0..4 the three samples stand at 1/3, 2 and 11/3."""
    model = nn.Sequential(nn.Conv1d(1, 2, 5), nn.Conv1d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(5.0).expand(2, 1, 5))  # type: ignore[operator]
    graph = trace(model, torch.zeros(1, 1, 8))
    assert by("l1", {"scale": "resized"}, model=model, graph=graph) == pytest.approx([6.0, 6.0])
    assert by("l2", {"scale": "resized"}, model=model, graph=graph) == pytest.approx(
        [math.sqrt(1 / 9 + 4 + 121 / 9)] * 2)


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_kernel_of_one_is_resized_in_every_direction_that_it_has(make: type[nn.Module]) -> None:
    """All weights are 1: a kernel of one scores what a kernel of three does."""
    model = nn.Sequential(make(1, 2, 1), make(2, 2, 3), make(2, 1, 1))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    directions = model.get_parameter("0.weight").dim() - 2
    graph = trace(model, torch.zeros(1, 1, *[4] * directions))
    evidence = evidence_of(model, graph)
    narrow, wide = (criterion_of("l1", {"scale": "resized"}).score(graph[name], evidence).tolist()
                    for name in ("0", "1"))
    assert narrow == [3.0**directions] * 2
    assert wide == [3.0**directions] * 2


@pytest.mark.rows("R021")
@pytest.mark.parametrize("p", [3, 40, 1000])
def test_high_powers_of_small_weights_do_not_vanish(p: int) -> None:
    """By logarithms; for a high p it is next to the largest weight."""
    model, graph = three_filters()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-3)
    weights = np.abs(model.get_parameter("0.weight").detach().double().numpy()[:, :, 0, 0])
    with np.errstate(divide="ignore"):
        logs = np.logaddexp.reduce(p * np.log(weights), axis=1) / p
    np.testing.assert_allclose(by("lp", {"p": p}, model=model, graph=graph), np.exp(logs),
                               rtol=1e-12)


@pytest.mark.rows("R028")
def test_the_smallest_weights_by_hand() -> None:
    """Mean of the squares: (9 + 16) / 2."""
    assert by("min_weight") == pytest.approx([12.5, 0.0, 0.5])


def test_distances_between_filters_by_hand() -> None:
    """From (3, -4) to (0, 0) it is 5, to (-1, 0) sqrt(32); the filter in the middle is (0, 0)."""
    far = math.sqrt(32)
    assert by("geometric_median") == pytest.approx([5 + far, 6.0, 1 + far])
    assert by("geometric_median", {"p": 1}) == pytest.approx([7 + 8, 7 + 1, 8 + 1])


@pytest.mark.rows("R028")
def test_deviation_from_the_mean_filter_by_hand() -> None:
    """The mean filter is (2/3, -4/3)."""
    assert by("deviation_from_mean") == pytest.approx(
        [math.hypot(7 / 3, 8 / 3), math.hypot(2 / 3, 4 / 3), math.hypot(5 / 3, 4 / 3)])
    assert by("deviation_from_mean", {"p": 1}) == pytest.approx([5, 2, 3])


def test_the_scales_of_all_batch_norms_on_a_group_are_added_up() -> None:
    """Also where the norm stands before its reader, and of the sum that two layers write."""
    model, _, graph = traced(nets.residual)
    scales = [model.get_parameter(f"{n}.weight").abs() for n in ("0.1", "1.second.1")]
    found = scored(model, graph, "bn_scale")
    assert found["0.0"] == pytest.approx((scales[0] + scales[1]).tolist())

    model, _, graph = traced(nets.preactivation)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    whole = [n for n in norms if not n.endswith("norm2")]  # norm2 is inside a block
    expected = sum(model.get_parameter(f"{n}.weight").abs() for n in whole)
    assert isinstance(expected, Tensor)
    assert scored(model, graph, "bn_scale")[graph.groups[0].name] == pytest.approx(
        expected.tolist())


def test_without_a_batch_norm_there_is_no_scale() -> None:
    model, graph = three_filters()
    with pytest.raises(GraphError, match="group '0' passes no batch norm"):
        scored(model, graph, "bn_scale")


@pytest.mark.rows("R026")
def test_uniform_takes_equal_shares_of_all_groups() -> None:
    """Of 8, 6 and other widths, any share: within one channel, whatever was cut before."""
    model, _, graph = traced(nets.residual)
    plan = graph.plan({graph.groups[0].name: [0, 2, 3, 7]})
    for share in (0.25, 0.5, 0.75):
        scores = score(graph, CRITERIA["uniform"], evidence_of(model, graph), "none")
        lowest = torch.cat(list(scores.values())).sort().values[:round(share * graph.channels)]
        for values in scores.values():
            gone = int((values <= lowest[-1]).sum())
            assert abs(gone - share * len(values)) <= 1
    scores = score(graph, CRITERIA["uniform"], evidence_of(model, graph, plan), "none")
    first = scores.pop(graph.groups[0].name)
    # Half of the first group is gone: nothing more goes there before half of the others is.
    assert all(int((values < first.min()).sum()) >= len(values) // 2 for values in scores.values())
    other = score(graph, CRITERIA["uniform"], evidence_of(model, graph, plan, seed=1), "none")
    assert any(not torch.equal(scores[g].argsort(), other[g].argsort()) for g in scores)


# --- activations, by hand -------------------------------------------------------------------------


@pytest.mark.rows("R028")
def test_statistics_of_activations_by_hand() -> None:
    """Values -1, 3, 0, 2 of a channel: behind a ReLU 0, 3, 0, 2."""
    x = torch.tensor([[-1.0, 3.0, 0.0, 2.0], [0.0] * 4, [-2.0] * 4])
    r = x.clamp_min(0)
    sums = Activations(x.sum(1), x.square().sum(1), r.sum(1), r.square().sum(1),
                       torch.tensor([2.0, 0.0, 0.0]), 4)
    gathered = Gathered(activations={"0": sums})
    assert by("mean_activation", gathered=gathered) == [1.25, 0.0, 0.0]
    assert by("mean_activation", {"rectified": False}, gathered) == [1.0, 0.0, 2.0]
    assert by("std_activation", gathered=gathered) == pytest.approx(
        [math.sqrt((1.25**2 * 2 + 1.75**2 + 0.75**2) / 4), 0.0, 0.0])
    assert by("std_activation", {"rectified": False}, gathered) == pytest.approx(
        [math.sqrt((4 + 4 + 1 + 1) / 4), 0.0, 0.0])
    assert by("apoz", gathered=gathered) == [0.5, 0.0, 0.0]


@pytest.mark.rows("R028")
def test_entropy_by_hand() -> None:
    """Four examples: two values twice; all the same; four values in two bins, three and one."""
    values = torch.tensor([[0.0, 7.0, 0.0], [0.0, 7.0, 1.0], [1.0, 7.0, 1.9], [1.0, 7.0, 4.0]])
    gathered = Gathered(pooled={"0": Pooled(values)})
    uneven = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert by("entropy", {"bins": 2}, gathered) == pytest.approx([math.log(2), 0.0, uneven])


@pytest.mark.rows("R137")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["apoz", "entropy"])
def test_counting_does_not_hide_what_is_no_number(name: str, bad: float) -> None:
    """A diverged network is an error, not a channel that is never above zero."""
    model, graph = three_filters()
    data = [(torch.full((2, 2, 2, 2), bad), torch.zeros(2, dtype=torch.long))]
    gathered = gather(model, graph, data, F.cross_entropy, CRITERIA[name].wants)
    evidence = Evidence(graph, graph.whole(), {}, gathered, torch.Generator())
    with pytest.raises(GraphError, match="NaN and infinity come from the data"):
        score(graph, CRITERIA[name], evidence)


def deviating() -> Gathered:
    """Mean maps (1, 3), (1, 1), (4, 2) of three channels, from two examples; the mean is (2, 2)."""
    return Gathered(maps={"0/0": Map(torch.tensor([[2.0, 6.0], [2.0, 2.0], [8.0, 4.0]]), 2)})


@pytest.mark.rows("R022")
def test_activation_deviation_by_hand() -> None:
    """D is (-1, 1), (-1, -1), (2, 0)."""
    assert by("activation_deviation", {"p": 1}, deviating()) == [1.0, 1.0, 1.0]
    assert by("activation_deviation", gathered=deviating()) == pytest.approx(
        [math.sqrt(2) / 2, math.sqrt(2) / 2, 1.0])
    assert by("activation_deviation", {"p": 3}, deviating()) == pytest.approx(
        [2 ** (1 / 3) / 2, 2 ** (1 / 3) / 2, 1.0])
    assert by("activation_deviation", {"root_mean": True}, deviating()) == pytest.approx(
        [1.0, 1.0, math.sqrt(2)])


@pytest.mark.rows("R022")
def test_equal_maps_deviate_by_nothing() -> None:
    same = Gathered(maps={"0/0": Map(torch.full((3, 5), 7.0), 2)})
    assert by("activation_deviation", gathered=same) == [0.0, 0.0, 0.0]


@pytest.mark.rows("R023", "R024")
def test_the_mix_of_ipad_by_hand() -> None:
    """Weights resized: 3 x (5, 0, 1) / 2; deviations as above; ten is the equaliser."""
    weights = np.array([7.5, 0.0, 1.5])
    deviation = np.array([math.sqrt(2) / 2, math.sqrt(2) / 2, 1.0])
    for omega in (0.0, 0.1, 0.5, 1.0):
        np.testing.assert_allclose(by("ipad", {"omega": omega}, deviating()),
                                   omega * weights + (1 - omega) * 10 * deviation)
    np.testing.assert_allclose(
        by("ipad", {"omega": 0.5, "equalizer": 4.0, "resized": False}, deviating()),
        0.5 * np.array([2.5, 0.0, 0.5]) + 0.5 * 4 * deviation)
    np.testing.assert_allclose(by("ipad", {"omega": 0.1, "weights_alone_1x1": True}, deviating()),
                               weights)


@pytest.mark.rows("R028")
def test_weight_gradients_by_hand() -> None:
    gathered = Gathered(gradients={"0.weight/0": Gradient(torch.tensor([6.0, 0.0, 3.0]), 4)})
    assert by("taylor_weight", gathered=gathered) == [1.5, 0.0, 0.75]
    with pytest.raises(GraphError, match=r"no weight gradients were gathered for 0\.weight"):
        by("taylor_weight")


# --- on top of any --------------------------------------------------------------------------------


@pytest.mark.rows("R027")
def test_the_flops_penalty_is_of_the_layer_as_it_is() -> None:
    """8 filters of 3x3 over 3 inputs on 8x8; then 6 over the inputs that are left, on 4x4."""
    model, _, graph = traced(nets.chain)
    evidence = evidence_of(model, graph)
    found = mflops(graph, evidence)
    assert found["0.0"].tolist() == pytest.approx([2e-6 * 64 * 27] * 8)
    assert found["2.0"].tolist() == pytest.approx([2e-6 * 16 * 72] * 6)
    plain = score(graph, CRITERIA["l1"], evidence)
    dearer = score(graph, CRITERIA["l1"], evidence, flops_penalty=100.0)
    for group, values in plain.items():
        torch.testing.assert_close(dearer[group], values - 100 * found[group])
    plan = graph.plan({"0.0": [1, 5]})
    cut(model, graph.whole(), plan)
    assert mflops(graph, evidence_of(model, graph, plan))["2.0"].tolist() == pytest.approx(
        [2e-6 * 16 * 18] * 6)


@pytest.mark.rows("R027")
def test_the_expensive_layer_loses_first() -> None:
    """Equal scores: what costs more goes; without the penalty the first group does."""
    model, _, graph = traced(nets.chain)
    even = {"0.0": torch.ones(8), "2.0": torch.ones(6)}
    criterion = Criterion(lambda group, evidence: even[group.name], "weights", "none")
    scores = score(graph, criterion, evidence_of(model, graph), flops_penalty=1e-3)
    assert float(scores["0.0"].max()) < float(scores["2.0"].min())


# --- options --------------------------------------------------------------------------------------


@pytest.mark.rows("R023")
def test_options_come_as_a_mapping_or_with_the_function() -> None:
    model, graph = three_filters()
    evidence = evidence_of(model, graph)
    lp = CRITERIA["lp"].score
    named = score(graph, criterion_of("lp", {"p": 3}), evidence)
    bound = criterion_of(functools.partial(lp, p=3))
    assert (bound.needs, bound.normalize) == ("weights", "mean")
    assert torch.equal(score(graph, bound, evidence)["0"], named["0"])
    assert criterion_of(lp) is CRITERIA["lp"]
    assert criterion_of("ipad").options == {
        "omega": 0.5, "p": 2.0, "equalizer": 10.0, "resized": True, "weights_alone_1x1": False}


@pytest.mark.parametrize(("name", "options", "words"), [
    ("ipad", {"omgea": 1}, r"criterion ipad: unknown option 'omgea'\. Nearest: omega"),
    ("ipad", {"omega": 1.5}, r"criterion ipad: omega: 1\.5 must be a number from 0 to 1"),
    ("lp", {"p": 0}, "p: 0 must be a finite number above 0"),
    ("lp", {"p": math.inf}, "p: inf must be a finite number above 0"),
    ("lp", {"p": True, "scale": "none"}, "p: True must be"),
    ("l1", {"scale": "mean"}, "scale: 'mean' must be one of none, fan_in, resized"),
    ("entropy", {"bins": 1}, "bins: 1 must be a whole number above 1"),
    ("apoz", {"p": 2}, "unknown option 'p'"),
    ("mean_activation", {"rectified": 1}, "rectified: 1 must be true or false"),
])
def test_a_wrong_option_is_told_before_anything_is_scored(name: str, options: Mapping[str, Any],
                                                          words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        criterion_of(name, options)
    if name != "mean_activation":
        return
    with pytest.raises(ConfigError, match=words):
        criterion_of(functools.partial(CRITERIA[name].score, **options))


def mine(group: Group, evidence: Evidence, *, power: int, offset: float = 0.0) -> Tensor:
    return torch.arange(len(evidence.plan.kept[group.name])) ** power + offset


def test_a_users_own_takes_options_and_is_found_by_its_name() -> None:
    model, graph = three_filters()
    own = criterion_of(f"{__name__}:mine", {"power": 2})
    assert score(graph, own, evidence_of(model, graph), "none")["0"].tolist() == [0, 1, 4]
    with pytest.raises(ConfigError, match="option 'power' must be given"):
        criterion_of(f"{__name__}:mine")
    with pytest.raises(ConfigError, match=r"unknown option 'powr'\. Nearest: power"):
        criterion_of(mine, {"powr": 2, "power": 1})
    with pytest.raises(UnknownName, match="there is no 'mien' in it"):
        criterion_of(f"{__name__}:mien")


def test_what_a_users_own_needs_is_checked() -> None:
    with pytest.raises(UnknownName, match=r"unknown kind of evidence 'activty'\. Nearest: act"):
        criterion_of(Criterion(mine, ("weights", "activty")))
    assert Criterion(mine, ("weights", "maps", "pooled")).wants == {"maps", "pooled"}


# --- all together ---------------------------------------------------------------------------------


@pytest.mark.rows("R028")
def test_all_criteria_are_scored_from_one_pass() -> None:
    """Each as if it had been gathered for alone; every score finite, one for each channel."""
    model, example, graph = traced(nets.residual)
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, *example[0].shape[1:], generator=generator),
             torch.randint(0, 4, (n,), generator=generator)) for n in (3, 5)]
    weights = dict(model.named_parameters())

    def scores(criterion: Criterion, gathered: Gathered) -> dict[str, Tensor]:
        return score(graph, criterion, Evidence(graph, graph.whole(), weights, gathered,
                                                torch.Generator().manual_seed(0)))

    together = gather(model, graph, data, F.cross_entropy, KINDS)
    assert together.kinds == set(KINDS)
    for name, criterion in CRITERIA.items():
        alone = Gathered()
        if criterion.wants:
            alone = gather(model, graph, data, F.cross_entropy, criterion.wants)
            assert alone.kinds == criterion.wants
        for group, values in scores(criterion, together).items():
            torch.testing.assert_close(scores(criterion, alone)[group], values, msg=name)
            assert values.shape == (graph[group].channels,)
            assert bool(values.isfinite().all())


@pytest.mark.rows("R137")
@pytest.mark.parametrize(("given", "words"), [
    (None, "got NoneType"), ("high", "got str"),
    (torch.ones(3, device="meta"), "got Tensor: Cannot"),
    (torch.ones(3, dtype=torch.complex64), "got numbers of type torch.complex64")])
def test_scores_that_are_no_numbers_are_refused(given: Any, words: str) -> None:
    model, graph = three_filters()
    with pytest.raises(GraphError, match=f"one number for each channel; {words}"):
        score(graph, criterion_of(lambda group, evidence: given), evidence_of(model, graph))


@pytest.mark.rows("R020")
@pytest.mark.parametrize("normalize", ["l2", "mean"])
@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e308])
def test_scores_of_any_size_are_comparable(size: float, normalize: str) -> None:
    """Their squares or sums may be out of a float's range; by hand: 1, 1 and half of it."""
    model, graph = three_filters()
    given = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64) * size
    (values,) = score(graph, criterion_of(lambda group, evidence: given),
                      evidence_of(model, graph), normalize).values()
    expected = {"l2": [2 / 3, 2 / 3, 1 / 3], "mean": [1.2, 1.2, 0.6]}[normalize]
    assert values.tolist() == pytest.approx(expected, rel=1e-3)
