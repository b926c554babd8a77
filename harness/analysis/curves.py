"""Accuracy against what is removed, what is left, what training took, and the time measured.

Units: accuracy and shares in [0, 1], drawn as percent; FLOPs are 2 x MACs; M is 10^6, G 10^9.
measure: what accuracy is, in words, as `Data.measure` has it: axes say it, columns stay `accuracy`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import mean
from typing import TYPE_CHECKING

from harness.analysis.ink import (
    BLACK,
    BLUE,
    DARK,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Picture,
    legend,
    percent_axis,
    plain_logarithmic,
    unit_of,
)
from harness.analysis.paired import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.4, 3.9)
TOP_1 = "top-1 accuracy"
ASIDE = 0.05  # inches between controls of the same FLOPs


@dataclass(frozen=True)
class Spot:
    """One network. flops: of a picture, share: of the baseline's; latency_ms: one picture, where
    the stage was made; training_flops: the baseline's and all since. None: not known."""

    step: int
    accuracy: float
    flops: int
    share: float
    filters: int
    accuracy_cut: float | None = None
    latency_ms: float | None = None
    training_flops: int | None = None
    is_final: bool = False


@dataclass(frozen=True)
class Curve:
    """The networks of one trial or control, in the order in which they were made.

    role: trial, champion or control; kind: what goes under one name in the legend.
    """

    name: str
    role: str
    kind: str
    spots: Sequence[Spot]

    @property
    def last(self) -> Spot:
        return self.spots[-1]


COLUMNS = ("name", "role", "step", "final", "accuracy", "accuracy_cut", "flops_per_picture",
           "flops_share", "filters", "latency_ms", "training_flops")
Value = Callable[[Spot], float | None]


def rows_of(curves: Sequence[Curve]) -> list[list[object]]:
    """Every network of every curve, as COLUMNS."""
    return [[c.name, c.role, s.step, s.is_final, s.accuracy, s.accuracy_cut, s.flops, s.share,
             s.filters, s.latency_ms, s.training_flops] for c in curves for s in c.spots]


def accuracy_removed(curves: Sequence[Curve], baseline: Spot, *, measure: str = TOP_1) -> Picture:
    """Against the share of the filters that are gone; after retraining, and of the champion right
    after each cut."""

    def removed(spot: Spot) -> float:
        return 1 - spot.filters / baseline.filters

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _lines(axes, curves, removed)
        for curve in curves:
            cut = [(removed(s), s.accuracy_cut) for s in curve.spots
                   if s.accuracy_cut is not None and s.step and not s.is_final]
            if curve.role == "champion" and cut:
                axes.plot(*zip(*cut), ls=":", marker="x", color=RED, ms=5, lw=1,
                          label=f"{curve.kind}, right after each cut")
        axes.axhline(baseline.accuracy, color=BLACK, lw=0.8, ls="--", label="baseline")
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        axes.set_xlabel("convolution filters removed")
        axes.set_ylabel(f"{measure} on validation")
        axes.set_xlim(left=0)
        legend(axes, figure)

    return Picture("accuracy_vs_filters_removed", SIZE, draw, COLUMNS, rows_of(curves))


def accuracy_flops(curves: Sequence[Curve], baseline: Spot, budget: float | None = None, *,
                   measure: str = TOP_1) -> Picture:
    """Against the FLOPs of a picture, on a logarithmic axis; controls with their spread."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        size, unit = unit_of(baseline.flops)
        axes.set_xscale("log")
        axes.margins(x=0.08)  # what is drawn aside stays within
        _points(axes, curves, baseline, lambda s: s.flops / size, is_aside=True)
        plain_logarithmic(axes.xaxis)
        if budget is not None:
            axes.axvline(budget * baseline.flops / size, color=BLACK, lw=0.8, ls=":",
                         label=f"budget: {budget:.3g} of the baseline's")
        percent_axis(axes.yaxis)
        aside = ";\ncontrols are drawn aside" if len(_looks(curves)) > 1 else ""
        axes.set_xlabel(f"FLOPs per picture ({unit}, 2 x MACs; logarithmic{aside})")
        axes.set_ylabel(f"{measure} on validation")
        legend(axes, figure)

    return Picture("accuracy_vs_flops", SIZE, draw, COLUMNS, rows_of(curves))


def accuracy_training(curves: Sequence[Curve], baseline: Spot, *, measure: str = TOP_1) -> Picture:
    """Against all the FLOPs of training so far, the baseline's with them."""

    spent = [s.training_flops for c in curves for s in c.spots if s.training_flops is not None]
    size, unit = unit_of(max(spent, default=1))

    def value(spot: Spot) -> float | None:
        return None if spot.training_flops is None else spot.training_flops / size

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _lines(axes, curves, value)
        _baseline(axes, baseline, value)
        percent_axis(axes.yaxis)
        axes.set_xlabel(f"FLOPs of training so far ({unit}; forward and backward,\n"
                        "with the baseline's)")
        axes.set_ylabel(f"{measure} on validation")
        legend(axes, figure)

    return Picture("accuracy_vs_training_gflops", SIZE, draw, COLUMNS, rows_of(curves))


def accuracy_latency(curves: Sequence[Curve], baseline: Spot, *, measure: str = TOP_1) -> Picture:
    """Against milliseconds of one picture, measured where each network was made."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _points(axes, curves, baseline, lambda s: s.latency_ms)
        percent_axis(axes.yaxis)
        axes.set_xlim(0, 1.08 * axes.dataLim.x1)
        axes.set_xlabel("latency of one picture (ms, measured)")
        axes.set_ylabel(f"{measure} on validation")
        legend(axes, figure)

    return Picture("accuracy_vs_latency", SIZE, draw, COLUMNS, rows_of(curves))


def search_cost(epochs: Sequence[int], answers: Sequence[float | None], what: str,
                asked: Sequence[float] = (), holds: Sequence[bool] = (), *,
                measure: str = TOP_1) -> Picture:
    """What a search has paid when it knew what: epochs[i] were trained for trial i.

    answers: the best answer after each trial (None: none yet); what: its name. asked, holds: of a
    binary search, the percentage of each trial and whether it kept the accuracy.
    """
    paid = [sum(epochs[:n + 1]) for n in range(len(epochs))]

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        known = [(x, y) for x, y in zip(paid, answers) if y is not None]
        if known:
            axes.step(*zip(*known), where="post", color=BLUE, lw=1.8, marker="o", ms=4,
                      clip_on=False, label="best answer so far")
        else:
            axes.text(0.5, 0.5, "no trial has an answer yet", transform=axes.transAxes,
                      ha="center", va="center")
            axes.set_ylim(0, 1)
        for held, marker, colour, label in ((True, "o", GREEN, f"kept the {measure}"),
                                            (False, "x", RED, "did not")):
            tried = [(x, y) for x, y, h in zip(paid, asked, holds) if h is held]
            if tried:
                axes.plot(*zip(*tried), ls="", marker=marker, color=colour, label=label)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1))  # around a flat line there is room for more
        axes.plot(paid, [0.0] * len(paid), ls="", marker="|", color=BLACK, ms=7, clip_on=False,
                  transform=axes.get_xaxis_transform(), label="a trial ends")
        percent_axis(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epochs of retraining and fine-tuning so far (shared ones once)")
        axes.set_ylabel(what)
        legend(axes, figure)

    rows = [[n, paid[n], answers[n], asked[n] if asked else None, holds[n] if holds else None]
            for n in range(len(epochs))]
    return Picture("search_cost", SIZE, draw,
                   ["trial", "epochs_so_far", what.replace(" ", "_"), "asked", "holds"], rows)


def importance(shares: Mapping[str, float], of: str) -> Picture:
    """How much each searched setting matters. shares: setting -> share, together 1."""
    ordered = sorted(shares.items(), key=lambda item: item[1])

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        names, values = [name for name, _ in ordered], [value for _, value in ordered]
        axes.barh(names, values, color=BLUE, height=0.6)
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:.0%}", va="center", fontsize=8)
        percent_axis(axes.xaxis)
        axes.set_xlim(0, max(values) * 1.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"importance for the {of}, over all trials")

    return Picture("setting_importance", (6.4, 1.2 + 0.35 * len(shares)), draw,
                   ["setting", "importance"], [[n, v] for n, v in reversed(ordered)])


_CONTROLS = (ORANGE, GREEN, PURPLE, SKY, BLACK)
_MARKERS = ("s", "^", "D", "v", "P")


def _looks(curves: Sequence[Curve]) -> Mapping[str, tuple[str, str]]:
    """Kind of control -> (colour, marker): told apart without colour too."""
    kinds = dict.fromkeys(c.kind for c in curves if c.role == "control")
    return {kind: (_CONTROLS[n % 5], _MARKERS[n % 5]) for n, kind in enumerate(kinds)}


def _lines(axes: "Axes", curves: Sequence[Curve], value: Value) -> None:
    """Every curve as a line; the champion last, on top. A ring is a final fine-tune."""
    looks = _looks(curves)
    for curve in sorted(curves, key=lambda c: ("trial", "control", "champion").index(c.role)):
        xy = [(v, s.accuracy) for s in curve.spots if (v := value(s)) is not None]
        if not xy:
            continue
        style = {"trial": {"color": DARK, "lw": 1.0, "marker": ".", "ms": 4, "label": "trials"},
                 "champion": {"color": BLUE, "lw": 2.0, "marker": "o", "ms": 4.5,
                              "label": curve.kind}}.get(curve.role)
        if style is None:
            colour, marker = looks[curve.kind]
            style = {"color": colour, "lw": 1.2, "marker": marker, "ms": 4, "ls": "-.",
                     "label": curve.kind}
        axes.plot(*zip(*xy), **style)  # type: ignore[arg-type]
        final = [(v, s.accuracy) for s in curve.spots
                 if s.is_final and (v := value(s)) is not None]
        if final:
            axes.plot(*zip(*final), ls="", marker="o", ms=9, mfc="none", mec=style["color"],
                      mew=1.2)
    if any(s.is_final for c in curves for s in c.spots):
        axes.plot([], [], ls="", marker="o", ms=9, mfc="none", mec=BLACK, mew=1.2,
                  label="after the final fine-tune")


def _points(axes: "Axes", curves: Sequence[Curve], baseline: Spot, value: Value, *,
            is_aside: bool = False) -> None:
    """The networks at the ends: trials one by one, controls and replicates by mean and spread.

    is_aside: controls have the champion's value: they are drawn a little to its left and right.
    """
    from matplotlib.transforms import ScaledTranslation

    looks = _looks(curves)
    trials = [(v, s.accuracy) for c in curves if c.role == "trial" for s in c.spots
              if s.is_final and (v := value(s)) is not None]
    if trials:
        axes.plot(*zip(*trials), ls="", marker="o", color=SKY, mec=BLUE, mew=0.6, ms=5,
                  label="trials, fine-tuned")
    for place, (kind, (colour, marker)) in enumerate(looks.items()):
        ends = [c.last for c in curves if c.role == "control" and c.kind == kind]
        found = [(v, s.accuracy) for s in ends if (v := value(s)) is not None]
        if found:
            middle = mean(accuracy for _, accuracy in found)
            error = spread([accuracy for _, accuracy in found])
            label = kind if isnan(error) else f"{kind}, mean ± s.d. of {len(found)}"
            bar = axes.errorbar([mean(v for v, _ in found)], [middle], ls="", marker=marker, ms=6,
                                color=colour, capsize=3, label=label,
                                yerr=None if isnan(error) else [error])
            if is_aside and len(looks) > 1:
                inches = ASIDE * (place // 2 + 1) * (-1 if place % 2 == 0 else 1)
                aside = ScaledTranslation(inches, 0, axes.figure.dpi_scale_trans)
                for part in (bar.lines[0], *bar.lines[1], *bar.lines[2]):
                    part.set_transform(axes.transData + aside)
    for curve in curves:
        x = value(curve.last)
        if curve.role == "champion" and x is not None:
            steps = [(v, s.accuracy) for s in curve.spots
                     if not s.is_final and (v := value(s)) is not None]
            if steps and not trials:  # not fine-tuned, they would press the trials into a line
                axes.plot(*zip(*steps), color=BLUE, ls="", marker=".", ms=6,
                          label=f"{curve.kind}: its steps")
            axes.plot([x], [curve.last.accuracy], ls="", marker="*", ms=13, color=BLUE, mec=BLACK,
                      mew=0.6, label=curve.kind)
    _baseline(axes, baseline, value)


def _baseline(axes: "Axes", baseline: Spot, value: Value) -> None:
    x = value(baseline)
    if x is not None:
        axes.plot([x], [baseline.accuracy], ls="", marker="D", ms=6, color=BLACK, label="baseline")
    axes.axhline(baseline.accuracy, color=BLACK, lw=0.8, ls="--")
