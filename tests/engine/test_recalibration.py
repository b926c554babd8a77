"""Batch norms are measured afresh: plain averages over the batches, and nothing else changes."""

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.by_hand import snapshot
from harness.engine.recalibration import recalibrate
from harness.errors import DataError, SurgeryError


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(4 + n, 3, 8, 8, generator=generator) + n, torch.zeros(4 + n))
            for n in range(count)]


def statistics(model: nn.Module) -> dict[str, list[float]]:
    return {n: b.tolist() for n, b in model.named_buffers()}


def test_statistics_are_the_averages_over_the_batches() -> None:
    """Means and (unbiased) variances of the convolution's outputs, by numpy."""
    model, _ = nets.chain()
    wanted = []
    with torch.no_grad():
        for inputs, _ in batches():
            out = model.get_submodule("0.0")(inputs).numpy().transpose(1, 0, 2, 3).reshape(8, -1)
            wanted.append((out.mean(1), out.var(1, ddof=1)))
    found = recalibrate(model, batches())
    mean, variance = (np.mean(list(each), axis=0) for each in zip(*wanted, strict=True))
    np.testing.assert_allclose(model.get_buffer("0.1.running_mean"), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.get_buffer("0.1.running_var"), variance, rtol=1e-4)
    assert (found.norms, found.batches, found.examples) == (("0.1", "2.1"), 3, 15)
    assert int(model.get_buffer("0.1.num_batches_tracked")) == 3


def test_only_statistics_change() -> None:
    """Modes, momenta, parameters and the identity of every tensor stay; dropout drops nothing."""
    model, _ = nets.chain()
    model = nn.Sequential(model, nn.Dropout(0.9))
    model.train()
    model.get_submodule("0.0.1").eval()
    modes = [m.training for m in model.modules()]
    before, generator = snapshot(model), torch.get_rng_state()
    recalibrate(model, batches())
    after = snapshot(model)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {f"0.{place}.1.{what}" for place in (0, 2) for what in
                       ("running_mean", "running_var", "num_batches_tracked")}
    assert all(before[key][0] == after[key][0] for key in changed)  # type: ignore[index]
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_norm_that_is_not_reached_keeps_what_it_has() -> None:
    """Of an auxiliary head nothing runs in eval mode."""
    model, _ = nets.auxiliary_head()
    before = statistics(model)
    found = recalibrate(model, batches())
    after = statistics(model)
    assert found.norms == ("stem.1", "body.1")
    assert all(after[n] == before[n] for n in before if n.startswith("aux."))
    assert after["stem.1.running_mean"] != before["stem.1.running_mean"]


def test_whatever_raises_leaves_the_statistics_as_they_were() -> None:
    model, _ = nets.chain()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="shape|size|channels"):
        recalibrate(model, [*batches(), (torch.randn(2, 5, 8, 8), torch.zeros(2))])
    assert snapshot(model) == before
    with pytest.raises(SurgeryError, match="are empty"):
        recalibrate(model, [])
    assert snapshot(model) == before


def test_a_network_without_norms_needs_no_batches() -> None:
    model, _ = nets.chain_without_norm()
    assert recalibrate(model, []).norms == ()
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    assert recalibrate(model, []).norms == ()


def test_a_network_of_two_inputs_is_given_both() -> None:
    model, example = nets.two_inputs()
    assert isinstance(example, tuple)
    found = recalibrate(model, [(example, torch.zeros(2)), (list(example), torch.zeros(2))])
    assert (found.batches, found.examples) == (2, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_not_taken(bad: float) -> None:
    model, _ = nets.chain()
    before = snapshot(model)
    with pytest.raises(SurgeryError, match="statistics that are not finite, of 0.1, 2.1"):
        recalibrate(model, [*batches(), (torch.full((2, 3, 8, 8), bad), torch.zeros(2))])
    assert snapshot(model) == before
    with pytest.raises(DataError, match="batch 0 has no examples"):
        recalibrate(model, [(torch.zeros(0, 3, 8, 8), torch.zeros(0))])
    assert snapshot(model) == before
