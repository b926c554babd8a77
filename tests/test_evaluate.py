"""Measured figures against numpy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.evaluate import evaluate, latencies


@dataclass
class Examples:
    inputs: Tensor
    targets: Tensor


def test_accuracy_and_loss_are_numpys() -> None:
    examples = Examples(torch.randn(11, 5), torch.randint(0, 4, (11,)))
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.9))
    measured = evaluate(model, examples, batch_size=4)
    with torch.no_grad():
        logits = model.eval()(examples.inputs).numpy().astype(np.float64)
    truth = examples.targets.numpy()
    assert measured.accuracy == pytest.approx(np.mean(logits.argmax(1) == truth))
    log_sum = np.log(np.exp(logits).sum(1))
    assert measured.loss == pytest.approx(np.mean(log_sum - logits[np.arange(11), truth]), rel=1e-5)


def test_evaluating_leaves_the_mode_and_the_statistics() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5), nn.Linear(5, 4)).train()
    model[1].eval()  # a frozen norm
    before = model[1].running_mean.clone()  # type: ignore[union-attr, operator]
    evaluate(model, Examples(torch.randn(6, 5), torch.zeros(6, dtype=torch.long)))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert torch.equal(model[1].running_mean, before)  # type: ignore[arg-type]


@pytest.mark.rows("R085")
def test_latencies_take_turns_and_are_ordered() -> None:
    calls: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, inputs: Tensor) -> Tensor:
            calls.append(self.name)
            return inputs

    found = latencies({"a": Named("a"), "b": Named("b")}, torch.zeros(1), rounds=5)
    assert calls == ["a", "b"] * 7  # two rounds to warm up
    assert all(0 <= t.low_ms <= t.median_ms <= t.high_ms for t in found.values())
