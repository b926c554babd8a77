"""Sensitivity: every number again by copies and cuts; what is kept, suggested, written, drawn."""

import copy
import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from engine.by_hand import snapshot, traced
from torch import Tensor, nn
from torch.nn.utils import prune as library

from harness.analysis.sensitivity import (
    Curve,
    Sensitivities,
    Sensitivity,
    checked,
    save,
    suggest,
    tables,
    weights_digest,
)
from harness.analysis.sensitivity_plots import heat_map, lines
from harness.engine.graph import Graph
from harness.engine.surgery import cut
from harness.errors import ConfigError, TargetError
from harness.evaluate import Examples, Measured, evaluate
from harness.store import FolderStore, Store

RATIOS = (0.25, 0.5, 0.9)


class Pictures:
    """Thirty random pictures of three classes."""

    inputs = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(1))


class Pixels:
    """Twenty random pictures whose every pixel is of one of so many classes as a U-Net's."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        seeds = [torch.Generator().manual_seed(n) for n in (2, 3)]
        self.inputs = torch.randn(20, *example.shape[1:], generator=seeds[0])
        with torch.no_grad():
            classes, *size = model.eval()(example).shape[1:]
        self.targets = torch.randint(0, classes, (20, *size), generator=seeds[1])


def norms(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Group -> L1 norm of what writes each channel, added up over the layers that do."""
    found: dict[str, Tensor] = {}
    for group in graph.groups:
        total = torch.zeros(group.channels)
        for part in group.writers:
            weight = model.get_parameter(part.tensor).detach().transpose(0, part.dim)
            total.index_add_(0, part.number, weight.flatten(1).abs().sum(1)[part.at])
        found[group.name] = total
    return found


def of(net: nets.Net, store: Store | None = None, ratios: tuple[float, ...] = RATIOS,
       rule: str = "count") -> tuple[nn.Module, Graph, dict[str, Tensor], Sensitivity]:
    model, _, graph = traced(net)
    scores = norms(model, graph)
    measuring = Sensitivities(model, graph, graph.whole(), Pictures(), store=store, batch_size=8)
    return model, graph, scores, measuring.measure(ratios, scores=scores, criterion="l1",
                                                   rule=rule)


@pytest.mark.rows("R094", "R095", "R060")
@pytest.mark.parametrize("net", [nets.chain, nets.chain_without_norm, nets.residual,
                                 nets.branches], ids=nets.name)
def test_every_number_is_that_of_a_copy_that_is_really_cut(net: nets.Net) -> None:
    check_by_copies(*of(net), Pictures())


@pytest.mark.rows("R094", "R095")
@pytest.mark.parametrize("net", [nets.unet_transposed, nets.unet_bilinear], ids=nets.name)
def test_where_pixels_have_classes_every_number_is_that_of_a_copy_too(net: nets.Net) -> None:
    model, (example, *_), graph = traced(net)
    scores, pixels = norms(model, graph), Pixels(model, example)
    found = Sensitivities(model, graph, graph.whole(), pixels, batch_size=16).measure(
        RATIOS, scores=scores, criterion="l1")
    check_by_copies(model, graph, scores, found, pixels)


def check_by_copies(model: nn.Module, graph: Graph, scores: dict[str, Tensor], found: Sensitivity,
                    examples: Examples) -> None:
    whole = evaluate(model, examples)
    assert found.baseline.accuracy == whole.accuracy
    for curve in found.of("unstructured"):
        for ratio, accuracy, loss in zip(RATIOS, curve.accuracy, curve.loss):
            other = copy.deepcopy(model)
            library.l1_unstructured(other.get_submodule(curve.name), "weight", ratio)
            measured = evaluate(other, examples)
            assert accuracy == pytest.approx(measured.accuracy)
            assert loss == pytest.approx(measured.loss, rel=1e-5)
    groups = {group.layers: group for group in graph.groups}
    for curve in found.of("structured"):
        group = groups[curve.layers]
        order = scores[group.name].numpy().argsort(kind="stable")
        for gone, accuracy, loss in zip(curve.removed, curve.accuracy, curve.loss):
            small = copy.deepcopy(model)
            cut(small, graph.whole(), graph.plan({group.name: sorted(order[gone:].tolist())}))
            measured = evaluate(small, examples)
            assert accuracy == pytest.approx(measured.accuracy)
            assert loss == pytest.approx(measured.loss, rel=1e-4)
    assert len({loss for c in found.curves for loss in c.loss}) > len(RATIOS), "nothing is tested"


@pytest.mark.rows("R094")
def test_the_model_is_untouched_afterwards() -> None:
    model, _, graph = traced(nets.residual)
    before, digest = snapshot(model), weights_digest(model)
    Sensitivities(model, graph, graph.whole(), Pictures()).measure(
        RATIOS, scores=norms(model, graph))
    assert snapshot(model) == before
    assert weights_digest(model) == digest
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


@pytest.mark.rows("R095")
def test_coupled_layers_are_measured_together_and_the_frozen_are_listed() -> None:
    _, graph, _, found = of(nets.residual)
    coupled = [c for c in found.of("structured") if len(c.layers) > 1]
    assert coupled
    assert coupled[0].label == f"{coupled[0].name} (+{len(coupled[0].layers) - 1} coupled)"
    notes = "\n".join(tables(found)[1].notes)
    assert f"{coupled[0].name} cannot be cut alone: measured with {coupled[0].layers[1]}" in notes
    assert found.frozen == graph.frozen
    for name, why in graph.frozen.items():
        assert f"never cut, hence not measured: {name}: {why}" in notes


@pytest.mark.rows("R039", "R040")
@pytest.mark.parametrize(("ratio", "count", "quantile"), [(0.1, 1, 1), (0.5, 4, 4), (0.9, 7, 7)])
def test_how_many_go_by_count_and_by_seed_003s_quantile(ratio: float, count: int,
                                                        quantile: int) -> None:
    """Eight channels: int(8 (1 - r)) stay, at least one; or those at or above the quantile."""
    for rule, gone in (("count", count), ("quantile", quantile)):
        _, _, scores, found = of(nets.chain, ratios=(ratio,), rule=rule)
        (curve,) = [c for c in found.of("structured") if c.size == 8]
        assert curve.removed == (gone,)
    (values,) = [s.double().numpy() for s in scores.values() if len(s) == 8]
    assert int((values < np.quantile(values, ratio)).sum()) == quantile


@pytest.mark.rows("R096")
def test_what_was_measured_is_used_on_a_match_and_never_else(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    model, graph, scores, first = of(nets.chain, store)
    assert not any(c.reused for c in first.curves)
    _, _, _, again = of(nets.chain, store)
    assert all(c.reused for c in again.curves)
    assert [c.accuracy for c in again.curves] == [c.accuracy for c in first.curves]
    _, _, _, others = of(nets.chain, store, ratios=(0.25, 0.6))
    assert not any(c.reused for c in others.curves)
    with torch.no_grad():
        next(model.parameters())[0].mul_(1.01)

    def reused(identity: Mapping[str, str], scores: Mapping[str, Tensor],
               changed: nn.Module) -> list[bool]:
        found = Sensitivities(changed, graph, graph.whole(), Pictures(), store=store,
                              identity=identity, batch_size=8).measure(RATIOS, scores=scores)
        return [c.reused for c in found.curves if c.kind == "structured"]

    assert not any(reused({}, scores, model)), "other weights"
    same, _, _ = traced(nets.chain)
    assert not any(reused({"data": "others"}, scores, same)), "other data"
    turned = {name: -values for name, values in scores.items()}
    assert not any(reused({}, turned, same)), "another order of the channels"
    assert all(reused({}, {name: 2 * v for name, v in scores.items()}, same)), "the same order"


def by_hand(drops: Mapping[str, tuple[float, ...]], ratios: tuple[float, ...]) -> Sensitivity:
    """Curves from drops in points, of a network that is always right."""
    curves = tuple(Curve("structured", name, (name,), 8, (0,) * len(ratios),
                         tuple(1 - d / 100 for d in values), values)
                   for name, values in drops.items())
    return Sensitivity(Measured(1.0, 0.0), 100, ratios, "l1", "count", curves, {})


def test_a_suggestion_costs_every_layer_as_much_and_keeps_the_budget() -> None:
    model, _, graph = traced(nets.chain)
    scores = norms(model, graph)
    first, second = (g.layers[0] for g in graph.groups)
    found = by_hand({first: (4.0, 20.0, 80.0), second: (1.0, 2.0, 10.0)}, (0.25, 0.5, 0.9))
    shares = []
    for flops in (0.8, 0.5, 0.3):
        plan = suggest(graph, found, scores, flops)
        assert plan.share <= flops
        assert plan.ratios[second] > plan.ratios[first]
        kept = {g.name: range(max(1, int(g.channels * (1 - plan.ratios[g.layers[0]]) + 1e-9)))
                for g in graph.groups}
        assert plan.macs == graph.cost(graph.plan(kept)).macs
        drops = [np.interp(plan.ratios[name], (0, *found.ratios), (0, *found.drops(curve)))
                 for name, curve in zip((first, second), found.curves)]
        assert max(drops) <= plan.drop + 1e-6
        shares.append(plan.drop)
    assert shares == sorted(shares)


@pytest.mark.parametrize(("first_drops", "second_drops", "drop", "flops"), [
    ((0.0, 0.0, 0.0), (0.0, -1.0, 0.0), 0.0, 0.7),  # nothing ever costs anything
    ((3.0, 3.0, 3.0), (3.0, 3.0, 3.0), 3.0, 0.4),
    ((0.0, 9.0, 9.0), (0.0, 0.0, 0.0), 0.0, 0.7),
])
def test_where_curves_are_flat_no_more_goes_than_is_asked(
        first_drops: tuple[float, ...], second_drops: tuple[float, ...], drop: float,
        flops: float) -> None:
    """A channel less in any layer that loses some, and the plan would leave too much."""
    model, _, graph = traced(nets.chain)
    first, second = (g.layers[0] for g in graph.groups)
    found = by_hand({first: first_drops, second: second_drops}, (0.25, 0.5, 0.9))
    plan = suggest(graph, found, norms(model, graph), flops)
    assert plan.drop == pytest.approx(drop, abs=2e-3)
    widths = {g.layers[0]: int(g.channels * (1 - plan.ratios.get(g.layers[0], 0)) + 1e-9)
              for g in graph.groups}

    def share(widths: dict[str, int]) -> float:
        kept = {g.name: range(widths[g.layers[0]]) for g in graph.groups}
        return graph.cost(graph.plan(kept)).macs / graph.cost().macs

    assert share(widths) == plan.share <= flops
    whole = {g.layers[0]: g.channels for g in graph.groups}
    back = {name: min(width + 1, whole[name]) for name, width in widths.items()}
    assert share(back) > flops, "of every layer a channel more could have stayed"


def test_curves_that_do_not_lead_to_the_budget_say_so() -> None:
    model, _, graph = traced(nets.chain)
    found = by_hand({g.layers[0]: (1.0,) for g in graph.groups}, (0.25,))
    with pytest.raises(TargetError, match=r"share of 0.1 of the FLOPs is further .* ratio 0.25"):
        suggest(graph, found, norms(model, graph), 0.1)
    with pytest.raises(ConfigError, match="flops: 1.5 must be a share above 0 and below 1"):
        suggest(graph, found, norms(model, graph), 1.5)


def test_what_is_asked_for_wrongly_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        checked((0.0, 0.5, 1.0), ("filters",), "quantil")
    assert [line.partition(".")[0] for line in str(caught.value).splitlines()] == [
        "ratios: 0", "ratios: 1", "kinds: unknown kind 'filters'", "rule: unknown rule 'quantil'"]
    assert checked((0.5, 0.1, 0.5), ("structured",), "count") == (0.1, 0.5)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    _, _, _, found = of(nets.residual)
    as_json, as_csv = save(found, tmp_path / "new", "mine")
    content = json.loads(as_json.read_text())
    assert [c["accuracy"] for c in content["curves"]] == [list(c.accuracy) for c in found.curves]
    rows = list(csv.DictReader(as_csv.read_text().splitlines()))
    assert len(rows) == len(found.curves) * len(RATIOS)
    for row, curve in zip(rows[::len(RATIOS)], found.curves):
        assert row["layers"].split() == list(curve.layers)
        assert float(row["drop_points"]) == pytest.approx(found.drops(curve)[0], abs=1e-4)


def test_a_share_that_would_leave_a_layer_nothing_is_a_gap(tmp_path: Path) -> None:
    found = by_hand({"a": (1.0, math.nan), "b": (2.0, 3.0)}, (0.5, 0.9))
    assert json.loads(save(found, tmp_path, "gap")[0].read_text())["curves"][0]["accuracy"] == [
        0.99, None]
    (table,) = tables(found)
    assert table.rows[0][-1] == "-"
    assert "-: a layer of the group would be left without channels." in table.notes
    assert "grey: a layer would be left without channels" in heat_map(found).axes[0].get_xlabel()


def test_of_pixels_pictures_and_tables_name_the_measure() -> None:
    """It is no accuracy, and neither axis nor title says so."""
    found = replace(of(nets.residual)[-1], measure="mean IoU")
    assert heat_map(found).axes[1].get_ylabel() == "drop of mean IoU (points)"
    assert lines(found).axes[0].get_ylabel().startswith("mean IoU on validation (%)")
    assert all("mean IoU" in sheet.title and "accuracy" not in sheet.title
               for sheet in tables(found))


@pytest.mark.rows("R123")
def test_the_heat_map_is_inferno_in_points_with_a_row_a_group() -> None:
    _, _, _, found = of(nets.residual)
    axes, bar = heat_map(found).axes
    (image,) = axes.images
    assert image.get_cmap().name == "inferno"
    assert bar.get_ylabel() == "drop of top-1 accuracy (points)"
    expected = [[100 * (found.baseline.accuracy - a) for a in c.accuracy]
                for c in found.of("structured")]
    np.testing.assert_allclose(np.asarray(image.get_array()), expected)
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        c.label for c in found.of("structured")]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.25", "0.5", "0.9"]


@pytest.mark.rows("R123")
def test_the_lines_are_accuracy_in_percent_one_a_layer_told_apart_without_colour() -> None:
    _, _, _, found = of(nets.chain)
    axes = lines(found).axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn)[:-1] == [c.label for c in found.of("unstructured")]
    for curve in found.of("unstructured"):
        np.testing.assert_allclose(drawn[curve.label].get_ydata(),
                                   [100 * a for a in curve.accuracy])
    looks = {(line.get_linestyle(), line.get_marker()) for line in axes.lines[:-1]}
    assert len(looks) == len(found.of("unstructured"))
    assert "(%)" in axes.get_ylabel()
