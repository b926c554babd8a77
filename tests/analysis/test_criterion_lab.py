"""Criteria compared on a tiny network: the numbers again by scipy, and what is written."""

import csv
import json
import math
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from engine.by_hand import snapshot, traced
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from harness.analysis.criterion_lab import Agreement, Comparison, agreement, compare, save, tables
from harness.engine.criteria import CRITERIA, Criterion, score
from harness.engine.evidence import Evidence, gather
from harness.engine.graph import Graph, Group
from harness.engine.oracle import loss_changes
from harness.engine.tracing import trace
from harness.errors import GraphError

SOME = {name: CRITERIA[name] for name in ("taylor", "l1", "l2", "apoz", "random")}


def data(num_batches: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 8, 8, generator=generator),
             torch.randint(0, 3, (4,), generator=generator)) for _ in range(num_batches)]


def compared(model: nn.Module, graph: Graph, criteria: dict[str, Criterion] = SOME,
             num_channels: int = 12) -> Comparison:
    return compare(model, graph, graph.whole(), data(), F.cross_entropy, criteria,
                   num_channels=num_channels)


def scores(model: nn.Module, graph: Graph, name: str, batches: int = 5) -> dict[str, Tensor]:
    gathered = gather(model, graph, data()[:batches], F.cross_entropy, ["activity", "activations"])
    return score(graph, CRITERIA[name], Evidence(
        graph, graph.whole(), dict(model.named_parameters()), gathered,
        torch.Generator().manual_seed(0)))


def test_agreement_within_groups_is_weighted_by_channels_and_overall_mixes_them() -> None:
    a = {"x": torch.tensor([1.0, 2, 3, 4]), "y": torch.tensor([9.0, 8, 7]),
         "two": torch.tensor([0.0, 1]), "even": torch.ones(3)}
    b = {"even": torch.arange(3.0), "x": torch.tensor([1.0, 2, 4, 3]),
         "y": torch.tensor([1.0, 2, 3]), "two": torch.tensor([1.0, 0])}
    rho = 1 - 6 * 2 / (4 * 15)
    joined = [np.concatenate([side[g] for g in a]) for side in (a, b)]
    found = agreement(a, b)
    assert found.within == pytest.approx((4 * rho - 3) / 7)
    assert found.overall == pytest.approx(stats.spearmanr(*joined).statistic)
    assert math.isnan(agreement({"x": torch.ones(2)}, {"x": torch.ones(2)}).within)


def test_criteria_are_compared_over_all_channels() -> None:
    model, _, graph = traced(nets.residual)
    found = compared(model, graph)
    assert found.criteria == tuple(SOME)
    assert (found.batches, found.examples) == (5, 20)
    for a in SOME:
        assert found.correlation[a][a] == Agreement(pytest.approx(1.0), pytest.approx(1.0))
        for b in SOME:
            one, two = scores(model, graph, a), scores(model, graph, b)
            overall = stats.spearmanr(torch.cat(list(one.values())), torch.cat(list(two.values())))
            assert found.correlation[a][b].overall == pytest.approx(overall.statistic)


@pytest.mark.rows("R029")
def test_agreement_with_the_oracle_is_over_the_sampled_channels() -> None:
    model, _, graph = traced(nets.residual)
    before = snapshot(model)
    found = compared(model, graph)
    assert snapshot(model) == before
    assert sum(map(len, found.sampled.values())) == 12
    true = loss_changes(model, graph, graph.whole(), data(), F.cross_entropy, found.sampled)
    assert {g: values.tolist() for g, values in true.items()} == found.loss_changes
    taylor = scores(model, graph, "taylor")
    one = np.concatenate([taylor[g][numbers] for g, numbers in found.sampled.items()])
    two = np.abs(np.concatenate(list(found.loss_changes.values())))
    assert found.oracle["taylor"].overall == pytest.approx(stats.spearmanr(one, two).statistic)
    assert found.oracle["taylor"].overall > found.oracle["random"].overall


def test_stability_compares_fewer_batches_with_all() -> None:
    """After 1, 2 and 4 of five batches, for criteria that look at data."""
    model, _, graph = traced(nets.residual)
    found = compared(model, graph)
    assert set(found.stability) == {"taylor", "apoz"}
    assert [s.batches for s in found.stability["taylor"]] == [1, 2, 4]
    few, all_ = (torch.cat(list(scores(model, graph, "taylor", n).values())) for n in (2, 5))
    half = len(few) // 2
    lowest = [set(np.argsort(s.numpy(), kind="stable")[:half].tolist()) for s in (few, all_)]
    assert found.stability["taylor"][1].overlap == len(lowest[0] & lowest[1]) / half
    assert found.stability["taylor"][1].within == pytest.approx(
        agreement(scores(model, graph, "taylor", 2), scores(model, graph, "taylor")).within)


def test_what_cannot_be_compared_is_listed_with_its_reason() -> None:
    model, _, graph = traced(nets.chain_without_norm)

    def fails(group: Group, evidence: Evidence) -> Tensor:
        return -torch.ones(group.channels)

    found = compared(model, graph, {"l1": CRITERIA["l1"], "bn_scale": CRITERIA["bn_scale"],
                                    "mine": Criterion(fails)})
    assert found.criteria == ("l1",)
    assert "passes no batch norm" in found.left_out["bn_scale"]
    assert "not negative" in found.left_out["mine"]
    assert found.examples == 0  # nobody asked for data
    assert not found.stability

    model, _, graph = traced(nets.functional)
    found = compared(model, graph)
    assert found.left_out["0.kernel"] == "no module puts out its channels"
    assert not {"0.kernel", "0.second"} & set(found.sampled)


def test_without_channels_there_is_nothing_to_compare() -> None:
    """Every layer is named, and why."""
    model = nn.Sequential(nn.Linear(4, 3))
    graph = trace(model, torch.zeros(1, 4))
    data = [(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(GraphError, match="no channels to compare criteria on: 0: output"):
        compare(model, graph, graph.whole(), data, F.cross_entropy, SOME)


def test_the_tables_show_every_criterion_and_the_files_hold_every_number(tmp_path: Path) -> None:
    model, _, graph = traced(nets.residual)
    found = compared(model, graph)
    correlation, oracle, stability = tables(found)
    assert [row[1] for row in correlation.rows] == list(SOME)
    assert correlation.rows[0][2] == "1.00"
    assert {row[0] for row in oracle.rows} == set(SOME)
    within = [found.oracle[str(row[0])].within for row in oracle.rows]
    assert within == sorted(within, reverse=True)
    assert stability.columns == ("criterion", "1 of 5", "2 of 5", "4 of 5")
    for table in (correlation, oracle, stability):
        assert all(len(row) == len(table.columns) for row in table.rows)

    as_json, as_csv = save(found, tmp_path / "there", "tiny")
    read = json.loads(as_json.read_text())
    assert read["oracle"]["taylor"]["within"] == found.oracle["taylor"].within
    assert read["sampled"] == found.sampled
    rows = list(csv.DictReader(as_csv.read_text().splitlines()))
    assert len(rows) == 5 * 5 + 5 + 2 * 3
    row = next(r for r in rows if (r["what"], r["criterion"], r["with"]) == (
        "stability", "apoz", "4"))
    assert float(row["overall"]) == pytest.approx(found.stability["apoz"][2].overlap, abs=1e-5)


def test_no_number_is_written_as_nothing(tmp_path: Path) -> None:
    """One channel a group: nothing can be ranked inside; JSON has no NaN."""
    model, _, graph = traced(nets.chain)
    found = compared(model, graph, num_channels=2)
    assert math.isnan(found.oracle["l1"].within)
    (why,) = tables(found)[1].notes[1:]
    assert "ranks need 3 channels of a group, and the sample has at most 1 of any" in why
    assert "spread over 2 groups" in why
    assert tables(found)[1].rows[0][1] == "-"
    as_json, _ = save(found, tmp_path, "x")
    assert json.loads(as_json.read_text())["oracle"]["l1"]["within"] is None


def test_a_line_says_why_nothing_can_be_ranked() -> None:
    """A criterion that gives every channel the same has no ranks; beside it stands the reason."""
    model, _, graph = traced(nets.chain)

    def same(group: Group, evidence: Evidence) -> Tensor:
        return torch.ones(group.channels)

    found = compared(model, graph, {"l1": CRITERIA["l1"], "same": Criterion(same)})
    correlation, oracle, _ = tables(found)
    assert correlation.rows[1][2:] == ("-", "-")
    assert correlation.notes == (
        "-: there is no group of 3 channels or more that both scores tell apart.",)
    assert "in no group of 3 sampled channels or more" in oracle.notes[-1]
    told = tables(compared(model, graph, {"l1": CRITERIA["l1"], "l2": CRITERIA["l2"]}))
    assert not told[0].notes, "where every number is there, nothing is explained"
    assert len(told[1].notes) == 1
