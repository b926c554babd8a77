"""Who is hurt by pruning: classes, the trust in probabilities, single pictures; before and after.

A mean accuracy that stays can hide a class that is lost (Hooker et al. 2019).
Shapes: N pictures, K classes; targets (N,), or (N, H, W) where pixels have classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.analysis.ink import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    RED,
    Picture,
    legend,
    percent_axis,
    photo,
    short_label,
)
from harness.evaluate import ious

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15  # of the calibration error, as Guo et al. 2017
SHOWN = 12  # pictures whose prediction changed most
WIDEST = 40  # classes that a figure can name; of more, those that lose most are shown


@dataclass(frozen=True)
class Judgement:
    """What a network said. confusion: (K, K) counts, true class by predicted class.

    bins: (3, BINS) by confidence: number, sum of confidences, number of right ones.
    trust: (N,) probability of the true class, of pixels the mean; predicted: (N,) the class, of
    pixels the class that most are given.
    """

    confusion: Tensor
    bins: Tensor
    trust: Tensor
    predicted: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    @property
    def recall(self) -> Tensor:
        """(K,) of each class, the share that is found; NaN of a class that is not there."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    @property
    def iou(self) -> Tensor:
        """(K,) intersection over union; NaN of a class that is neither there nor predicted."""
        return ious(self.confusion)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| over BINS bins of confidence,
        each weighted by its number (Guo et al. 2017)."""
        count, confidence, right = self.bins
        return float((confidence - right).abs().sum() / count.sum())


def judge(model: nn.Module, inputs: Tensor, targets: Tensor, num_classes: int, *,
          batch_size: int = 256) -> Judgement:
    """Ask a network, in eval mode, about all pictures. Negative targets count for nothing."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.double)
    bins = torch.zeros(3, BINS, dtype=torch.double)
    trust, predicted = [], []
    with torch.inference_mode():
        for given, truth in zip(inputs.split(batch_size), targets.split(batch_size)):
            shares = model(given).double().softmax(1).cpu()
            truth = truth.cpu()
            counts = truth >= 0
            confidence, answer = shares.max(1)
            pairs = num_classes * truth[counts] + answer[counts]
            confusion += torch.bincount(pairs, minlength=num_classes**2).reshape(confusion.shape)
            places = (confidence[counts] * BINS).ceil().long().clamp(1, BINS) - 1
            is_right = (answer == truth)[counts].double()
            for row, weights in enumerate((None, confidence[counts], is_right)):
                bins[row] += torch.bincount(places, weights, minlength=BINS)
            own = shares.gather(1, truth.clamp(min=0).unsqueeze(1)).squeeze(1) * counts
            amount = counts.reshape(len(truth), -1).sum(1).clamp(min=1)
            trust.append(own.reshape(len(truth), -1).sum(1) / amount)
            predicted.append(answer.reshape(len(truth), -1).mode(1).values)
    return Judgement(confusion, bins, torch.cat(trust), torch.cat(predicted))


def by_class(before: Judgement, after: Judgement, labels: Sequence[str], *,
             names: tuple[str, str], of_pixels: bool) -> Picture:
    """Recall (of pixels: IoU) of every class before and after, those that lose most first."""
    what = "IoU" if of_pixels else "recall"
    old, new = ((j.iou if of_pixels else j.recall).tolist() for j in (before, after))
    known = [n for n in range(len(labels)) if old[n] == old[n] and new[n] == new[n]]
    order = sorted(known, key=lambda n: new[n] - old[n])

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        shown = order[:WIDEST]
        for place, n in enumerate(shown):
            axes.plot([old[n], new[n]], [place, place], color=RED if new[n] < old[n] else GREEN,
                      lw=2, zorder=1)
        axes.scatter([old[n] for n in shown], range(len(shown)), s=34, color=GREY,
                     edgecolor=BLACK, lw=0.6, zorder=2, label=names[0])
        axes.scatter([new[n] for n in shown], range(len(shown)), s=34, color=BLUE, marker="D",
                     edgecolor=BLACK, lw=0.6, zorder=3, label=names[1])
        axes.set_yticks(range(len(shown)), [
            f"{short_label(labels[n], 22)} "
            f"({int(before.confusion[n].sum()):,})" for n in shown])
        axes.invert_yaxis()
        least = min([*(old[n] for n in shown), *(new[n] for n in shown)], default=0.0)
        axes.set_xlim(max(0.0, floor(10 * least - 0.5) / 10) - 0.02, 1.02)
        percent_axis(axes.xaxis)
        left = f"; the {WIDEST} that lose most of {len(order)}" if len(order) > WIDEST else ""
        axes.set_xlabel(f"{what} on validation (in brackets: "
                        f"{'pixels' if of_pixels else 'pictures'} of the class{left})")
        legend(axes)

    rows = [[labels[n], int(before.confusion[n].sum()), float(before.recall[n]),
             float(after.recall[n]), float(before.iou[n]), float(after.iou[n])]
            for n in range(len(labels))]
    return Picture("harm_by_class", (6.4, 1.4 + 0.24 * min(len(order), WIDEST)), draw,
                   ["class", "examples", "recall_before", "recall_after", "iou_before",
                    "iou_after"], rows)


def calibration(before: Judgement, after: Judgement, *, names: tuple[str, str]) -> Picture:
    """Reliability: how often the networks are right when they are so sure."""

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=BLACK, lw=0.8, ls="--", label="perfectly calibrated")
        for place, (name, judged, colour, marker) in enumerate(
                ((names[0], before, GREY, "o"), (names[1], after, BLUE, "D"))):
            count, confidence, hits = judged.bins.numpy()
            there = count > 0
            left.plot(confidence[there] / count[there], hits[there] / count[there], color=colour,
                      marker=marker, mec=BLACK, mew=0.5, ms=5, lw=1.4, clip_on=False,
                      label=f"{name}: ECE {judged.calibration_error:.1%}")
            edges = [(n + 0.5 + (place - 0.5) * 0.44) / BINS for n in range(BINS)]
            right.bar(edges, count / count.sum(), width=0.42 / BINS, color=colour, label=name)
        left.set_ylabel("right on validation")
        right.set_ylabel("share of all predictions")
        for axes in (left, right):
            axes.set_xlim(0, 1.01)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("confidence of the prediction")
            percent_axis(axes.xaxis)
            percent_axis(axes.yaxis)
        legend(left)
        legend(right)

    rows = [[name, n / BINS, (n + 1) / BINS, *judged.bins[:, n].tolist()]
            for name, judged in zip(names, (before, after)) for n in range(BINS)]
    return Picture("calibration", (7.2, 3.5), draw,
                   ["network", "from", "to", "predictions", "sum_of_confidences", "right"], rows)


def changed_most(inputs: Tensor, targets: Tensor, before: Judgement, after: Judgement,
                 labels: Sequence[str], *, names: tuple[str, str]) -> Picture:
    """The pictures whose true class lost most probability; below each, what was and is said.

    Nothing is drawn of gains: they stand in the CSV, which has every picture.
    """
    change = after.trust - before.trust
    order = change.argsort(stable=True).tolist()
    of_pixels = targets.dim() > 1
    # What stands under a picture must not run into its neighbour's.
    columns = 6 if of_pixels or max(map(len, labels), default=0) <= 4 else 4

    def draw(figure: "Figure") -> None:
        shown = order[:SHOWN]
        figure.set_layout_engine("none")  # places are known, and working them out is slow
        lines = -(-len(shown) // columns)
        low = 0.85 / (1.75 * lines + 0.5)
        grid = figure.subplots(lines, columns, squeeze=False, gridspec_kw={
            "left": 0.01, "right": 0.99, "bottom": low, "top": 1 - low / 3.4, "wspace": 0.08,
            "hspace": 0.55})
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, n in zip(grid.flat, shown):
            photo(axes, inputs[n].cpu())
            truth = "" if of_pixels else f", true: {short_label(labels[int(targets[n])], 10)}"
            axes.set_title(f"no. {n}{truth}", fontsize=7.5)
            for line, judged in enumerate((before, after)):
                is_right = of_pixels or int(judged.predicted[n]) == int(targets[n])
                answer = short_label(labels[int(judged.predicted[n])], 10)
                said = "" if of_pixels else f"{'✓' if is_right else '✗'} {answer} "
                # In points: of oblong pictures the axes are lower than the letters want.
                axes.annotate(f"{'before' if not line else 'after'}: "
                              f"{said}({float(judged.trust[n]):.0%})", (0.5, 0),
                              xycoords="axes fraction", xytext=(0, -3 - 12 * line),
                              textcoords="offset points", ha="center", va="top", fontsize=7.5,
                              color=BLACK if of_pixels else GREEN if is_right else RED)
        what = "mean probability of the true classes" if of_pixels else "probability of the truth"
        figure.supxlabel("validation pictures whose true class lost most (or gained least); in "
                         f"brackets the {what}\nbefore: {names[0]}; after: {names[1]}", fontsize=8)

    height = 1.75 * -(-min(SHOWN, len(order)) // columns) + 0.5
    rows = [[n, None if of_pixels else labels[int(targets[n])],
             labels[int(before.predicted[n])], labels[int(after.predicted[n])],
             float(before.trust[n]), float(after.trust[n]), float(change[n])] for n in order]
    return Picture("changed_most", (7.6, height), draw,
                   ["picture", "truth", "predicted_before", "predicted_after",
                    "true_probability_before", "true_probability_after", "change"], rows)
