"""Histograms of weights before and after, against numpy's."""

import csv

import numpy as np
import pytest
import torch

from harness.analysis.weight_histograms import as_rows, histogram, histograms, picture


@pytest.mark.rows("R122")
def test_a_hundred_bins_over_both_and_every_weight_in_one() -> None:
    before = torch.randn(500, generator=torch.Generator().manual_seed(0))
    after = torch.where(before.abs() < 1, 0.0, 1.5 * before)
    found = histogram("a", before, after)
    edges = np.linspace(float(after.min()), float(after.max()), 101)
    np.testing.assert_allclose(found.edges, edges, rtol=1e-6)
    assert found.before == tuple(np.histogram(before.numpy(), edges)[0])
    assert sum(found.before) == sum(found.after) == 500
    assert found.zeros == int((before.abs() < 1).sum())
    assert found.share == found.zeros / 500


@pytest.mark.rows("R122")
def test_every_layer_has_its_panel_and_its_rows() -> None:
    weights = {f"layer{n}": torch.linspace(-1, n + 1, 50) for n in range(3)}
    after = {name: torch.where(w < 0, 0.0, w) for name, w in weights.items()} | {"other": weights}
    found = histograms(weights, after)  # type: ignore[arg-type]
    rows = list(csv.DictReader(as_rows(found).splitlines()))
    assert len(rows) == 300
    assert sum(int(row["after"]) for row in rows) == 150
    panels = [axes for axes in picture(found).axes if axes.get_title()]
    assert [axes.get_title().partition(":")[0] for axes in panels] == list(weights)
    zeros = [100 * int((w == 0).sum()) / 50 for w in list(after.values())[:3]]
    assert [f"{share:.1f} % zeros" for share in zeros] == [
        axes.get_title().partition(": ")[2] for axes in panels]


def test_weights_that_are_all_the_same_have_bins_too() -> None:
    found = histogram("a", torch.zeros(4), torch.zeros(4))
    assert sum(found.before) == 4
    assert found.edges[0] < 0 < found.edges[-1]
