"""Who is hurt: counted again by numpy, scikit-learn's words and torchmetrics' own error."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_jaccard_index,
    multiclass_recall,
)

from harness.analysis.harm import BINS, by_class, calibration, changed_most, judge


class Given(nn.Module):
    """Puts out the scores that it is given as pictures."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores


def scores(count: int, *more: int) -> Tensor:
    return 2 * torch.randn(count, 5, *more, generator=torch.Generator().manual_seed(count))


def classes(count: int, *more: int) -> Tensor:
    return torch.randint(5, (count, *more), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("more", [(), (6, 4)])
def test_recall_iou_and_calibration_are_those_of_torchmetrics(more: tuple[int, ...]) -> None:
    given, truth = scores(200, *more), classes(200, *more)
    found = judge(Given(), given, truth, 5, batch_size=64)
    for own, theirs in ((found.recall, multiclass_recall), (found.iou, multiclass_jaccard_index)):
        torch.testing.assert_close(own.float(), theirs(given, truth, 5, average="none"))
    error = multiclass_calibration_error(given, truth, 5, n_bins=BINS, norm="l1")
    assert found.calibration_error == pytest.approx(float(error), abs=1e-5)
    right = (given.argmax(1) == truth).double().mean()
    assert found.accuracy == pytest.approx(float(right))


def test_pixels_that_count_for_nothing_are_left_out() -> None:
    given, truth = scores(20, 6, 4), classes(20, 6, 4)
    truth[:, :3] = -100
    found = judge(Given(), given, truth, 5)
    assert int(found.confusion.sum()) == 20 * 3 * 4
    alone = judge(Given(), given[:, :, 3:], truth[:, 3:], 5)
    torch.testing.assert_close(found.confusion, alone.confusion)
    torch.testing.assert_close(found.trust, alone.trust)


def test_a_network_that_is_as_right_as_it_is_sure_has_no_calibration_error() -> None:
    """Ten predictions at 80 %, eight of them right."""
    sure = torch.log(torch.tensor([[0.8, 0.2]])).repeat(10, 1)
    truth = torch.tensor([0] * 8 + [1] * 2)
    assert judge(Given(), sure, truth, 2).calibration_error == pytest.approx(0, abs=1e-6)
    assert judge(Given(), sure, 1 - truth, 2).calibration_error == pytest.approx(0.6, abs=1e-6)


def test_the_tables_hold_what_was_counted() -> None:
    truth = classes(60)
    before, after = (judge(Given(), scores(60) * factor, truth, 5) for factor in (1.0, -1.0))
    labels = list("abcde")
    names = ("before", "after")
    table = by_class(before, after, labels, names=names, of_pixels=False)
    assert [row[1] for row in table.rows] == np.bincount(truth, minlength=5).tolist()
    assert [row[3] for row in table.rows] == pytest.approx(after.recall.tolist())
    changed = changed_most(torch.rand(60, 1, 4, 4), truth, before, after, labels, names=names)
    shares = [torch.softmax(factor * scores(60).double(), 1)[range(60), truth]
              for factor in (1, -1)]
    lost = (shares[1] - shares[0]).numpy()
    assert [row[0] for row in changed.rows] == np.argsort(lost, kind="stable").tolist()
    assert [row[-1] for row in changed.rows] == pytest.approx(np.sort(lost).tolist())
    for picture in (table, changed, calibration(before, after, names=names)):
        assert picture.png().startswith(b"\x89PNG")
        assert picture.csv().decode().splitlines()[0] == ",".join(picture.columns)


def test_below_an_oblong_picture_its_two_lines_stand_apart() -> None:
    """Of pixels of 16 x 40 and of 40 x 16: neither line runs into the other."""
    for height, width in ((16, 40), (40, 16)):
        truth = classes(12, height, width)
        judged = judge(Given(), scores(12, height, width), truth, 5)
        picture = changed_most(torch.rand(12, 1, height, width), truth, judged, judged,
                               list("abcde"), names=("before", "after"))
        figure = Figure(figsize=picture.size)
        picture.draw(figure)
        figure.draw_without_rendering()
        for axes in figure.axes:
            first, second = (text.get_window_extent() for text in axes.texts)
            assert second.y1 <= first.y0
            assert first.y1 <= axes.get_window_extent().y0
        below, line = figure.axes[-1].texts[-1], figure._supxlabel
        assert line.get_window_extent().y1 <= below.get_window_extent().y0
