"""What `prune` does around a cut: all of it or nothing, on a copy if only asked what would go."""

import copy
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

import harness
from engine.by_hand import counted_macs, num_parameters, outputs, run, silenced, snapshot
from harness.engine import pruner
from harness.engine.optimizer import check_optimizer
from harness.errors import ConfigError, SurgeryError, TargetError, TrainingError


def pairs(seed: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 3, 8, 8, generator=generator) + 1, torch.randint(4, (4,)))
            for _ in range(2)]


def trained(net: nets.Net) -> tuple[nn.Module, Tensor, torch.optim.Optimizer]:
    """A network after two steps of Adam, in eval mode, with gradients."""
    model, example = net()
    assert isinstance(example, Tensor)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        outputs(model.train()(example))[0].square().mean().backward()
        optimizer.step()
    return model.eval(), example, optimizer


def state_of(optimizer: torch.optim.Optimizer) -> list[object]:
    return [(key, value.tolist() if isinstance(value, Tensor) else value)
            for state in optimizer.state.values() for key, value in state.items()]


# --- a dry run ------------------------------------------------------------------------------------


@pytest.mark.rows("R041", "R120")
@pytest.mark.parametrize("net", [nets.residual, nets.depthwise, nets.size_in_view])
def test_a_dry_run_says_what_a_run_does_and_touches_nothing(net: nets.Net) -> None:
    model, example, optimizer = trained(net)
    before, memory, generator = snapshot(model), state_of(optimizer), torch.get_rng_state()
    asked: dict[str, Any] = {"target": {"filters": 0.3}, "optimizer": optimizer, "fold": True}
    dry = harness.prune(model, example, dry_run=True, **asked)
    assert snapshot(model) == before
    assert state_of(optimizer) == memory
    assert torch.equal(torch.get_rng_state(), generator)
    real = harness.prune(model, example, **asked)
    assert (dry.is_cut, real.is_cut) == (False, True)
    assert dry.model is real.model is model
    assert dry.plan == real.plan
    assert (dry.before, dry.after, dry.frozen, dry.ledger, dry.certificate) == (
        real.before, real.after, real.frozen, real.ledger, real.certificate)
    assert dry.after.params == num_parameters(model)
    assert dry.after.macs == counted_macs(model, (example,))


# --- optimisers -----------------------------------------------------------------------------------


@pytest.mark.rows("R065", "R135")
def test_an_optimiser_goes_on_with_the_cut_network() -> None:
    """Every parameter is still trained, gets a gradient, and moves."""
    model, example, optimizer = trained(nets.residual)
    harness.prune(model, example, target={"filters": 0.5}, optimizer=optimizer)
    check_optimizer(optimizer, model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.zero_grad()
    outputs(model.train()(example))[0].square().mean().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not torch.equal(parameter, before[name]), name
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape, name


def test_an_optimiser_of_another_network_is_an_error_before_anything_happens() -> None:
    model, example = nets.residual()
    before = snapshot(model)
    other = torch.optim.Adam(copy.deepcopy(model).parameters())
    with pytest.raises(TrainingError, match="not, or no longer, in the model"):
        harness.prune(model, example, target={"filters": 0.5}, optimizer=other)
    assert snapshot(model) == before


@pytest.mark.rows("R135")
def test_a_cut_without_the_optimiser_cannot_go_on_in_silence() -> None:
    """Its momenta have the old sizes: the next step raises, and so does the next cut."""
    model, example, optimizer = trained(nets.residual)
    harness.prune(model, example, target={"filters": 0.3})
    outputs(model.train()(example))[0].square().mean().backward()
    with pytest.raises(RuntimeError, match="size|shape"):
        optimizer.step()
    with pytest.raises(SurgeryError, match="Adam remembers exp_avg, exp_avg_sq of 0"):
        harness.prune(model.eval(), example, target={"filters": 0.3}, optimizer=optimizer)


# --- folding and statistics -----------------------------------------------------------------------


def dead() -> tuple[nn.Module, Tensor]:
    """Two channels of the first layer are constant and read without padding, in float64."""
    model, example = nets.made(lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6), nn.ReLU(), nets.head(6)), (2, 3, 8, 8))
    assert isinstance(example, Tensor)
    with torch.no_grad():
        model.get_parameter("1.weight")[[2, 5]] = 0
        model.get_parameter("1.bias")[[2, 5]] = 0.9
    return model.double(), example.double()


def test_with_folding_the_dead_go_for_nothing() -> None:
    """The scale chooses them; the network computes what it did, not what it does without them."""
    def scale(group: Any, evidence: Any) -> Tensor:
        kept = len(evidence.plan.kept[group.name])
        found: Tensor = evidence.weights["1.weight"].abs() if kept == 8 else torch.ones(kept)
        return found

    asked: dict[str, Any] = {"target": {"filters": 2 / 14}, "criterion": scale,
                             "normalize": "none", "ignore": ["3"]}
    model, example = dead()
    expected = run(model, (example,))
    folded, plain = copy.deepcopy(model), copy.deepcopy(model)
    result = harness.prune(folded, example, fold=True, **asked)
    assert result.plan.as_json() == {"0": [0, 1, 3, 4, 6, 7]}
    assert result.folding is not None
    assert result.folding.channels == {"3": 2}
    assert result.certificate is not None
    assert result.certificate.certified
    torch.testing.assert_close(run(folded, (example,)), expected, rtol=1e-10, atol=1e-10)
    assert harness.prune(plain, example, **asked).folding is None
    without = run(silenced(model, result.plan), (example,))
    torch.testing.assert_close(run(plain, (example,)), without, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(run(plain, (example,))[0], expected[0], atol=1e-3)


def test_statistics_are_measured_on_the_cut_network() -> None:
    """As if it had been trained on the batches with momentum None and no learning."""
    model, example = nets.residual()
    assert isinstance(example, Tensor)
    other = copy.deepcopy(model)
    result = harness.prune(model, example, target={"filters": 0.5}, norm_batches=pairs())
    assert result.recalibration is not None
    assert (result.recalibration.batches, result.recalibration.examples) == (2, 8)
    harness.prune(other, example, target={"filters": 0.5})
    norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(result.recalibration.norms) == len(norms) > 0
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for inputs, _ in pairs():
        other.train()(inputs)
    for (name, buffer), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


# --- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["norm_batches", "memory", "interrupt"])
def test_whatever_fails_after_the_cut_undoes_the_cut(
        fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, example, optimizer = trained(nets.residual)
    before, memory = snapshot(model), state_of(optimizer)
    error: type[BaseException] = {"norm_batches": SurgeryError, "memory": SurgeryError,
                                  "interrupt": KeyboardInterrupt}[fails]
    batches = [] if fails == "norm_batches" else pairs()

    def broken(*_: object) -> None:
        optimizer.state[next(model.parameters())]["exp_avg"] = torch.zeros(1)
        raise error

    if fails != "norm_batches":
        monkeypatch.setattr("harness.engine.optimizer.Memory.follow", broken)
    with pytest.raises(error):
        harness.prune(model, example, target={"filters": 0.5}, optimizer=optimizer, fold=True,
                      norm_batches=batches)
    assert snapshot(model) == before
    assert state_of(optimizer) == memory


# --- one cut after another ------------------------------------------------------------------------


def test_a_second_cut_goes_on_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is traced again, numbers and shares stay those of the whole network."""
    model, example = nets.residual()
    assert isinstance(example, Tensor)
    whole = copy.deepcopy(model)
    first = harness.prune(model, example, target={"filters": 0.3})
    monkeypatch.setattr(pruner, "trace", None)
    second = harness.prune(model, example, target={"filters": 0.6}, previous=first)
    assert second.before == first.after
    assert second.after.filters <= 0.4 * first.before.filters < second.after.filters + 8
    for name, kept in second.plan.kept.items():
        assert set(kept.tolist()) <= set(first.plan.kept[name].tolist())
    assert second.certificate is not None
    assert second.certificate.certified
    expected = run(silenced(whole, second.plan), (example,))
    torch.testing.assert_close(run(model, (example,)), expected, rtol=1e-9, atol=1e-10)
    assert [line.had for line in second.ledger.groups] == [
        line.kept for line in first.ledger.groups]


def test_what_was_cut_before_and_is_ignored_now_stays_as_it_is() -> None:
    model, example = nets.residual()
    first = harness.prune(model, example, target={"filters": 0.3})
    second = harness.prune(model, example, target={"filters": 0.45}, previous=first, ignore=["1"])
    assert second.frozen["0.0"] == "ignored by name (1)"
    for name in ("0.0", "1.first.0"):
        assert second.plan.kept[name].tolist() == first.plan.kept[name].tolist()


def test_a_target_that_is_met_already_changes_nothing_and_says_so() -> None:
    model, example = nets.residual()
    first = harness.prune(model, example, target={"filters": 0.5})
    before = snapshot(model)
    second = harness.prune(model, example, target={"filters": 0.3}, previous=first)
    assert snapshot(model) == before
    assert second.plan == first.plan
    assert not second.ledger.changed
    assert second.certificate is None
    assert second.ledger.table().notes[0] == "this step changed nothing"


def test_the_result_of_another_network_is_refused() -> None:
    model, example = nets.residual()
    first = harness.prune(copy.deepcopy(model), example, target={"filters": 0.5})
    before = snapshot(model)
    with pytest.raises(SurgeryError, match="the model is not cut by that result: .* were kept"):
        harness.prune(model, example, target={"filters": 0.6}, previous=first)
    dry = harness.prune(model, example, target={"filters": 0.5}, dry_run=True)
    with pytest.raises(SurgeryError, match="which was a dry run and has cut nothing"):
        harness.prune(model, example, target={"filters": 0.6}, previous=dry)
    plan: Any = first.plan
    with pytest.raises(ConfigError, match="give the result of an earlier cut, not a Plan"):
        harness.prune(model, example, target={"filters": 0.6}, previous=plan)
    assert snapshot(model) == before


# --- the ledger of a cut --------------------------------------------------------------------------


@pytest.mark.parametrize("net", [nets.residual, nets.flatten, nets.dense_concat])
@pytest.mark.parametrize("resource", ["filters", "params", "flops"])
def test_the_ledger_agrees_with_the_network(net: nets.Net, resource: str) -> None:
    """What it says went, of what there was, is what the counts say."""
    model, example = net()
    result = harness.prune(model, example, target={resource: 0.3})
    told = result.ledger
    before, after = (getattr(c, resource) for c in (result.before, result.after))
    assert told.asked == {resource: 0.3}
    assert told.reached[resource] == pytest.approx(1 - after / before)
    for line in told.groups:
        assert line.kept == len(result.plan.kept[line.group])
        if line.removed_scores and line.kept_scores:
            assert line.removed_scores[1] <= line.kept_scores[0]
    assert {w.name: w.reason for w in told.whole if w.kind == "output"} == {
        n: r for n, r in result.frozen.items() if "output" in r}


def test_the_floor_that_bound_stands_in_the_ledger() -> None:
    model, example = nets.chain()
    result = harness.prune(model, example, target={"filters": 0.3},
                           floors={"layer_min": {"0.0": 1.0}})
    (line,) = [g for g in result.ledger.groups if g.group == "0.0"]
    assert line.bound == "layer_min: 0.0 keeps 1 of its channels"
    assert {w.name: w.kind for w in result.ledger.whole}["0.0"] == "floor"


def test_out_of_reach_nothing_is_folded_nor_measured() -> None:
    model, example, optimizer = trained(nets.chain)
    before, memory = snapshot(model), state_of(optimizer)
    with pytest.raises(TargetError):
        harness.prune(model, example, target={"filters": 0.9}, floors={"layer_min": 0.5},
                      fold=True, norm_batches=pairs(), optimizer=optimizer)
    assert snapshot(model) == before
    assert state_of(optimizer) == memory
