"""The account of a network: what a person reads, and the same as JSON."""

import hashlib
import json

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness.analysis.costs import Account, Workload, account, as_json, comparison, measured, sheets
from harness.engine.graph import Graph
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.runtime import seeded

LOAD = Workload(examples=100, batch_size=32, epochs={"baseline": 2, "finetune": 0})
# tiny.net on 8 x 8: three convolutions, the last behind a pooling, and a linear layer.
FIRST = 64 * 8 * 9
MACS = FIRST + 64 * 12 * 8 * 9 + 16 * 16 * 12 * 9 + 160


def network() -> nn.Module:
    with seeded(0):
        return tiny.net()


def counted(model: nn.Module, name: str = "tiny", graph: Graph | None = None) -> Account:
    example = torch.zeros(2, 1, 8, 8)
    return account(name, model, graph or trace(model, example), example, LOAD)


@pytest.mark.rows("R076", "R077", "R080", "R081", "R083")
def test_the_json_has_every_number_under_a_name_that_says_its_unit() -> None:
    """By hand for the tiny network."""
    found = json.loads(json.dumps(as_json(counted(network()))))
    training = 3 * MACS - FIRST
    assert found["convention"] == "flops = 2 x macs"
    assert found["per_picture"] == {
        "macs": MACS, "flops": 2 * MACS, "input_gradient_macs": MACS - FIRST,
        "weight_gradient_macs": MACS, "training_macs": training, "training_flops": 2 * training}
    for unit, factor in (("per_minibatch", 32), ("per_epoch", 100)):
        assert found[unit] == {k: v * factor for k, v in found["per_picture"].items()}
    params = 8 * 9 + 12 * 8 * 9 + 16 * 12 * 9 + 2 * 36 + 170
    assert (found["params"], found["norm_params"], found["filters"]) == (params, 72, 36)
    assert found["params_mb"] == pytest.approx(4 * params / 1e6)
    assert found["bytes"] == 4 * (params + 2 * 36) + 3 * 8  # statistics, and three counters
    assert found["operators"] == {"aten.conv2d": {"uses": 3, "macs": MACS - 160},
                                  "aten.linear": {"uses": 1, "macs": 160}}
    assert found["uncounted"]["aten.batch_norm"] == 3
    assert found["groups"] == {"0": 8, "3": 12, "7": 16}
    assert found["frozen"] == {"12": "output of the network"}
    assert [(x["name"], x["kind"], x["macs"]) for x in found["layers"]][:2] == [
        ("0", "convolution", FIRST), ("1", "norm", 0)]
    assert [(x["name"], x["macs"]) for x in found["blocks"]] == [("", MACS)]
    assert found["counted_as"]["macs"]["operations"] == MACS


@pytest.mark.rows("R076", "R080", "R082")
def test_the_tables_say_the_convention_beside_every_number() -> None:
    tables = sheets(counted(network()))
    for sheet in tables:
        for row in sheet.rows:
            assert len(row) == len(sheet.columns)
        words = " ".join([sheet.title, *sheet.columns])
        assert ("FLOPs" in words) == ("2 x MACs" in words)
    text = " ".join(str(cell) for sheet in tables for row in sheet.rows for cell in row)
    notes = " ".join(note for sheet in tables for note in sheet.notes)
    assert "output of the network" in text
    assert "not counted: aten.batch_norm x3" in notes
    assert 2 * (3 * MACS - FIRST) * 100 * 2 == 103_411_200  # all epochs of a phase together
    assert "training this network: baseline (2 epochs) 103 M" in notes
    assert "finetune" not in notes


@pytest.mark.rows("R081", "R082", "R084")
def test_a_pruned_network_stands_beside_the_whole() -> None:
    """Both networks: half of 36 filters; the share that is gone by formula."""
    model = network()
    example = torch.zeros(2, 1, 8, 8)
    before = counted(model)
    graph = trace(model, example)
    cut(model, graph.whole(), graph.plan({g.name: range(g.channels // 2) for g in graph.groups}))
    after = counted(model, "half")
    rows = {str(row[0]): row[1:] for row in comparison(before, after).rows}
    assert rows["filters"] == ["36", "18", "50.00 %"]
    half = 64 * 4 * 9 + 64 * 6 * 4 * 9 + 16 * 8 * 6 * 9 + 80
    assert after.work.macs == half
    assert rows["MACs per picture"][2] == f"{100 * (1 - half / MACS):.2f} %"
    assert after.work.training_macs == 3 * half - 64 * 4 * 9


@pytest.mark.rows("R083", "R085")
def test_what_is_measured_says_where() -> None:
    """One picture and a batch, all networks in turn; the order of quarters holds."""
    models = {"one": network(), "two": network()}
    sheet, facts = measured(models, torch.zeros(4, 1, 8, 8), torch.device("cpu"), rounds=4)
    latency, sizes = facts["latency"], facts["file_bytes"]
    assert isinstance(latency, list)
    assert isinstance(sizes, dict)
    assert [(x["network"], x["device"], x["batch"]) for x in latency] == [
        ("one", "cpu", 1), ("two", "cpu", 1), ("one", "cpu", 4), ("two", "cpu", 4)]
    assert all(0 < x["low_ms"] <= x["median_ms"] <= x["high_ms"] for x in latency)
    assert len(sheet.rows) == 4
    assert counted(models["one"]).cost.bytes < sizes["one"] == sizes["two"]


@pytest.mark.rows("R136")
def test_counting_changes_nothing() -> None:
    """Weights, statistics, captured activations, gradients, mode, generator."""
    model = network().train()
    graph = trace(model, torch.zeros(2, 1, 8, 8))
    captured: list[Tensor] = []
    handle = model[0].register_forward_hook(  # type: ignore[index]
        lambda module, given, out: captured.append(out.detach().clone()))
    model(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()

    def digest() -> str:
        tensors = [*model.state_dict().values(), *captured,
                   *(p.grad for p in model.parameters() if p.grad is not None),
                   torch.get_rng_state()]
        joined = b"".join(t.contiguous().numpy().tobytes() for t in tensors)
        return hashlib.sha256(joined).hexdigest() + str([m.training for m in model.modules()])

    before = digest()
    found = counted(model, graph=graph)
    sheets(found)
    as_json(found)
    assert digest() == before
    assert len(captured) == 1
    handle.remove()
