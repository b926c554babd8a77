"""What was tracked is there once, and whole; what could not be tracked is told in a sentence."""

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from harness import comparison_view, tracking
from harness.errors import TrackingError
from harness.tracking import (
    MISSING,
    MemoryTracker,
    MlflowTracker,
    Point,
    Tracker,
    contact,
    end_lost_launchers,
    launched,
    launcher,
    link_launcher,
    resolve_uri,
    serve,
    view_link,
)

AnyTracker = MlflowTracker | MemoryTracker
ROOT = Path(tracking.__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_store_of_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    launcher.cache_clear()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables: making them takes seconds, copying them does not."""
    folder = tmp_path_factory.mktemp("store")
    MlflowTracker.open(f"sqlite:///{folder}/mlflow.db", "unused", folder)
    made, copy = (sqlite3.connect(folder / name) for name in ("mlflow.db", "copy.db"))
    with closing(made), closing(copy):
        made.backup(copy)
    return folder / "copy.db"


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def mlflow_tracker(uri: str, tmp_path: Path) -> MlflowTracker:
    return MlflowTracker.open(uri, "study", tmp_path / "home")


@pytest.fixture(params=["mlflow", "memory"])
def tracker(request: pytest.FixtureRequest) -> AnyTracker:
    if request.param == "memory":
        return MemoryTracker()
    found: MlflowTracker = request.getfixturevalue("mlflow_tracker")
    return found


def opened(tracker: Tracker, name: str = "trial 1", **more: Any) -> str:
    return tracker.open_run(name=name, role="trial", study="s-1", **more)


def params_of(tracker: AnyTracker, run_id: str) -> dict[str, str]:
    if isinstance(tracker, MemoryTracker):
        return tracker.runs[run_id].params
    return dict(tracker.client.get_run(run_id).data.params)


def tags_of(tracker: AnyTracker, run_id: str) -> dict[str, str]:
    if isinstance(tracker, MemoryTracker):
        return tracker.runs[run_id].tags
    return dict(tracker.client.get_run(run_id).data.tags)


def curve(tracker: AnyTracker, run_id: str, key: str) -> list[tuple[int, float]]:
    if isinstance(tracker, MemoryTracker):
        return tracker.runs[run_id].curve(key)
    history = tracker.client.get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in history)


def file_of(tracker: AnyTracker, run_id: str, path: str) -> str:
    if isinstance(tracker, MemoryTracker):
        return tracker.runs[run_id].files[path]
    return Path(tracker.client.download_artifacts(run_id, path)).read_text()


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 36, 10)
    )


EXAMPLE = torch.zeros(1, 1, 8, 8)


class TestEveryTracker:
    def test_a_run_that_failed_goes_on_under_its_id(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker)
        tracker.end_run(run_id, "FAILED")
        assert tracker.status(run_id) == "FAILED"
        assert opened(tracker, run_id=run_id) == run_id
        assert tracker.status(run_id) == "RUNNING"

    def test_a_run_that_never_was_is_missing(self, tracker: AnyTracker) -> None:
        assert tracker.status("0" * 32) == MISSING

    def test_a_run_that_never_was_cannot_go_on(self, tracker: AnyTracker) -> None:
        with pytest.raises(TrackingError, match=r"MLflow could not .*0000"):
            opened(tracker, run_id="0" * 32)

    def test_equal_params_are_left_and_new_ones_join(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker, params={"lr": 0.1, "epochs": 3})
        opened(tracker, run_id=run_id, params={"lr": 0.1, "seed": 0})
        assert params_of(tracker, run_id) == {"lr": "0.1", "epochs": "3", "seed": "0"}

    def test_another_value_of_a_param_is_refused_by_name(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker, params={"lr": 0.1, "epochs": 3})
        with pytest.raises(TrackingError, match=r"lr is '0.1', not '0.2'.*Start a new run"):
            opened(tracker, run_id=run_id, params={"lr": 0.2, "epochs": 3})

    @pytest.mark.rows("R112")
    def test_a_whole_configuration_of_params_is_kept(self, tracker: AnyTracker) -> None:
        """MLflow takes 100 at once, each of 6000 characters."""
        many = {f"layer.{i}": i for i in range(250)} | {"long": "x" * 9000}
        found = params_of(tracker, opened(tracker, params=many))
        assert len(found) == 251
        assert found["layer.249"] == "249"
        assert len(found["long"]) == 6000
        assert found["long"].endswith("(shortened: 9000 characters)")

    @pytest.mark.rows("R119")
    def test_role_and_study_are_tags(self, tracker: AnyTracker) -> None:
        tags = tags_of(tracker, opened(tracker, tags={"fingerprint": "abc"}))
        assert (tags["role"], tags["study"], tags["fingerprint"]) == ("trial", "s-1", "abc")

    def test_tags_of_a_run_are_read_as_they_are_now(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker, tags={"ordinal": "1"})
        tracker.set_tags(run_id, {"ordinal": "2", "more": "yes"})
        assert {"role": "trial", "study": "s-1", "ordinal": "2", "more": "yes"}.items() <= (
            tracker.tags(run_id).items()
        )
        with pytest.raises(TrackingError, match=r"MLflow could not .*0000"):
            tracker.tags("0" * 32)

    def test_a_point_written_again_stands_once(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker)
        first = [Point("acc", 0.5, 0, 1000), Point("acc", math.nan, 1, 2000)]
        tracker.log_points(run_id, first)
        tracker.log_points(run_id, [*first, first[0], Point("acc", 0.25, 2, 3000)])
        found = curve(tracker, run_id, "acc")
        assert [step for step, _ in found] == [0, 1, 2]
        assert [value for _, value in found][::2] == [0.5, 0.25]
        assert math.isnan(found[1][1])

    def test_more_points_than_one_batch_holds(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker)
        tracker.log_points(run_id, [Point("loss", i / 8, i, i) for i in range(2300)])
        assert curve(tracker, run_id, "loss") == [(i, i / 8) for i in range(2300)]

    def test_an_infinite_value_is_told_and_does_not_stretch_a_chart(
        self, tracker: AnyTracker
    ) -> None:
        run_id = opened(tracker)
        tracker.log_points(run_id, [Point("loss", 1.0, 0, 1), Point("loss", math.inf, 1, 2)])
        assert math.isnan(curve(tracker, run_id, "loss")[1][1])
        assert tags_of(tracker, run_id)["infinite.loss"] == "step 1"

    def test_a_table_written_again_is_not_twice_as_long(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker)
        columns: dict[str, Sequence[object]] = {"layer": ["a", "b"], "share": [0.5, math.nan]}
        tracker.log_table(run_id, columns, "widths.json")
        tracker.log_table(run_id, columns, "widths.json")
        assert json.loads(file_of(tracker, run_id, "widths.json")) == {
            "columns": ["layer", "share"],
            "data": [["a", 0.5], ["b", None]],
        }

    def test_a_table_of_unequal_columns_is_refused(self, tracker: AnyTracker) -> None:
        with pytest.raises(TrackingError, match=r"equally long.*'a': 1, 'b': 2"):
            tracker.log_table(opened(tracker), {"a": [1], "b": [1, 2]}, "t.json")

    def test_json_comes_back_as_it_was(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker)
        tracker.log_json(run_id, {"kept": {"conv": [0, 2]}}, "plans/plan.json")
        assert json.loads(file_of(tracker, run_id, "plans/plan.json")) == {"kept": {"conv": [0, 2]}}

    def test_files_are_kept_under_their_names(self, tracker: AnyTracker, tmp_path: Path) -> None:
        run_id = opened(tracker)
        file = tmp_path / "front.csv"
        file.write_text("a,b\n1,2\n")
        tracker.log_files(run_id, [file], "pictures")
        tracker.log_files(run_id, [file], "pictures")
        kept = (tracker.runs[run_id].artifacts["pictures/front.csv"].decode()
                if isinstance(tracker, MemoryTracker)
                else file_of(tracker, run_id, "pictures/front.csv"))
        assert kept == file.read_text()

    def test_a_text_that_was_written_is_read(self, tracker: AnyTracker) -> None:
        run_id = opened(tracker)
        tracker.log_text(run_id, "seed: 0\n", "config.yaml")
        assert tracker.read_text(run_id, "config.yaml") == "seed: 0\n"
        with pytest.raises(TrackingError, match="could not read plan.json"):
            tracker.read_text(run_id, "plan.json")

    def test_the_weights_of_a_model_come_back_with_its_tags(self, tracker: AnyTracker) -> None:
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        run_id = opened(tracker)
        tracker.log_model(run_id, net, torch.zeros(2, 1, 5, 5), name="pruned", tags={"step": "3"})
        weights, tags = tracker.read_model(run_id, "pruned")
        assert tags["step"] == "3"
        assert weights.keys() == net.state_dict().keys()
        assert all(torch.equal(weights[n], t) for n, t in net.state_dict().items())
        with pytest.raises(TrackingError, match="has no model 'whole'"):
            tracker.read_model(run_id, "whole")

    def test_registering_the_same_model_again_makes_no_new_version(
        self, tracker: AnyTracker
    ) -> None:
        run_id = opened(tracker)
        first, second = (
            tracker.log_model(run_id, small_net(), EXAMPLE, name=name) for name in ("a", "b")
        )
        assert tracker.register(first, "net", description="the best", tags={"k": "v"}) == "1"
        assert tracker.register(first, "net") == "1"
        assert tracker.register(second, "net") == "2"
        assert tracker.register(first, "net") == "1"

    def test_a_version_leads_to_the_run_and_the_model_that_it_is_of(
        self, tracker: AnyTracker
    ) -> None:
        run_id = opened(tracker)
        nets = [small_net() for _ in range(2)]
        uris = [
            tracker.log_model(run_id, net, EXAMPLE, name="pruned", tags={"step": str(step)})
            for step, net in enumerate(nets)
        ]
        for uri in uris:
            tracker.register(uri, "net", alias="champion")
        for which, place in (("/1", 0), ("/2", 1), ("@champion", 1)):
            found = tracker.registered("net", which)
            assert (found.name, found.number, found.run_id) == ("net", str(place + 1), run_id)
            assert found.uri == uris[place]
            tensors, tags = tracker.read_model(run_id, "pruned", found.uri)
            assert tags["step"] == str(place)
            own = nets[place].state_dict()
            assert all(torch.equal(tensors[name], own[name]) for name in own)
        for which in ("/3", "@nobody"):
            with pytest.raises(TrackingError, match=f"could not find .* net{which}"):
                tracker.registered("net", which)

    def test_the_launcher_leads_to_the_study(self, tracker: AnyTracker) -> None:
        started, study = opened(tracker, "spiffy-dove"), opened(tracker, "study")
        link_launcher(tracker, started, study, view="#/a/view")
        tags = tags_of(tracker, started)
        assert tags["study_run"] == study
        assert f"/runs/{study}" in tags["mlflow.note.content"]
        assert "(#/a/view)" in tags["mlflow.note.content"]

    def test_a_launcher_of_another_store_is_left_alone(self, tracker: AnyTracker) -> None:
        link_launcher(tracker, "0" * 32, opened(tracker))


class TestRunsInMlflow:
    def test_a_deleted_run_is_missing(self, mlflow_tracker: MlflowTracker) -> None:
        run_id = opened(mlflow_tracker)
        mlflow_tracker.client.delete_run(run_id)
        assert mlflow_tracker.status(run_id) == MISSING
        with pytest.raises(TrackingError, match=r"could not open the run trial 1.*deleted"):
            opened(mlflow_tracker, run_id=run_id)

    def test_a_run_is_found_with_its_experiment_and_nothing_is_made_to_look_for_it(
        self, uri: str, tmp_path: Path
    ) -> None:
        assert MlflowTracker.of_run(f"sqlite:///{tmp_path}/nobodys.db", "0" * 32) is None
        assert not (tmp_path / "nobodys.db").exists()
        MlflowTracker.open(uri, "another", tmp_path)
        mine = MlflowTracker.open(uri, "mine", tmp_path)
        run_id = opened(mine)
        names = [each.name for each in mine.client.search_experiments()]
        found = MlflowTracker.of_run(uri, run_id)
        assert found is not None
        assert (found.experiment, found.experiment_id) == ("mine", mine.experiment_id)
        found.log_text(run_id, "page", "report.html")
        assert "report.html" in [file.path for file in mine.client.list_artifacts(run_id)]
        assert MlflowTracker.of_run(uri, "0" * 32) is None
        mine.client.delete_run(run_id)
        assert MlflowTracker.of_run(uri, run_id) is None
        assert [each.name for each in mine.client.search_experiments()] == names

    @pytest.mark.rows("R119")
    def test_a_child_stands_under_its_parent(self, mlflow_tracker: MlflowTracker) -> None:
        parent = opened(mlflow_tracker, "study")
        child = opened(mlflow_tracker, parent=parent)
        found = mlflow_tracker.client.get_parent_run(child)
        assert found is not None
        assert found.info.run_id == parent

    def test_a_picture_of_a_step_stands_once(self, uri: str, tmp_path: Path) -> None:
        """Also when another process writes it, that knows nothing of the first."""
        one, other = (MlflowTracker.open(uri, "study", tmp_path) for _ in range(2))
        run_id = opened(one)
        figure = Figure(figsize=(1, 1))
        for tracker in (one, other, one):
            tracker.log_image(run_id, figure, key="layer_widths", step=3)
            tracker.log_image(run_id, np.zeros((4, 4, 3), np.uint8), key="layer_widths", step=4)
        names = [file.path for file in one.client.list_artifacts(run_id, "images")]
        assert len(names) == 4  # of each the picture and its small form
        assert sum("+step+3+" in name for name in names) == 2

    def test_figures_and_texts_lie_beside_the_store(
        self, mlflow_tracker: MlflowTracker, tmp_path: Path
    ) -> None:
        run_id = opened(mlflow_tracker)
        mlflow_tracker.log_figure(run_id, Figure(figsize=(1, 1)), "curve.png")
        mlflow_tracker.log_text(run_id, "seed: 0\n", "config.yaml")
        folder = tmp_path / "mlruns" / "study" / run_id / "artifacts"
        assert (folder / "config.yaml").read_text() == "seed: 0\n"
        assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")

    def test_data_written_again_is_one_input(self, mlflow_tracker: MlflowTracker) -> None:
        run_id = opened(mlflow_tracker)
        for _ in range(2):
            mlflow_tracker.log_data(run_id, name="digits", digest="f" * 64, context="training")
        inputs = mlflow_tracker.client.get_run(run_id).inputs
        assert inputs is not None
        assert [(one.dataset.name, one.dataset.digest) for one in inputs.dataset_inputs] == [
            ("digits", "f" * 36)
        ]

    def test_the_view_shows_trials_controls_and_baseline_of_its_study_alone(
        self, mlflow_tracker: MlflowTracker
    ) -> None:
        for study in ("s-1", "it's"):
            for role in ("study", "baseline", "trial", "control"):
                mlflow_tracker.open_run(name=role, role=role, study=study)
        for study in ("s-1", "it's"):
            query = comparison_view.state(
                study, ["lr"], "val_accuracy", ["lr"], "budget", "top-1 accuracy"
            )["searchFilter"]
            found = mlflow_tracker.client.search_runs([mlflow_tracker.experiment_id], str(query))
            tags = [run.data.tags for run in found]
            assert {tag["study"] for tag in tags} == {study}
            assert sorted(tag["role"] for tag in tags) == ["baseline", "control", "trial"]

    def test_a_saved_view_is_kept_whole_with_the_experiment(
        self, mlflow_tracker: MlflowTracker
    ) -> None:
        view = comparison_view.build("s-1", settings=["lr"])
        path = mlflow_tracker.save_view(view.key, view.value)
        experiment = mlflow_tracker.client.get_experiment(mlflow_tracker.experiment_id)
        assert experiment.tags[f"mlflow.sharedViewState.{view.key}"] == view.value
        assert f"viewStateShareKey={view.key}" in path
        link = view_link(5001, mlflow_tracker.experiment_id, view.key)
        assert link == f"http://127.0.0.1:5001/{path}"

    def test_a_wrong_name_of_a_metric_is_told(self, mlflow_tracker: MlflowTracker) -> None:
        with pytest.raises(TrackingError, match=r"could not write 1 points.*flops_%"):
            mlflow_tracker.log_points(opened(mlflow_tracker), [Point("flops_%", 1.0, 0, 0)])


class TestModels:
    @pytest.fixture
    def folder(self, mlflow_tracker: MlflowTracker, capfd: pytest.CaptureFixture[str]) -> Path:
        """Where the model of a finished run was kept."""
        run_id = opened(mlflow_tracker)
        mlflow_tracker.log_points(run_id, [Point("final_val_accuracy", 0.75, 0, 1000)])
        mlflow_tracker.end_run(run_id, "FINISHED")
        net = small_net().to(memory_format=torch.channels_last)
        uri = mlflow_tracker.log_model(
            run_id,
            net,
            EXAMPLE,
            name="pruned",
            metrics={"final_val_accuracy": 0.75},
            tags={"role": "champion"},
            metadata={"labels": ["zero", "one"]},
        )
        assert capfd.readouterr() == ("", "")
        assert net.training
        assert mlflow_tracker.status(run_id) == "FINISHED"
        assert curve(mlflow_tracker, run_id, "final_val_accuracy") == [(0, 0.75)]
        kept = mlflow_tracker.client.get_logged_model(uri.removeprefix("models:/"))
        assert str(kept.status) == "READY"
        assert kept.source_run_id == run_id
        assert [metric.key for metric in kept.metrics or []] == ["final_val_accuracy"]
        return Path(kept.artifact_location)

    def test_a_full_disk_is_told_before_torch_writes_and_ends_the_process(
        self, mlflow_tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: usage(path)._replace(free=10**6)
        )
        monkeypatch.setattr(torch.export, "save", None)
        with pytest.raises(TrackingError, match="keep the model pruned: the disk is full"):
            mlflow_tracker.log_model(opened(mlflow_tracker), small_net(), EXAMPLE, name="pruned")

    @pytest.mark.rows("R141")
    def test_a_model_loads_without_our_code_for_any_batch(self, folder: Path) -> None:
        (graph,) = folder.glob("data/*.pt2")
        script = (
            "import sys, torch; net = torch.export.load(sys.argv[1]).module();"
            "print([tuple(net(torch.ones(n, 1, 8, 8)).shape) for n in (1, 2, 5)],"
            "'harness' in sys.modules, net(torch.ones(1, 1, 8, 8)).sum().item())"
        )
        found = subprocess.run(
            [sys.executable, "-I", "-c", script, graph], capture_output=True, text=True, check=True
        )
        shapes, known, total = found.stdout.rsplit(maxsplit=2)
        assert (shapes, known) == ("[(1, 10), (2, 10), (5, 10)]", "False")
        expected = small_net().eval()(torch.ones(1, 1, 8, 8)).sum().item()
        assert float(total) == pytest.approx(expected, abs=1e-4)

    def test_a_model_says_what_it_takes_and_what_its_classes_are(self, folder: Path) -> None:
        text = " ".join((folder / "MLmodel").read_text().split())
        assert '"shape": [-1, 1, 8, 8]' in text
        assert "- zero" in text
        needed = (folder / "requirements.txt").read_text().split()
        assert {line.partition("==")[0] for line in needed} == {"mlflow", "torch"}

    def test_the_champion_is_found_by_its_alias(self, mlflow_tracker: MlflowTracker) -> None:
        uri = mlflow_tracker.log_model(opened(mlflow_tracker), small_net(), EXAMPLE, name="a")
        mlflow_tracker.register(uri, "net", alias="champion", description="the best",
                                tags={"budget": "0.1"})
        champion = mlflow_tracker.client.get_model_version_by_alias("net", "champion")
        place = mlflow_tracker.client.get_model_version_download_uri("net", str(champion.version))
        assert (Path(place) / "data" / "model.pt2").exists()
        assert (champion.description, champion.tags) == ("the best", {"budget": "0.1"})

    def test_a_model_that_cannot_be_exported_is_told_and_not_left_half_kept(
        self, mlflow_tracker: MlflowTracker
    ) -> None:
        class Picky(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x if float(x.sum()) > 0 else -x

        with pytest.raises(TrackingError, match="could not keep the model picky"):
            mlflow_tracker.log_model(opened(mlflow_tracker), Picky(), EXAMPLE, name="picky")
        (kept,) = mlflow_tracker.client.search_logged_models([mlflow_tracker.experiment_id])
        assert str(kept.status) == "FAILED"


class TestOpening:
    def test_the_default_is_mlflows_file_in_the_current_folder(
        self, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "a folder"
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        monkeypatch.chdir(folder)
        found = MlflowTracker.open(None, "study", tmp_path)
        assert found.uri == f"sqlite:///{folder}/mlflow.db"
        assert found.client.get_experiment(found.experiment_id).name == "study"

    def test_an_address_written_for_the_web_is_the_folder_that_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`mlflow run` hands on its own default with a space as %20."""
        (tmp_path / "a folder").mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/a%20folder/mlflow.db")
        assert resolve_uri(None) == f"sqlite:///{tmp_path}/a folder/mlflow.db"
        other = f"sqlite:///{tmp_path}/b%20folder/mlflow.db"
        assert resolve_uri(other) == other

    def test_the_environment_names_the_store(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert MlflowTracker.open(None, "study", tmp_path).uri == uri

    def test_an_experiment_is_made_once(self, uri: str, tmp_path: Path) -> None:
        ids = {MlflowTracker.open(uri, "study", tmp_path).experiment_id for _ in range(2)}
        assert len(ids) == 1

    def test_a_deleted_experiment_is_told_with_the_way_back(
        self, mlflow_tracker: MlflowTracker, tmp_path: Path
    ) -> None:
        mlflow_tracker.client.delete_experiment(mlflow_tracker.experiment_id)
        with pytest.raises(TrackingError, match=r"'study' was deleted.*experiments restore"):
            MlflowTracker.open(mlflow_tracker.uri, "study", tmp_path)

    def test_an_experiment_of_a_server_is_told(
        self, mlflow_tracker: MlflowTracker, tmp_path: Path
    ) -> None:
        mlflow_tracker.client.create_experiment("theirs", "mlflow-artifacts:/7")
        with pytest.raises(TrackingError, match=r"'theirs' was made through.*http://"):
            MlflowTracker.open(mlflow_tracker.uri, "theirs", tmp_path)

    def test_a_file_that_is_no_store(self, tmp_path: Path) -> None:
        (tmp_path / "mlflow.db").write_text("not a store, but long enough to be looked at" * 100)
        self.fails(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "not a database. Move the file")

    def test_a_damaged_store(self, uri: str, tmp_path: Path) -> None:
        path = tmp_path / "mlflow.db"
        path.write_bytes(path.read_bytes()[:5000])
        self.fails(uri, tmp_path, "malformed.*Put back a copy")

    def test_a_store_that_two_programs_left_half_made(self, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            connection.execute("CREATE TABLE _alembic_tmp_latest_metrics (a)")
        self.fails(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "half made.*Move its file away")

    def test_a_store_of_another_version(self, uri: str, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
            connection.commit()
        self.fails(uri, tmp_path, "another version of MLflow.*mlflow db upgrade")

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        self.fails(f"sqlite:///{tmp_path}/file/mlflow.db", tmp_path, "MLFLOW_TRACKING_URI")

    def test_a_folder_that_may_not_be_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Said to be so: a test that runs as root may write everywhere."""
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        self.fails(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "may not be written to.*writable")

    def test_a_folder_as_store(self, tmp_path: Path) -> None:
        self.fails(str(tmp_path / "mlruns"), tmp_path, "no store in a folder any more")

    def test_an_unknown_kind_of_store(self, tmp_path: Path) -> None:
        self.fails("carrier://pigeon", tmp_path, "no such kind of store")

    @pytest.mark.parametrize("kind", ["http", "postgresql"])
    def test_a_server_that_is_not_there(self, kind: str, tmp_path: Path) -> None:
        self.fails(f"{kind}://127.0.0.1:{free_port()}/x", tmp_path, "nothing listens there")

    def test_a_server_that_does_not_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(contact._IMPATIENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with closing(socket.socket()) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            self.fails(address, tmp_path, "the server does not answer")

    def test_a_server_of_something_else(self, tmp_path: Path) -> None:
        with other_server() as address:
            self.fails(address, tmp_path, "not MLflow's")

    def test_a_password_is_not_told(self, tmp_path: Path) -> None:
        address = f"postgresql://me:secret@127.0.0.1:{free_port()}/x"
        with pytest.raises(TrackingError) as told:
            MlflowTracker.open(address, "study", tmp_path)
        assert "secret" not in str(told.value)
        assert "me:***@127.0.0.1" in str(told.value)

    def fails(self, uri: str, home: Path, words: str) -> None:
        with pytest.raises(TrackingError, match=f"could not open the store .*{words}"):
            MlflowTracker.open(uri, "study", home)

    def test_two_programs_may_meet_a_new_store_together(self, tmp_path: Path) -> None:
        script = (
            "import sys; from pathlib import Path; from harness.tracking import MlflowTracker;"
            "tracker = MlflowTracker.open(sys.argv[1], 'study', Path(sys.argv[2]));"
            "print(tracker.open_run(name='t', role='trial', study='s'))"
        )
        uri = f"sqlite:///{tmp_path}/new/mlflow.db"
        both = [
            subprocess.Popen(
                [sys.executable, "-c", script, uri, tmp_path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for _ in range(2)
        ]
        said = [program.communicate(timeout=120) for program in both]
        assert [words for _, words in said] == ["", ""]
        runs = {run_id.strip() for run_id, _ in said}
        tracker = MlflowTracker.open(uri, "study", tmp_path)
        assert {tracker.status(run_id) for run_id in runs} == {"RUNNING"}
        assert len(runs) == 2


class TestTheRunOfMlflowRun:
    def test_it_is_known_and_no_longer_in_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
        assert launcher() == "abc"
        assert "MLFLOW_RUN_ID" not in os.environ
        assert launcher() == "abc"

    def test_without_mlflow_run_there_is_none(self) -> None:
        assert launcher() is None

    @pytest.fixture
    def here(self, mlflow_tracker: MlflowTracker, uri: str, monkeypatch: pytest.MonkeyPatch,
             ) -> MlflowTracker:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return mlflow_tracker

    def test_one_at_work_is_left_and_one_killed_with_all_that_it_started_is_ended(
        self, here: MlflowTracker, uri: str
    ) -> None:
        """The killed one is marked by then, though its process had come to nothing else."""
        lost, alive, persons = (opened(here, name) for name in ("lost", "alive", "a person's"))
        starts = f"from harness.tracking import launched\nwith launched('{lost}'): input()"
        shell = subprocess.Popen(
            ["sh", "-c", '"$0" -c "$1"; true', sys.executable, starts], stdin=subprocess.PIPE,
            env={**os.environ, "MLFLOW_TRACKING_URI": uri}, start_new_session=True)
        end = time.monotonic() + 120
        while "launcher.processes" not in tags_of(here, lost):
            assert time.monotonic() < end
            assert shell.poll() is None
            time.sleep(0.1)
        with launched(alive):
            end_lost_launchers()  # as whoever joins does
            assert {here.status(run) for run in (lost, alive, persons)} == {"RUNNING"}
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
            while here.status(lost) == "RUNNING":  # the one inside may take a moment to die
                assert time.monotonic() < end
                end_lost_launchers()
            assert here.status(lost) == "KILLED"
            assert here.status(alive) == here.status(persons) == "RUNNING"

    def test_mlflow_run_finds_its_run_running_whatever_others_did(self, here: MlflowTracker,
                                                                   ) -> None:
        """It ends it by how its process ended, but only one that is RUNNING."""
        started = opened(here, "spiffy-dove")
        with launched(started):
            here.end_run(started, "KILLED")
        assert here.status(started) == "RUNNING"

    def test_a_store_that_is_away_hinders_no_work(self, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        with launched("0" * 32):
            end_lost_launchers()

    def test_nothing_is_written_into_it_by_mistake(
        self, mlflow_tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = opened(mlflow_tracker, "spiffy-dove")
        monkeypatch.setenv("MLFLOW_RUN_ID", started)
        before = mlflow_tracker.client.get_run(started).to_dictionary()
        run_id = opened(mlflow_tracker, params={"lr": 1})
        mlflow_tracker.log_model(run_id, small_net(), EXAMPLE, name="a")
        mlflow_tracker.log_image(run_id, Figure(figsize=(1, 1)), key="k", step=0)
        assert run_id != started
        assert mlflow_tracker.client.get_run(started).to_dictionary() == before


class TestPages:
    def test_a_port_in_use_is_told(self, uri: str, tmp_path: Path) -> None:
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(TrackingError, match=f"port {port} .*--port {port + 1}"):
                serve(uri, tmp_path, port)

    def test_a_server_has_pages_of_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(TrackingError, match="pages of its own: open it"):
            serve("http://127.0.0.1:5000", tmp_path, free_port())

    def test_a_server_that_ends_at_once_is_told_with_its_last_words(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(TrackingError, match=r"did not start.*mlflow_server.log"):
            serve(uri, tmp_path, free_port())

    def test_the_pages_answer_keep_runs_and_end_with_all_they_started(
        self, uri: str, tmp_path: Path
    ) -> None:
        with serve(uri, tmp_path / "home", free_port()) as server:
            remote = MlflowTracker.open(server.url, "remote", tmp_path)
            assert remote.server == server.url
            run_id = opened(remote, params={"lr": 0.1})
            remote.log_points(run_id, [Point("acc", 0.5, 0, 1), Point("acc", math.nan, 1, 2)])
            remote.log_text(run_id, "hello", "a.txt")
            model = remote.log_model(run_id, small_net(), EXAMPLE, name="a")
            assert remote.register(model, "net") == remote.register(model, "net") == "1"
            assert file_of(remote, run_id, "a.txt") == "hello"
            assert [step for step, _ in curve(remote, run_id, "acc")] == [0, 1]
            remote.end_run(run_id, "FINISHED")
        with pytest.raises(ProcessLookupError):
            os.killpg(server.process.pid, 0)
        assert MlflowTracker.open(uri, "remote", tmp_path).status(run_id) == "FINISHED"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_waiting_ends_at_a_signal_and_ends_the_server(
        self, number: signal.Signals, tmp_path: Path
    ) -> None:
        server = stand_in(["sleep", "60"], tmp_path)
        before = signal.getsignal(number)
        signal.signal(number, signal.default_int_handler)
        try:
            threading.Timer(0.2, lambda: os.kill(os.getpid(), number)).start()
            server.wait()
        finally:
            signal.signal(number, before)
        assert server.process.poll() == -signal.SIGTERM

    def test_a_server_that_ends_by_itself_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(TrackingError, match=r"ended \(3\). Its last words: none"):
            stand_in(["sh", "-c", "exit 3"], tmp_path).wait()


def stand_in(command: list[str], folder: Path) -> tracking.Server:
    """A server that is another program, for the sake of its signals."""
    log = folder / "log"
    log.write_text("")
    process = subprocess.Popen(command, start_new_session=True)
    return tracking.Server("http://127.0.0.1:0", process, log)


def test_importing_the_room_is_cheap() -> None:
    script = (
        "import sys, harness.tracking;"
        "print({'mlflow', 'torch', 'numpy', 'matplotlib', 'sqlalchemy'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "set()"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class _Greeting(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


class other_server:
    """A web server that is not MLflow's, as a context that gives its address."""

    def __enter__(self) -> str:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Greeting)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
