"""Measured figures against numpy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.errors import DataError
from harness.evaluate import evaluate, ious, latencies, mean_iou, report
from harness.labels import IGNORE


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


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.rows("R086")
def test_a_report_of_pictures_is_numpys() -> None:
    logits, truth = random(40, 7), torch.arange(40) % 6  # class 6 never occurs
    found = report(nn.Identity(), Examples(logits, truth), list("abcdefg"), batch_size=9)
    given, classes = logits.double().numpy(), truth.numpy()
    best = np.argsort(-given, 1)
    assert found.top1 == pytest.approx(np.mean(best[:, 0] == classes))
    assert found.top5 == pytest.approx(np.mean([c in row[:5] for c, row in zip(classes, best)]))
    log_sum = np.log(np.exp(given).sum(1))
    assert found.loss == pytest.approx(np.mean(log_sum - given[np.arange(40), classes]), rel=1e-6)
    assert found.mean_iou is None
    assert found.accuracy == found.top1
    measured = evaluate(nn.Identity(), Examples(logits, truth))
    assert found.top1 == pytest.approx(measured.accuracy)
    for number, label in enumerate("abcdef"):
        assert found.by_class[label] == pytest.approx(
            np.mean(best[classes == number, 0] == number))
    assert np.isnan(found.by_class["g"])
    assert set(found.metrics()) == {"top1", "top5", "loss"}


def test_of_five_classes_the_first_five_are_always_right_and_not_told() -> None:
    assert report(nn.Identity(), Examples(random(4, 5), torch.zeros(4).long())).top5 is None


@pytest.mark.rows("R087")
def test_iou_of_a_matrix_by_hand() -> None:
    """Rows truth, columns answers: 5 / (6 + 7 - 5), 4 / (6 + 5 - 4); class 2 occurs nowhere."""
    matrix = torch.tensor([[5, 1, 0], [2, 4, 0], [0, 0, 0]])
    assert ious(matrix)[:2].tolist() == pytest.approx([5 / 8, 4 / 7])
    assert ious(matrix)[2].isnan()
    assert mean_iou(matrix) == pytest.approx((5 / 8 + 4 / 7) / 2)
    assert mean_iou(matrix[:2, :2]) == pytest.approx(4 / 7)  # of two, the thing that is sought
    assert mean_iou(torch.zeros(3, 3)) == 0.0


@pytest.mark.rows("R087")
def test_a_report_of_pixels_counts_those_that_count() -> None:
    logits, truth = random(20, 3, 4, 4), torch.randint(0, 3, (20, 4, 4))
    truth[:, 0] = IGNORE
    found = report(nn.Identity(), Examples(logits, truth), ["a", "b", "c"], batch_size=16)
    counted = truth != IGNORE
    answers, classes = logits.argmax(1)[counted].numpy(), truth[counted].numpy()
    each = [np.sum((answers == c) & (classes == c)) / np.sum((answers == c) | (classes == c))
            for c in range(3)]
    assert list(found.by_class.values()) == pytest.approx(each)
    assert found.mean_iou == pytest.approx(np.mean(each))
    assert found.top1 == pytest.approx(np.mean(answers == classes))
    wanted = nn.functional.cross_entropy(logits, truth)
    assert found.loss == pytest.approx(float(wanted), rel=1e-5)
    measured = evaluate(nn.Identity(), Examples(logits, truth))
    assert measured.accuracy == found.mean_iou
    assert measured.loss == pytest.approx(found.loss, rel=1e-5)


@pytest.mark.rows("R092")
def test_single_pictures_have_a_mean_iou_with_mean_and_spread() -> None:
    logits, truth = random(3, 3, 4, 4), torch.randint(0, 3, (3, 4, 4))
    found = report(nn.Identity(), Examples(logits, truth))
    wanted = []
    for answer, mask in zip(logits.argmax(1).numpy(), truth.numpy()):
        each = [np.sum((answer == c) & (mask == c)) / np.sum((answer == c) | (mask == c))
                for c in range(3)]
        wanted.append(np.mean(each))
    assert list(found.single) == pytest.approx(wanted)
    assert found.metrics()["miou_of_pictures"] == pytest.approx(np.mean(wanted))
    assert found.metrics()["miou_of_pictures_std"] == pytest.approx(np.std(wanted))


def test_a_split_without_examples_says_so() -> None:
    with pytest.raises(DataError, match="no examples"):
        report(nn.Identity(), Examples(random(0, 3, 4, 4), torch.zeros(0, 4, 4).long()))


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
