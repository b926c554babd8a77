"""A pruned network beside the whole one, layer by layer: what went, what lives, what it weighs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.analysis.ink import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Picture,
    brief,
    brief_axis,
    legend,
    percent_axis,
    plain_logarithmic,
    short_path,
)
from harness.engine.lineage import Difference

_BARS = ((BLUE, ""), (ORANGE, "//"), (GREY, ".."), (RED, "xx"), (GREEN, "\\\\"), (PURPLE, "oo"))
LEAST_NORM = 1e-8  # what a zeroed filter is drawn at, on a logarithmic axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def removed_bars(before: Mapping[str, int], after: Mapping[str, int], of: str) -> Picture:
    """Parameters removed, by number and in percent. before, after: name -> parameters.

    of: layer or block, which is the name of the files as well. What had none is left out.
    """
    names = [name for name, count in before.items() if count]
    gone = [before[name] - after.get(name, 0) for name in names]
    shares = [lost / before[name] for name, lost in zip(names, gone)]

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        places = range(len(names))
        left.barh(places, [before[n] for n in names], color=GREY, height=0.75, label="before")
        left.barh(places, gone, color=RED, height=0.75, label="removed")
        left.set_yticks(list(places), [short_path(name) or "all" for name in names])
        left.set_xlabel("parameters")
        left.set_ylabel(of)
        brief_axis(left.xaxis)
        for place, lost in zip(places, gone):
            left.text(before[names[place]], place, f" {brief(lost)}", va="center", fontsize=7)
        left.margins(x=0.16)
        left.invert_yaxis()
        right.barh(places, shares, color=RED, height=0.75)
        for place, share in zip(places, shares):
            right.text(share, place, f" {share:.1%}", va="center", fontsize=7)
        right.set_xlim(0, 1.2)
        right.set_xticks([0, 0.25, 0.5, 0.75, 1])
        percent_axis(right.xaxis)
        right.set_xlabel("of its parameters removed")
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        legend(left)

    rows = [[name or "all", before[name], after.get(name, 0), lost, 100 * share]
            for name, lost, share in zip(names, gone, shares)]
    return Picture(f"params_removed_by_{of}", (7.2, 1.2 + 0.21 * len(names)), draw,
                   [of, "before", "after", "removed", "removed_percent"], rows)


def kept_channels(widths: Mapping[str, int], gone: Sequence[Mapping[str, Sequence[int]]],
                  ) -> Picture:
    """Which original channel lives until when. widths: layer -> channels of the whole network.

    gone: for step 0, 1, ...: layer -> original channels that are gone by then.
    """
    last = len(gone) - 1
    fate = {name: _fate(width, [step.get(name, ()) for step in gone])
            for name, width in widths.items()}

    def draw(figure: "Figure") -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import BoundaryNorm, ListedColormap

        # Removed early is dark; what lives to the end is white, and stands out.
        shades = [colormaps["cividis"](n / max(1, last)) for n in range(last)]
        colours = ListedColormap([*shades, (1.0, 1.0, 1.0, 1.0)])
        norm = BoundaryNorm([n + 0.5 for n in range(last + 2)], last + 1)
        axes = figure.add_subplot()  # one: a layout of many takes a second
        for place, ends in enumerate(fate.values()):
            low, high = place - 0.36, place + 0.36
            axes.imshow([ends], extent=(0, 1, high, low), aspect="auto", cmap=colours, norm=norm,
                        interpolation="nearest")
            axes.plot([0, 1, 1, 0, 0], [low, low, high, high, low], color=BLACK, lw=0.5,
                      clip_on=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(fate) - 0.5, -0.5)
        axes.set_yticks(range(len(fate)), [
            f"{short_path(name)} ({ends.count(last + 1)} of {len(ends)})"
            for name, ends in fate.items()])
        axes.set_xticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("original channels, the first on the left (in brackets: kept of all)")
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, aspect=30, pad=0.02,
                              ticks=_ticks(last))
        bar.ax.set_yticklabels([*(str(n) for n in _ticks(last)[:-1]), "kept"])
        bar.set_label("removed in step")

    rows_ = [[name, channel, None if end == last + 1 else end]
             for name, ends in fate.items() for channel, end in enumerate(ends)]
    return Picture("kept_channels", (7.2, 1.0 + 0.27 * len(fate)), draw,
                   ["layer", "channel", "removed_in_step"], rows_)


def _fate(width: int, gone: Sequence[Sequence[int]]) -> list[int]:
    """Of every channel the step that removed it; one more than the last where none did."""
    ends = [len(gone)] * width
    for step in range(len(gone) - 1, -1, -1):
        for channel in gone[step]:
            ends[channel] = step
    return ends


def _ticks(last: int) -> list[int]:
    every = max(1, -(-last // 10))
    return [*range(1, last + 1, every), last + 1]


def l1_norms(before: Mapping[str, Tensor], after: Mapping[str, Tensor],
             kept: Mapping[str, Sequence[int]], *, names: tuple[str, str]) -> Picture:
    """Mean |weight| of every convolution filter, before and after; and of those that stayed, how
    it changed.

    before, after: layer -> (filters,) norms; kept: layer -> original filters that `after` has.
    """
    old, new = (torch.cat([*each.values()]).tolist() for each in (before, after))
    same = torch.cat([before[name][torch.as_tensor(kept[name], dtype=torch.long)]
                      for name in after]).tolist()
    change = [b - a for a, b in zip(same, new)]

    def draw(figure: "Figure") -> None:
        import numpy

        left, right = figure.subplots(1, 2)
        values = [numpy.maximum(each, LEAST_NORM) for each in (old, same, new)]
        edges = 10 ** numpy.histogram_bin_edges(numpy.log10(numpy.concatenate(values)), 40)
        styles: tuple[dict[str, Any], ...] = (
            {"color": GREY, "label": f"{names[0]}: {len(old)} filters"},
            {"color": ORANGE, "histtype": "step", "lw": 1.4, "hatch": "////",
             "label": f"{names[0]}, those that stay: {len(same)}"},
            {"color": BLUE, "histtype": "step", "lw": 2.0,
             "label": f"{names[1]}: {len(new)} filters"})
        for norms, style in zip(values, styles):
            left.hist(norms, edges, weights=numpy.full(len(norms), 1 / len(norms)), **style)
        left.set_xscale("log")
        plain_logarithmic(left.xaxis)
        percent_axis(left.yaxis)
        left.set_xlabel("mean |weight| of a filter (logarithmic)")
        left.set_ylabel("of the filters")
        legend(left)
        right.hist(change, 40, color=BLUE)
        right.axvline(0, color=RED, lw=1, ls="--")
        right.set_xlabel("change of mean |weight| of those that stay")
        right.set_ylabel("filters")

    rows = [[name, int(channel), float(before[name][channel]), float(norm)]
            for name in after for channel, norm in zip(kept[name], after[name].tolist())]
    stayed = {name: {*map(int, kept.get(name, ()))} for name in before}
    rows += [[name, channel, norm, None] for name, norms in before.items()
             for channel, norm in enumerate(norms.tolist()) if channel not in stayed[name]]
    return Picture("l1_norms", (7.6, 3.9), draw,
                   ["layer", "original_filter", "before", "after"], rows)


def channel_differences(found: Mapping[str, Difference], than: str) -> Picture:
    """1 - |A and B| / |A or B| of the removed channels: each network against `than`."""
    layers = list(dict.fromkeys(name for each in found.values() for name in each.layers))
    rows = ["total", *layers]

    def value(difference: Difference, row: str) -> float:
        return difference.total if row == "total" else difference.layers.get(row, 0.0)

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        height = 0.8 / len(found)
        for place, (name, difference) in enumerate(found.items()):
            values = [value(difference, row) for row in rows]
            colour, hatch = _BARS[place % len(_BARS)]
            axes.barh([n + (place + 0.5) * height - 0.4 for n in range(len(rows))], values,
                      height=0.92 * height, color=colour, hatch=hatch, edgecolor="white", lw=0,
                      label=f"{name} (total {difference.total:.2f})")
        axes.axhline(0.5, color="black", lw=0.8)
        axes.set_yticks(range(len(rows)), [short_path(row) for row in rows])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("channel difference 1 - |A and B| / |A or B| of what is removed\n"
                        f"(0: the same as {than})")
        legend(axes)

    return Picture("channel_difference",
                   (6.8, 1.4 + (0.12 + 0.1 * len(found)) * len(rows)), draw,
                   ["network", "against", "layer", "difference"],
                   [[name, than, row, value(each, row)] for name, each in found.items()
                    for row in rows])
