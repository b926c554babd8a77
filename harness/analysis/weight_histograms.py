"""How the weights of each layer are spread, before and after some became zero: 100 bins each."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 100
BLUE, ORANGE = "#0072B2", "#E69F00"  # of Okabe and Ito
_MOST = 24  # panels in one picture; all layers are in the table


@dataclass(frozen=True)
class Histogram:
    """edges: (bins + 1,); before, after: (bins,) weights in each; zeros: weights that are 0 after.

    Zeros stand in the bins of `after` too.
    """

    layer: str
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: int

    @property
    def share(self) -> float:
        """Of the weights that are 0, in [0, 1]."""
        return self.zeros / max(1, sum(self.after))


def histogram(layer: str, before: Tensor, after: Tensor, bins: int = BINS) -> Histogram:
    """Both over the same bins, which reach over all weights of either."""
    values = [t.detach().float().cpu().flatten().numpy() for t in (before, after)]
    low = min(float(v.min()) for v in values)
    high = max(float(v.max()) for v in values)
    edges = np.histogram_bin_edges(np.empty(0), bins=bins,
                                   range=(low, high) if high > low else (low - 0.5, high + 0.5))
    counts = [np.histogram(v, edges)[0] for v in values]
    return Histogram(layer, tuple(edges.tolist()), tuple(counts[0].tolist()),
                     tuple(counts[1].tolist()), int((values[1] == 0).sum()))


def histograms(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Histogram]:
    """Of every layer that stands in both."""
    return [histogram(layer, weight, after[layer]) for layer, weight in before.items()
            if layer in after]


def as_rows(found: list[Histogram]) -> str:
    """As CSV: layer, low, high, before, after; one bin a row."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["layer", "low", "high", "before", "after"])
    for h in found:
        rows.writerows([h.layer, f"{low:.6g}", f"{high:.6g}", before, after] for low, high, before,
                       after in zip(h.edges, h.edges[1:], h.before, h.after))
    return text.getvalue()


def picture(found: list[Histogram]) -> "Figure":
    """A panel a layer; counts on a logarithmic scale, or the zeros would hide all else."""
    from matplotlib.figure import Figure

    shown = found[:_MOST]
    columns = min(4, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows + 0.8), layout="constrained", dpi=120)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, h in zip(panels, shown):
        panel.stairs(h.before, h.edges, fill=True, color=ORANGE, alpha=0.55, label="before")
        panel.stairs(h.after, h.edges, color=BLUE, linewidth=1.3, label="after")
        panel.set_yscale("log")
        panel.set_ylim(bottom=0.7)
        panel.set_title(f"{h.layer}: {100 * h.share:.1f} % zeros", fontsize=10)
        panel.tick_params(labelsize=8)
    for panel in panels[len(shown):]:
        panel.set_axis_off()
    more = f"; the first {len(shown)} of {len(found)} layers" if len(found) > len(shown) else ""
    figure.supxlabel("weight", fontsize=10)
    figure.supylabel(f"weights in a bin ({BINS} bins, log scale)", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2,
                  title=f"weights before and after{more}", fontsize=9, title_fontsize=10)
    return figure
