"""The numbers beside the pictures are those of hand-made networks; the axes say what they show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from harness.analysis.curves import (
    Curve,
    Spot,
    accuracy_flops,
    accuracy_latency,
    accuracy_removed,
    accuracy_training,
    importance,
    search_cost,
)
from harness.analysis.feature_maps import activations, feature_maps, first_filters
from harness.analysis.ink import STYLE, Picture, brief, short_label, short_path
from harness.analysis.layer_pictures import (
    channel_differences,
    kept_channels,
    l1_norms,
    removed_bars,
)
from harness.analysis.map_layers import Layer
from harness.engine.lineage import Difference

BASELINE = Spot(0, 0.9, 2_000_000, 1.0, 100, 0.9, 2.0, 10**9)


def curve(role: str, kind: str, *, dip: float = 0.0, name: str = "one") -> Curve:
    return Curve(name, role, kind, [
        BASELINE, Spot(1, 0.8 - dip, 1_000_000, 0.5, 60, 0.4, 1.5, 2 * 10**9),
        Spot(1, 0.85 - dip, 1_000_000, 0.5, 60, None, 1.5, 3 * 10**9, is_final=True)])


CURVES = [curve("trial", "trials"), curve("champion", "champion"),
          *(curve("control", "control: random", dip=0.1 * n, name=f"random, {n}") for n in (1, 2))]


@contextmanager
def laid_out(picture: Picture) -> Iterator[Figure]:
    """In its own size and letters, everything in its place."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure)
        figure.draw_without_rendering()
        yield figure


def drawn(picture: Picture) -> Figure:
    """As it is drawn, and whether it can be written."""
    assert picture.png().startswith(b"\x89PNG")
    figure = Figure()
    picture.draw(figure)
    return figure


@pytest.mark.rows("R124")
def test_the_axis_says_removed_and_shows_the_share_that_is_gone() -> None:
    axes = drawn(accuracy_removed(CURVES, BASELINE)).axes[0]
    assert axes.get_xlabel() == "convolution filters removed"
    (line,) = [each for each in axes.lines if each.get_label() == "champion"]
    assert list(line.get_xdata()) == pytest.approx([0, 0.4, 0.4])
    assert list(line.get_ydata()) == pytest.approx([0.9, 0.8, 0.85])
    assert axes.xaxis.get_major_formatter()(0.4, 0).startswith("40")


@pytest.mark.rows("R125")
def test_controls_are_shown_with_their_mean_and_spread() -> None:
    figure = drawn(accuracy_flops(CURVES, BASELINE, 0.6))
    (bar,) = figure.axes[0].containers
    point, _, (segments,) = bar.lines
    assert list(point.get_xdata()) == pytest.approx([1.0]), "in units of 10^6, as the label says"
    assert "(M, 2 x MACs" in figure.axes[0].get_xlabel()
    assert list(point.get_ydata()) == pytest.approx([(0.75 + 0.65) / 2])
    low, high = segments.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.1 / 2**0.5)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "control: random, mean ± s.d. of 2" in texts


@pytest.mark.rows("R125", "R128")
def test_accuracy_stands_against_all_training_and_against_measured_time() -> None:
    training, latency = (draw(CURVES, BASELINE) for draw in (accuracy_training, accuracy_latency))
    axes = drawn(training).axes[0]
    (line,) = [each for each in axes.lines if each.get_label() == "champion"]
    assert list(line.get_xdata()) == pytest.approx([1, 2, 3])
    assert "training so far (G;" in axes.get_xlabel()
    assert "ms, measured" in drawn(latency).axes[0].get_xlabel()
    assert [row[-2:] for row in latency.rows[:3]] == [[2.0, 10**9], [1.5, 2 * 10**9],
                                                      [1.5, 3 * 10**9]]


@pytest.mark.parametrize("draw", [accuracy_removed, accuracy_flops, accuracy_training,
                                  accuracy_latency])
def test_the_axis_names_what_was_measured(draw: Callable[..., Picture]) -> None:
    """Where pixels have classes it is no accuracy."""
    (axes,) = drawn(draw(CURVES, BASELINE, measure="mean IoU")).axes
    assert axes.get_ylabel() == "mean IoU on validation"
    (axes,) = drawn(draw(CURVES, BASELINE)).axes
    assert axes.get_ylabel() == "top-1 accuracy on validation"


@pytest.mark.parametrize("draw", [accuracy_removed, accuracy_flops, accuracy_training,
                                  accuracy_latency])
def test_beside_a_long_legend_the_axis_keeps_its_words(draw: Callable[..., Picture]) -> None:
    """The longest name that a control has leaves little room: nothing is cut off at the edge."""
    curves = [*CURVES, *(curve("control", "the champion's settings again", dip=0.1 * n)
                         for n in range(3))]
    with laid_out(draw(curves, BASELINE)) as figure:
        label = figure.axes[0].xaxis.label.get_window_extent()
        assert label.x0 >= 0
        assert label.x1 <= figure.bbox.x1


@pytest.mark.rows("R128")
def test_the_cost_of_a_search_adds_up() -> None:
    found = search_cost([5, 0, 7], [None, 0.5, 0.75], "largest percentage", [0.5, 0.9, 0.75],
                        [True, False, True])
    assert [row[1] for row in found.rows] == [5, 5, 12]
    assert [row[3:] for row in found.rows] == [[0.5, True], [0.9, False], [0.75, True]]
    drawn(found)


def test_importances_are_listed_the_largest_first() -> None:
    found = importance({"lr": 0.2, "epochs": 0.8}, "accuracy")
    assert found.rows == [["epochs", 0.8], ["lr", 0.2]]
    drawn(found)


@pytest.mark.rows("R126")
def test_removed_parameters_are_told_by_number_and_percent() -> None:
    found = removed_bars({"": 100, "conv": 80, "head": 20, "empty": 0}, {"": 30, "conv": 10,
                                                                         "head": 20}, "block")
    assert found.rows == [["all", 100, 30, 70, 70.0], ["conv", 80, 10, 70, 87.5],
                          ["head", 20, 20, 0, 0.0]]
    assert [axes.get_xlabel() for axes in drawn(found).axes] == [
        "parameters", "of its parameters removed"]


@pytest.mark.rows("R129")
def test_every_channel_has_the_step_that_removed_it() -> None:
    found = kept_channels({"a": 4, "b": 2}, [{}, {"a": [1]}, {"a": [1, 3], "b": [0]}])
    assert found.rows == [["a", 0, None], ["a", 1, 1], ["a", 2, None], ["a", 3, 2],
                          ["b", 0, 2], ["b", 1, None]]
    drawn(found)


@pytest.mark.rows("R128")
def test_norms_are_told_of_the_same_original_filter_before_and_after() -> None:
    found = l1_norms({"a": torch.tensor([1.0, 2, 3])}, {"a": torch.tensor([10.0, 30])},
                     {"a": [0, 2]}, names=("baseline", "champion"))
    assert sorted(found.rows, key=lambda row: row[1]) == [
        ["a", 0, 1.0, 10.0], ["a", 1, 2.0, None], ["a", 2, 3.0, 30.0]]
    drawn(found)


@pytest.mark.rows("R111")
def test_differences_are_told_by_layer_and_in_total() -> None:
    found = channel_differences({"random": Difference({"a": 0.5, "b": 0.0}, 0.25)}, "the champion")
    assert found.rows == [["random", "the champion", "total", 0.25],
                          ["random", "the champion", "a", 0.5],
                          ["random", "the champion", "b", 0.0]]
    drawn(found)


@pytest.mark.rows("R129")
def test_activation_and_deviation_maps_are_mean_and_spread_of_the_filters() -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(147, 2)).eval()
    given = torch.randn(2, 1, 9, 9)
    mean, deviation = activations(net, Layer("1", (7, 7)), given)
    with torch.no_grad():
        out = net[1](net[0](given)).numpy()
    torch.testing.assert_close(mean, torch.from_numpy(out.mean(1)))
    torch.testing.assert_close(deviation, torch.from_numpy(out.std(1)))
    found = feature_maps({"net": net}, given, torch.tensor([0, 1]), 2)
    assert [row[2] for row in found.rows] == ["1", "1"]
    drawn(found)


@pytest.mark.rows("R129")
def test_masks_are_drawn_where_pixels_have_classes() -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1)).eval()
    given = torch.randn(2, 1, 9, 9)
    truth = (given[:, 0] > 0).long()
    figure = drawn(feature_maps({"net": net}, given, truth, 2))
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert any((each == truth[0].numpy()).all() for each in shown if each.shape == (9, 9))
    with torch.no_grad():
        predicted = net(given).argmax(1).numpy()
    assert any((each == predicted[1]).all() for each in shown if each.shape == (9, 9))


@pytest.mark.rows("R129")
def test_first_filters_keep_their_places() -> None:
    before = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 3, 3)
    found = first_filters(before, 5 + before[[0, 2]], [0, 2], "conv", names=("a", "b"))
    assert found.rows == [[0, True, 0.0, 5.0], [1, False, 1.0, None], [2, True, 2.0, 7.0]]
    drawn(found)


def test_numbers_are_brief() -> None:
    assert [brief(n) for n in (0, 999, 36_500, 2.5e6, 3e9)] == ["0", "999", "36.5 k", "2.5 M",
                                                              "3 G"]


LONG = {f"encoder.backbone.stages.{i}.residual_blocks.{j}.pointwise_expansion": 8
        for i in range(3) for j in range(2)}


@pytest.mark.rows("R126")
def test_long_names_leave_room_for_what_is_drawn_and_stay_different() -> None:
    half = {name: width // 2 for name, width in LONG.items()}
    gone = [{}, {name: range(4) for name in LONG}]
    for picture in (removed_bars(LONG, half, "layer"), kept_channels(LONG, gone),
                    channel_differences({"l1": Difference(half, 0.5)}, "the champion")):
        with laid_out(picture) as figure:
            axes = figure.axes[0]
            names = [text.get_text() for text in axes.get_yticklabels()]
            assert len(set(names)) == len(names)
            width = axes.get_window_extent().width / figure.bbox.width
            assert width > 0.3, f"{picture.name}: names take the place of the picture"
            label = axes.xaxis.label.get_window_extent()
            assert figure.bbox.x0 <= label.x0, picture.name
            assert label.x1 <= figure.bbox.x1, picture.name


@pytest.mark.parametrize("name", [
    "features.0", "encoder.layers.11.self_attention.output_projection.linear", "a" * 60])
def test_a_short_path_keeps_numbers_and_beginnings(name: str) -> None:
    found = short_path(name)
    assert len(found) <= 34
    assert (found == name) == (len(name) <= 34)
    for part, whole in zip(found.split("."), name.split("."), strict=True):
        assert whole.startswith(part.rstrip("…"))
        assert part == whole or part.endswith("…")


def test_of_a_class_the_end_of_the_name_stays_too() -> None:
    assert short_label("cat", 10) == "cat"
    assert short_label("American Terrier 12", 10) == "Ameri…r 12"


def test_a_single_answer_of_a_search_is_seen_and_none_is_told() -> None:
    (one,) = drawn(search_cost([3], [0.5], "accuracy of the champion")).axes
    assert [line.get_marker() for line in one.lines] == ["o", "|"]
    assert all(float(tick).is_integer() for tick in one.get_xticks()), "no half of an epoch"
    for flat in (0.0, 0.986, 1.0):
        low, high = drawn(search_cost([3, 4], [flat, flat], "accuracy")).axes[0].get_ylim()
        assert 0 <= low < high <= 1, "no share is under nothing or over all"
        assert low <= flat <= high
    (asked,) = drawn(search_cost([3, 4], [0.5, 0.5], "percentage", [0.5, 0.9], [True, False])).axes
    assert asked.get_ylim()[0] < 0.5 < 0.9 < asked.get_ylim()[1], "what did not hold is seen too"
    (none,) = drawn(search_cost([3, 4], [None, None], "accuracy of the champion")).axes
    assert [text.get_text() for text in none.texts] == ["no trial has an answer yet"]
    assert none.get_ylim() == (0, 1), "no share is negative"


@pytest.mark.rows("R125")
def test_controls_of_the_same_flops_do_not_hide_each_other() -> None:
    curves = [curve("champion", "champion"), *(curve("control", f"control: {n}", dip=0.01 * n)
                                               for n in range(3))]
    figure = drawn(accuracy_flops(curves, BASELINE))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    places = [bar.lines[0].get_transform().transform(bar.lines[0].get_xydata())[0, 0]
              for bar in axes.containers]
    assert len(places) == 3
    assert len({round(place, 1) for place in places}) == 3
    assert "drawn aside" in axes.get_xlabel()


def test_a_long_logarithmic_axis_has_room_for_its_numbers() -> None:
    norms = {"a": torch.logspace(-6, 0, 30)}
    picture = l1_norms(norms, norms, {"a": range(30)}, names=("one", "other"))
    with laid_out(picture) as figure:
        axes = figure.axes[0]
        boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        low, high = axes.get_window_extent().intervalx
    shown = sorted((box for box in boxes if low - 1 <= (box.x0 + box.x1) / 2 <= high + 1),
                   key=lambda box: box.x0)
    assert len(shown) > 2
    assert all(one.x1 < other.x0 for one, other in pairwise(shown))
