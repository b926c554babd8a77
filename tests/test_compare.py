"""Runs that were written earlier stand side by side, found by their ids or their names."""

from pathlib import Path

import pytest

from harness.compare import side_by_side
from harness.errors import TrackingError
from harness.tracking import MlflowTracker, Point, Written, written


def run(name: str, **more: object) -> Written:
    facts: dict[str, object] = {"run_id": name * 8, "name": name, "role": "trial", "study": "s-1",
                                "status": "FINISHED", "params": {}, "metrics": {}}
    return Written(**{**facts, **more})  # type: ignore[arg-type]


@pytest.mark.rows("R130")
def test_a_table_has_the_measures_that_any_run_has_and_the_settings_that_differ() -> None:
    one = run("a", params={"lr": "0.1", "seed": "0"}, metrics={"final_val_accuracy": 0.5,
                                                               "final_flops": 2e6})
    other = run("b", params={"lr": "0.2", "seed": "0"}, metrics={"final_val_accuracy": 0.25})
    table = {str(row[0]): list(row[1:]) for row in side_by_side([one, other]).rows}
    assert table["accuracy (validation)"] == ["50.00 %", "25.00 %"]
    assert table["FLOPs per picture"] == ["2.00 M", "-"]
    assert table["lr"] == ["0.1", "0.2"]
    assert "seed" not in table
    assert "parameters" not in table


@pytest.mark.rows("R130")
def test_runs_are_compared_by_what_was_measured_and_several_measures_are_told_apart() -> None:
    """One measure is in the title; of two, each run says its own."""
    iou, top = (run(name, measure=measure, metrics={"final_val_accuracy": 0.5})
                for name, measure in (("a", "mean IoU"), ("b", "top-1 accuracy")))
    assert [row[0] for row in side_by_side([iou, iou]).rows[2:]] == ["mean IoU (validation)"]
    assert side_by_side([iou, top]).rows[2:] == [
        ["accuracy is", "mean IoU", "top-1 accuracy"],
        ["accuracy (validation)", "50.00 %", "50.00 %"]]


@pytest.mark.rows("R130")
def test_runs_are_found_by_id_by_its_beginning_and_by_study_and_name(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    tracker = MlflowTracker.open(uri, "here", tmp_path)
    old, new = (tracker.open_run(name="trial 3", role="trial", study=f"vgg-{n}",
                                 params={"lr": n}) for n in (1, 2))
    tracker.log_points(new, [Point("final_val_accuracy", 0.75, 0, 1)])
    found = written(uri, [old, new[:20], "vgg/trial 3", "vgg-1/trial 3"])
    assert [each.run_id for each in found] == [old, new, new, old]  # of a family the latest
    assert found[1].metrics == {"final_val_accuracy": 0.75}
    assert found[0].params["lr"] == "1"
    with pytest.raises(TrackingError) as caught:
        written(uri, ["nine", "vgg/trial 4", old, "trial 3"])
    assert str(caught.value).splitlines() == [
        "'nine' is no run.",
        "'vgg/trial 4' is no run. Nearest: vgg/trial 3, vgg-2/trial 3, vgg-1/trial 3.",
        "'trial 3' is no run. Nearest: vgg/trial 3, vgg-2/trial 3, vgg-1/trial 3.",
        f"Name runs by their id, or as 'STUDY/trial 3'. (looked in {uri}; another: "
        "MLFLOW_TRACKING_URI)"]


@pytest.mark.rows("R130")
def test_to_look_for_runs_makes_no_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    with pytest.raises(TrackingError, match=r"there is no store .*m\.db.*MLFLOW_TRACKING_URI"):
        written(uri, ["vgg/trial 3"])
    assert not list(tmp_path.iterdir())
