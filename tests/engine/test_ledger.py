"""The ledger of a step tells what was asked, what went, what stayed, and why."""

import io
import json

import nets
import pytest
import torch

import harness
from engine.by_hand import traced
from harness.console import Console
from harness.engine.graph import Graph
from harness.engine.ledger import Ledger, Whole, kind_of, ledger
from harness.engine.pruner import ignoring

SCORES = {"0.0": torch.tensor([8.0, 1, 7, 2, 6, 3, 5, 4]), "2.0": torch.arange(6.0) + 10}


def step() -> tuple[Graph, Ledger]:
    """Of 8 channels the three lowest went, of 6 none: a floor stood before them."""
    _, _, graph = traced(nets.chain)
    after = graph.plan({"0.0": [0, 2, 4, 6, 7]})
    return graph, ledger(graph, graph.whole(), after, asked={"filters": 0.25},
                         reached={"filters": 3 / 14}, scores=SCORES,
                         bound={"2.0": "layer_min: 2.0 keeps 1 of its channels"})


@pytest.mark.rows("R118")
def test_a_step_by_hand() -> None:
    _, found = step()
    first, second = found.groups
    assert (first.group, first.layers, first.original, first.had, first.kept) == (
        "0.0", ("0.0",), 8, 8, 5)
    assert (first.removed_scores, first.kept_scores) == ((1.0, 3.0), (4.0, 8.0))
    assert first.removed == {1: 1.0, 3: 2.0, 5: 3.0}
    assert second.removed == {}
    assert (second.kept, second.removed_scores, second.kept_scores) == (6, None, (10.0, 15.0))
    assert second.bound == "layer_min: 2.0 keeps 1 of its channels"
    assert {w.name: w.kind for w in found.whole} == {"2.0": "floor", "3.2": "output"}
    assert found.changed
    assert found.collapsed == ()


def test_it_goes_to_json_and_back() -> None:
    _, found = step()
    told = json.loads(json.dumps(found.as_json()))
    assert told["asked"] == {"filters": 0.25}
    assert told["changed"] is True
    assert told["groups"][0]["removed_scores"] == [1.0, 3.0]
    assert told["groups"][0]["removed"] == {"1": 1.0, "3": 2.0, "5": 3.0}
    assert told["whole"][1] == {
        "name": "3.2", "kind": "output", "reason": "output of the network", "layers": ["3.2"]}


@pytest.mark.rows("R041")
def test_a_person_reads_it() -> None:
    """All groups, what they keep and why no more, through the console as it is."""
    _, found = step()
    out = io.StringIO()
    Console(out=out).table(*found.table())
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines[0] == "filters: asked 25.00%, removed 21.43%"
    assert "0.0 5 8 3 1 to 3 4 to 8" in lines
    assert "2.0 6 6 - - 10 to 15 layer_min: 2.0 keeps 1 of its channels" in lines
    assert "3.2 - - - - - output: output of the network" in lines


def test_a_step_that_changed_nothing_says_so() -> None:
    _, _, graph = traced(nets.chain)
    whole = graph.whole()
    found = ledger(graph, whole, whole, asked={"macs": 0.1}, reached={"macs": 0.0})
    assert not found.changed
    assert found.table().notes[0] == "this step changed nothing"
    assert {w.kind for w in found.whole} == {"not chosen", "output"}
    assert found.table().title == "macs: asked 10.00%, removed 0.00%"
    assert ledger(graph, whole, whole, asked={}, reached={"macs": 0.0}).table().title == (
        "macs: removed 0.00%")


def test_a_width_that_must_stay_a_multiple_is_told() -> None:
    """Six channels, the lowest scores of all, and widths in multiples of eight."""
    _, _, graph = traced(nets.chain)
    after = graph.plan({"0.0": [0]})
    scores = {"0.0": SCORES["0.0"], "2.0": torch.zeros(6)}
    kept: dict[int, list[Whole]] = {
        to: [w for w in ledger(graph, graph.whole(), after, asked={}, reached={}, scores=scores,
                               round_to=to).whole if w.name == "2.0"] for to in (1, 8)}
    assert kept[1] == [Whole("2.0", "not chosen", "none of its channels was chosen", ("2.0",))]
    assert kept[8] == [Whole("2.0", "divisibility", "its width stays a multiple of 8", ("2.0",))]


def test_layers_of_which_next_to_nothing_is_left_are_named() -> None:
    _, _, graph = traced(nets.residual)
    before, after = graph.plan({"0.0": [1, 2]}), graph.plan({"0.0": [2], "2.first.0": [0, 1]})
    found = ledger(graph, before, after, asked={}, reached={})
    assert found.collapsed == ("0.0 (1 of 8)", "1.second.0 (1 of 8)")
    first = found.groups[0]
    assert (first.had, first.kept, first.original) == (2, 1, 8)
    assert first.removed == {1: None}, "no scores were given"


def test_what_is_coupled_to_an_ignored_layer_is_told_from_it() -> None:
    model, _, graph = traced(nets.residual)
    frozen = ignoring(graph, ["1", "2.first"], model).frozen
    kinds = {name: kind_of(name, why) for name, why in frozen.items()}
    assert kinds["0.0"] == "coupled to an ignored layer"  # summed up with 1.second
    assert kinds["2.first.0"] == "ignored"
    assert kinds["1.first.0"] == "ignored"


@pytest.mark.parametrize("case", nets.REFUSED)
def test_every_reason_is_of_a_kind(case: str) -> None:
    """Of all that the tests' networks are refused for, nothing is left over."""
    net, _, _ = nets.REFUSED[case]
    model, example = net()
    frozen = harness.trace(model, example).frozen
    assert frozen
    assert not {name: why for name, why in frozen.items() if kind_of(name, why) == "other"}


@pytest.mark.parametrize(("reason", "kind"), [
    ("output of the network; aten.softmax.int has no rule", "output"),
    ("size written in forward (RuntimeError: shape '[-1, 8]' is invalid)", "size in forward"),
    ("no traced forward uses it", "not in the trace"),
    ("only embedding uses it", "not in the trace"),
    ("aten.group_norm.default has no rule", "unknown operator"),
    ("all of its channels can only go together", "divisibility"),
    ("aten.mean.dim mixes them", "channels mixed"),
    ("first.weight is also used by t", "shared tensor"),
    ("only cut as a consequence (only_follow)", "not asked for"),
    ("they meet values that cannot be cut", "coupled to what stays"),
    ("the moon is full", "other"),
])
def test_kinds_of_reasons(reason: str, kind: str) -> None:
    assert kind_of("layer", reason) == kind
