"""Write what a study does into MLflow; or into memory, for a test.

A tracker writes into one experiment. A run is one study, baseline, trial or control; it is known by
its id, so that another process can go on with it. Every method may be called again with the same
content: MLflow then holds it once. The only room that knows MLflow.

Raises: TrackingError from every method, with what was tried, what MLflow said, and what helps.
"""

from __future__ import annotations

import copy
import errno
import getpass
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from harness.errors import HarnessError, TrackingError, nearest
from harness.foreign import load_pt2

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Metric, Run
    from mlflow.models import Model
    from PIL.Image import Image
    from torch import Tensor, nn

    Picture: TypeAlias = Image | Figure | numpy.ndarray

_Item = TypeVar("_Item")
Ending = Literal["FINISHED", "FAILED", "KILLED"]
MISSING = "MISSING"


@dataclass(frozen=True)
class Point:
    """One value of one curve. A summary has step 0."""

    key: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, the run that made it, and where the model lies."""

    name: str
    number: str
    run_id: str
    uri: str


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as it was described."""

    number: str
    description: str
    tags: Mapping[str, str]


class Tracker(Protocol):
    """What a study writes while it runs."""

    @property
    def experiment_id(self) -> str: ...

    def open_run(
        self,
        *,
        name: str,
        role: str,
        study: str,
        parent: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> str:
        """Make a run, or go on with the run `run_id`; it is RUNNING then. Returns its id.

        Params are written once: on going on, equal ones are left and new ones added; a param
        that has another value is refused. Values over 6000 characters are shortened, with a note.
        """

    def find_run(self, study: str, key: str) -> str | None:
        """The run of a study that has this `key` among its tags, if MLflow has one."""

    def running(self, study: str) -> Mapping[str, str]:
        """Run id -> `key` of the runs of a study that are RUNNING."""

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Write points, the same point once. NaN is kept.

        An infinite value would stretch a chart to 1e308: it is kept as NaN, and the run's tag
        `infinite.KEY` names the step.
        """

    def steps(self, run_id: str, key: str) -> set[int]:
        """The steps at which a curve has a point already."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None: ...

    def log_text(self, run_id: str, text: str, path: str) -> None: ...

    def log_json(self, run_id: str, content: object, path: str) -> None: ...

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None: ...

    def log_files(self, run_id: str, files: Sequence[Path], folder: str) -> None:
        """Keep files as they are, under their names in a folder of the run's artifacts."""

    def read_text(self, run_id: str, path: str) -> str:
        """A text that was written into a run."""

    def read_model(
        self, run_id: str, name: str, uri: str = ""
    ) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        """(weights and buffers by name, tags) of the run's model of this name: the latest, or that
        of a URI, as `log_model` gives it."""

    def registered(self, name: str, which: str) -> Registered:
        """The version of a registered model: which is @ALIAS or /VERSION."""

    def log_image(self, run_id: str, picture: Picture, *, key: str, step: int) -> None:
        """Add a picture to the image grid, which steps through them; the first of a step stays."""

    def log_table(
        self, run_id: str, columns: Mapping[str, Sequence[object]], path: str
    ) -> None: ...

    def log_data(self, run_id: str, *, name: str, digest: str, context: str) -> None:
        """Say which data the run used; `context` is training, validation or test."""

    def log_model(
        self,
        run_id: str,
        module: nn.Module,
        example: Tensor,
        *,
        name: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Keep a model that loads without our code; the module itself is left as it is.

        A run has one model of a name and its tags: one that it has already is left as it is.

        Args:
            example: (N, ...) input; only its shape past N and its type matter.
            metrics: summaries to show beside the model; they join the run's.
            metadata: what the model says of itself, under `harness` in its MLmodel file.

        Returns: the model's URI, `models:/...`.
        """

    def register(
        self,
        uri: str,
        name: str,
        *,
        alias: str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Make the model a version of the registered model `name`; point `alias` at it, if given.

        Returns: the version; the one that it has already, if it was registered before.
        """

    def aliased(self, name: str, alias: str) -> Version | None:
        """The version of the registered model that the alias points at, if there is one."""

    def describe_model(
        self, name: str, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> None:
        """Say what the list of registered models and the page of this one show."""

    def save_view(self, key: str, value: str) -> str:
        """Save a view of the experiment (see comparison_view). Returns its path in the pages."""

    def end_run(self, run_id: str, status: Ending) -> None: ...

    def status(self, run_id: str) -> str:
        """RUNNING, SCHEDULED, FINISHED, FAILED, KILLED, or MISSING: deleted or never there."""


@dataclass(frozen=True)
class MlflowTracker:
    """A tracker that writes into one experiment of an MLflow store; made by `open`.

    Only MLflow's client is used, never its notion of an active run: runs of several processes
    and the run that `mlflow run` made cannot be mixed up.
    """

    uri: str
    experiment: str
    experiment_id: str
    client: MlflowClient
    _pictures: dict[str, set[str]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, uri: str | None, experiment: str, home: Path) -> MlflowTracker:
        """Open the store, make the experiment if it is new.

        Args:
            uri: the store; by default MLFLOW_TRACKING_URI, else MLflow's own default, the file
                mlflow.db in the current folder.
            home: where artifacts lie if the store is a database server; beside an SQLite file
                they lie in mlruns, and an MLflow server keeps its own.
        """
        where = resolve_uri(uri)
        place = _artifact_place(where, home)
        with _first_contact(where) as client:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                location = None if place is None else str(place / _folder_name(experiment))
                experiment_id = client.create_experiment(experiment, location)
            else:
                _check_experiment(found, where)
                experiment_id = found.experiment_id
        return cls(where, experiment, experiment_id, client)

    @classmethod
    def of_run(cls, uri: str | None, run_id: str) -> MlflowTracker | None:
        """The tracker of the experiment that a run is in, or None where the store has no such run.

        Nothing is made, neither store nor experiment.
        """
        where = resolve_uri(uri)
        if not _is_there(where):
            return None
        with _first_contact(where) as client:
            run = _run_of(client, run_id)
            if run is None:
                return None
            experiment = client.get_experiment(run.info.experiment_id)
        return cls(where, experiment.name, experiment.experiment_id, client)

    @property
    def server(self) -> str | None:
        """The address whose pages show this store, if a server keeps it."""
        return self.uri.rstrip("/") if _is_http(self.uri) else None

    def open_run(
        self,
        *,
        name: str,
        role: str,
        study: str,
        parent: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> str:
        marks = {
            "role": role,
            "study": study,
            **({"mlflow.parentRunId": parent} if parent else {}),
            **(tags or {}),
        }
        values = {key: shortened(str(value), _PARAM) for key, value in (params or {}).items()}
        with _told(f"open the run {name}"):
            if run_id is None:
                origin = {"mlflow.user": _user(), "mlflow.source.name": "harness"}
                run = self.client.create_run(
                    self.experiment_id, tags=_short_tags(origin | marks), run_name=name
                )
                run_id = run.info.run_id
            else:
                values = _new_params(run_id, self.client.get_run(run_id).data.params, values)
                self.client.update_run(run_id, status="RUNNING", name=name)
                self.set_tags(run_id, marks)
            self._log_params(run_id, values)
        return run_id

    def find_run(self, study: str, key: str) -> str | None:
        with _told(f"look for the run {key}"):
            found = self.client.search_runs(
                [self.experiment_id], f"tags.study = '{study}' and tags.key = '{key}'"
            )
        return found[0].info.run_id if found else None

    def running(self, study: str) -> Mapping[str, str]:
        wanted = f"tags.study = '{study}' and attributes.status = 'RUNNING'"
        with _told("look for runs that nobody ended"):
            found = self.client.search_runs([self.experiment_id], wanted)
        return {run.info.run_id: run.data.tags.get("key", "") for run in found}

    def _log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for part in _parts([Param(key, value) for key, value in values.items()], 100):
            self.client.log_batch(run_id, params=part)

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(point.key, finite_or_nan(point.value), point.timestamp_ms, point.step)
            for point in points
        ]
        with _told(f"write {len(metrics)} points"):
            for part in _parts(metrics, 1000):
                self.client.log_batch(run_id, metrics=part)
        if marks := infinite_marks(points):
            self.set_tags(run_id, marks)

    def steps(self, run_id: str, key: str) -> set[int]:
        with _told(f"read the curve {key}"):
            return {point.step for point in self.client.get_metric_history(run_id, key)}

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with _told("write tags"):
            marks = [RunTag(key, value) for key, value in _short_tags(tags).items()]
            for part in _parts(marks, 100):
                self.client.log_batch(run_id, tags=part)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        with _told(f"write {path}"):
            self.client.log_text(run_id, text, path)

    def log_json(self, run_id: str, content: object, path: str) -> None:
        self.log_text(run_id, json.dumps(content, indent=2) + "\n", path)

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        with _told(f"write {path}"):
            self.client.log_figure(run_id, figure, path)

    def log_files(self, run_id: str, files: Sequence[Path], folder: str) -> None:
        with _told(f"write {len(files)} files into {folder}"):
            for file in files:
                self.client.log_artifact(run_id, str(file), folder)

    def read_text(self, run_id: str, path: str) -> str:
        with _told(f"read {path} of the run {run_id}"), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text()

    def read_model(
        self, run_id: str, name: str, uri: str = ""
    ) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        from mlflow.artifacts import download_artifacts

        with _told(f"read the model {name} of the run {run_id}"):
            found = self.client.search_logged_models(
                [self.client.get_run(run_id).info.experiment_id],
                filter_string=f"name = '{name}' AND source_run_id = '{run_id}'",
            )
            whole = [
                model
                for model in found
                if model.status == "READY" and uri in ("", f"models:/{model.model_id}")
            ]
            if not whole:
                raise TrackingError(f"the run {run_id} has no model '{name}'.")
            model = max(whole, key=lambda kept: kept.creation_timestamp)
            with tempfile.TemporaryDirectory() as folder:
                place = download_artifacts(
                    model.artifact_location, dst_path=folder, tracking_uri=self.uri
                )
                (file,) = Path(place).rglob("*.pt2")
                program = load_pt2(file)
        return {**program.state_dict}, dict(model.tags)

    def registered(self, name: str, which: str) -> Registered:
        with _told(f"find the registered model {name}{which}"):
            version = (
                self.client.get_model_version_by_alias(name, which[1:])
                if which.startswith("@")
                else self.client.get_model_version(name, which[1:])
            )
            # Not its model_id: stores without a server leave that out.
            if not version.run_id:
                raise TrackingError(f"{name}/{version.version} is no model of harness: no run.")
            experiment = self.client.get_run(version.run_id).info.experiment_id
            made = self.client.search_logged_models(
                [experiment], filter_string=f"source_run_id = '{version.run_id}'"
            )
            places = {
                place: m for m in made for place in (m.artifact_location, f"models:/{m.model_id}")
            }
            if version.source not in places:
                raise TrackingError(
                    f"{name}/{version.version} is no model of harness: no run of this store has "
                    f"{version.source}."
                )
            model_id = places[version.source].model_id
        return Registered(name, str(version.version), version.run_id, f"models:/{model_id}")

    def log_image(self, run_id: str, picture: Picture, *, key: str, step: int) -> None:
        with _told(f"write the picture {key} of step {step}"):
            # MLflow names each file by a fresh number: written again it would stand there twice.
            name = f"images/{key.replace('/', '~')}+step+{step}"
            if name not in self._known_pictures(run_id):
                self.client.log_image(run_id, _as_image(picture), key=key, step=step)
                self._pictures[run_id].add(name)

    def _known_pictures(self, run_id: str) -> set[str]:
        if run_id not in self._pictures:
            files = self.client.list_artifacts(run_id, "images")
            self._pictures[run_id] = {file.path.split("+timestamp")[0] for file in files}
        return self._pictures[run_id]

    def log_table(self, run_id: str, columns: Mapping[str, Sequence[object]], path: str) -> None:
        # Not the client's log_table: that one appends to the table of a run that is gone on with.
        self.log_text(run_id, table_text(columns), path)
        with _told(f"write {path}"):
            tag = self.client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]")
            listed = json.loads(tag)
            entry = {"path": path, "type": "table"}
            if entry not in listed:
                self.set_tags(run_id, {"mlflow.loggedArtifacts": json.dumps([*listed, entry])})

    def log_data(self, run_id: str, *, name: str, digest: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"tags": {"mlflow.source.name": name}})
        # 36 characters are what MLflow's column holds.
        dataset = Dataset(name, digest[:36], "code", source)
        with _told(f"write the data {name}"):
            tag = InputTag("mlflow.data.context", context)
            self.client.log_inputs(run_id, [DatasetInput(dataset, [tag])])

    def log_model(
        self,
        run_id: str,
        module: nn.Module,
        example: Tensor,
        *,
        name: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        # What mlflow.pytorch.log_model does, without its active run, which would reopen this one.
        with _told(f"keep the model {name}"), tempfile.TemporaryDirectory() as folder:
            before = self._model_of(run_id, name, _short_tags(tags or {}))
            if before is not None:
                return f"models:/{before.model_id}"
            params = self.client.get_run(run_id).data.params
            kept = self.client.create_logged_model(
                self.experiment_id, name, run_id, _short_tags(tags or {}), params
            )
            finished = False
            try:
                description = Model(
                    artifact_path=kept.artifact_location,
                    run_id=run_id,
                    model_uuid=kept.model_id,
                    model_id=kept.model_id,
                    metadata={"harness": dict(metadata or {})},
                )
                _save_pt2(module, example, Path(folder) / "model", description)
                self.client.log_model_artifacts(kept.model_id, str(Path(folder) / "model"))
                self.client.log_outputs(run_id, [LoggedModelOutput(kept.model_id, step=0)])
                self._log_model_metrics(run_id, kept.model_id, metrics or {})
                finished = True
            finally:
                self.client.finalize_logged_model(kept.model_id, "READY" if finished else "FAILED")
        return f"models:/{kept.model_id}"

    def _model_of(self, run_id: str, name: str, tags: Mapping[str, str]) -> LoggedModel | None:
        """The whole model that the run has under this name and with these tags."""
        found = self.client.search_logged_models(
            [self.experiment_id], filter_string=f"name = '{name}' AND source_run_id = '{run_id}'"
        )
        return next(
            (m for m in found if m.status == "READY" and tags.items() <= m.tags.items()), None
        )

    def _log_model_metrics(self, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        written: list[Metric] = []
        for key, value in metrics.items():
            value = finite_or_nan(value)
            # The run's own point, if it has it, so that the run does not show the value twice.
            times = [
                point.timestamp
                for point in self.client.get_metric_history(run_id, key)
                if point.value == value and point.step == 0
            ]
            time_ms = times[0] if times else now_ms
            written.append(Metric(key, value, time_ms, 0, model_id=model_id, run_id=run_id))
        if written:
            self.client.log_batch(run_id, metrics=written)

    def register(
        self,
        uri: str,
        name: str,
        *,
        alias: str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        from mlflow.exceptions import MlflowException

        with _told(f"register the model {name}"):
            model = self.client.get_logged_model(uri.removeprefix("models:/"))
            # Given a models:/ source, a store without a server looks for it in the process's
            # default store, which need not be this one.
            source = uri if self.server else model.artifact_location
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            versions = self.client.search_model_versions(f"name = '{name}'")
            version = next((found.version for found in versions if found.source == source), None)
            if version is None:
                version = self.client.create_model_version(
                    name,
                    source,
                    model.source_run_id,
                    await_creation_for=0,
                    model_id=model.model_id,
                ).version
            self._list_version(model, {"name": name, "version": version})
            if description:
                self.client.update_model_version(name, version, description)
            for key, value in (tags or {}).items():
                self.client.set_model_version_tag(name, version, key, value)
            if alias is not None:
                self.client.set_registered_model_alias(name, alias, version)
        return str(version)

    def aliased(self, name: str, alias: str) -> Version | None:
        from mlflow.exceptions import MlflowException

        with _told(f"read the alias {alias} of the model {name}"):
            try:
                found = self.client.get_model_version_by_alias(name, alias)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        return Version(str(found.version), found.description or "", dict(found.tags))

    def describe_model(
        self, name: str, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> None:
        with _told(f"describe the model {name}"):
            self.client.update_registered_model(name, description)
            for key, value in _short_tags(tags or {}).items():
                self.client.set_registered_model_tag(name, key, value)

    def _list_version(self, model: LoggedModel, entry: Mapping[str, object]) -> None:
        # What the pages of a model lead to; MLflow's client leaves it to the caller.
        listed = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
        if entry not in listed:
            tag = json.dumps([*listed, entry])
            self.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": tag})

    def save_view(self, key: str, value: str) -> str:
        with _told("save the view"):
            self.client.set_experiment_tag(
                self.experiment_id, f"mlflow.sharedViewState.{key}", value
            )
        return view_path(self.experiment_id, key)

    def end_run(self, run_id: str, status: Ending) -> None:
        with _told("end the run"):
            self.client.set_terminated(run_id, status)

    def status(self, run_id: str) -> str:
        with _told("read a run"):
            run = _run_of(self.client, run_id)
        return MISSING if run is None else str(run.info.status)


@dataclass
class MemoryRun:
    """All that was written into one run; the fields are plain and may be read by a test."""

    name: str
    role: str
    study: str
    parent: str | None
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: dict[Point, None] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    images: dict[tuple[str, int], Picture] = field(default_factory=dict)
    data: dict[tuple[str, str], str] = field(default_factory=dict)

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in the order of its steps."""
        return sorted((point.step, point.value) for point in self.points if point.key == key)


@dataclass
class MemoryModel:
    """A model that was kept: a copy of the module on the CPU, in eval mode."""

    run_id: str
    name: str
    module: nn.Module
    metrics: dict[str, float]
    tags: dict[str, str]
    metadata: dict[str, object]


@dataclass
class MemoryTracker:
    """A tracker that keeps everything in dicts: the double for tests, ours and a user's."""

    experiment_id: str = "memory"
    runs: dict[str, MemoryRun] = field(default_factory=dict)
    models: dict[str, MemoryModel] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    described: dict[tuple[str, str], Version] = field(default_factory=dict)
    models_described: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)

    def open_run(
        self,
        *,
        name: str,
        role: str,
        study: str,
        parent: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> str:
        values = {key: shortened(str(value), _PARAM) for key, value in (params or {}).items()}
        if run_id is None:
            run_id = f"run-{len(self.runs) + 1}"
            self.runs[run_id] = MemoryRun(name, role, study, parent)
        run = self._run(run_id)
        run.params.update(_new_params(run_id, run.params, values))
        run.name, run.role, run.study, run.status = name, role, study, "RUNNING"
        run.parent = parent or run.parent
        run.tags.update({"role": role, "study": study, **(tags or {})})
        return run_id

    def find_run(self, study: str, key: str) -> str | None:
        return next(
            (i for i, r in self.runs.items() if (r.study, r.tags.get("key")) == (study, key)), None
        )

    def running(self, study: str) -> Mapping[str, str]:
        return {
            i: r.tags.get("key", "")
            for i, r in self.runs.items()
            if (r.study, r.status) == (study, "RUNNING")
        }

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        # Through one dict: a point written again is the same key. One NaN object is itself.
        for point in points:
            value = finite_or_nan(point.value)
            kept = Point(
                point.key, math.nan if math.isnan(value) else value, point.step, point.timestamp_ms
            )
            self._run(run_id).points[kept] = None
        self._run(run_id).tags.update(infinite_marks(points))

    def steps(self, run_id: str, key: str) -> set[int]:
        return {step for step, _ in self._run(run_id).curve(key)}

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        run = self._run(run_id)
        run.tags.update(tags)
        run.name = tags.get("mlflow.runName", run.name)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self._run(run_id).files[path] = text

    def log_json(self, run_id: str, content: object, path: str) -> None:
        self.log_text(run_id, json.dumps(content, indent=2) + "\n", path)

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        self._run(run_id).figures[path] = figure

    def log_files(self, run_id: str, files: Sequence[Path], folder: str) -> None:
        kept = self._run(run_id).artifacts
        kept.update({f"{folder}/{file.name}": file.read_bytes() for file in files})

    def read_text(self, run_id: str, path: str) -> str:
        files = self._run(run_id).files
        if path not in files:
            raise TrackingError(f"MLflow could not read {path} of the run {run_id}.")
        return files[path]

    def read_model(
        self, run_id: str, name: str, uri: str = ""
    ) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        self._run(run_id)
        found = [
            m
            for own, m in self.models.items()
            if (m.run_id, m.name) == (run_id, name) and uri in ("", own)
        ]
        if not found:
            raise TrackingError(f"the run {run_id} has no model '{name}'.")
        return found[-1].module.state_dict(), found[-1].tags

    def registered(self, name: str, which: str) -> Registered:
        number = self.aliases.get((name, which[1:]), "") if which[0] == "@" else which[1:]
        uris = self.versions.get(name, [])
        if not number or not 0 < int(number) <= len(uris):
            raise TrackingError(f"MLflow could not find the registered model {name}{which}.")
        uri = uris[int(number) - 1]
        return Registered(name, number, self.models[uri].run_id, uri)

    def log_image(self, run_id: str, picture: Picture, *, key: str, step: int) -> None:
        self._run(run_id).images.setdefault((key, step), picture)

    def log_table(self, run_id: str, columns: Mapping[str, Sequence[object]], path: str) -> None:
        self.log_text(run_id, table_text(columns), path)

    def log_data(self, run_id: str, *, name: str, digest: str, context: str) -> None:
        self._run(run_id).data[name, context] = digest

    def log_model(
        self,
        run_id: str,
        module: nn.Module,
        example: Tensor,
        *,
        name: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        self._run(run_id)
        for uri, model in self.models.items():
            if (model.run_id, model.name, model.tags) == (run_id, name, dict(tags or {})):
                return uri
        kept = copy.deepcopy(module).cpu().eval()
        uri = f"models:/m-{len(self.models) + 1}"
        self.models[uri] = MemoryModel(
            run_id, name, kept, dict(metrics or {}), dict(tags or {}), dict(metadata or {})
        )
        return uri

    def register(
        self,
        uri: str,
        name: str,
        *,
        alias: str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        if uri not in self.models:
            raise TrackingError(f"MLflow could not register the model {name}: no model {uri}.")
        versions = self.versions.setdefault(name, [])
        if uri not in versions:
            versions.append(uri)
        version = str(versions.index(uri) + 1)
        before = self.described.get((name, version), Version(version, "", {}))
        self.described[name, version] = Version(
            version, description or before.description, {**before.tags, **(tags or {})}
        )
        if alias is not None:
            self.aliases[name, alias] = version
        return version

    def aliased(self, name: str, alias: str) -> Version | None:
        return self.described.get((name, self.aliases.get((name, alias), "")))

    def describe_model(
        self, name: str, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> None:
        if name not in self.versions:
            raise TrackingError(f"MLflow could not describe the model {name}: there is none.")
        self.models_described[name] = (description, dict(tags or {}))

    def save_view(self, key: str, value: str) -> str:
        self.views[key] = value
        return view_path(self.experiment_id, key)

    def end_run(self, run_id: str, status: Ending) -> None:
        self._run(run_id).status = status

    def status(self, run_id: str) -> str:
        return self.runs[run_id].status if run_id in self.runs else MISSING

    def _run(self, run_id: str) -> MemoryRun:
        if run_id not in self.runs:
            raise TrackingError(f"MLflow could not find the run {run_id}.")
        return self.runs[run_id]


@dataclass(frozen=True)
class Written:
    """What stands in a run that somebody wrote earlier; metrics: the latest value of each."""

    run_id: str
    name: str
    role: str
    study: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def written(uri: str | None, wanted: Sequence[str]) -> list[Written]:
    """The runs of these ids (or their beginnings), or STUDY/NAME as in `vgg16_budget/trial 3`.

    A study's name stands for its latest. Nothing is made, the store neither. Raises TrackingError
    with all that are none, and the nearest names, or several.
    """
    where = resolve_uri(uri)
    if not _is_there(where):
        raise TrackingError(f"there is no store {_shown(where)}. Go to the folder in which the "
                            "runs were made, or set MLFLOW_TRACKING_URI.")
    with _first_contact(where) as client:
        experiments = [found.experiment_id for found in client.search_experiments()]
        runs: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = client.search_runs(experiments, max_results=1000, page_token=token)
            runs += page
            token = page.token or ""
    every = [Written(run.info.run_id, str(run.info.run_name), run.data.tags.get("role", ""),
                     run.data.tags.get("study", ""), str(run.info.status), run.data.params,
                     run.data.metrics) for run in runs]  # the latest first
    found = {text: _named(text, every) for text in wanted}
    wrong = [f"{text!r} is {f'the beginning of {len(fit)} runs' if fit else 'no run'}."
             f"{'' if fit else nearest(text, _names_of(every))}"
             for text, fit in found.items() if len(fit) != 1]
    if wrong:
        raise TrackingError("\n".join([*wrong, "Name runs by their id, or as 'STUDY/trial 3'. "
                                       f"(looked in {_shown(where)}; another: "
                                       "MLFLOW_TRACKING_URI)"]))
    return [fit[0] for fit in found.values()]


def _named(text: str, every: Sequence[Written]) -> list[Written]:
    study, _, name = text.rpartition("/")
    if study:
        return [run for run in every if _is_called(run, name)
                and study in (run.study, run.study.rpartition("-")[0])][:1]
    return [run for run in every if text and run.run_id.startswith(text)]


def _names_of(every: Sequence[Written]) -> list[str]:
    """As `_named` reads them: by the study's whole name, and by the name of its family."""
    return list(dict.fromkeys(f"{study}/{run.name}" for run in every if run.study
                              for study in (run.study.rpartition("-")[0], run.study) if study))


def _is_called(run: Written, name: str) -> bool:
    """The champion may be named with and without its title."""
    return run.name in (name, f"{name}, champion")


@cache
def launcher() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it did.

    The first call takes it out of the environment: a program of ours that is started later, or
    a user's own module that calls MLflow, would write into that run.
    """
    return os.environ.pop("MLFLOW_RUN_ID", None) or None


def end_orphaned_launcher(run_id: str) -> None:
    """End the run of an `mlflow run` that was killed: what it started does it, when that leaves."""
    with suppress(TrackingError), _told("end the run of mlflow run"):
        from mlflow import MlflowClient

        client = MlflowClient(resolve_uri(None))
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


def link_launcher(
    tracker: Tracker, launcher_run_id: str, study_run_id: str, *, view: str | None = None
) -> None:
    """Lead a person from the run of `mlflow run` to the study's run and to its saved view.

    Args:
        view: the path that `save_view` returned. A launcher of another store is left alone.
    """
    if tracker.status(launcher_run_id) == MISSING:
        return
    path = run_path(tracker.experiment_id, study_run_id)
    note = f"This run only started the study. What it found is in [the study's run]({path})"
    note += f"; [the trials side by side]({view})." if view else "."
    tracker.set_tags(
        launcher_run_id,
        {"role": "launcher", "study_run": study_run_id, "mlflow.note.content": note},
    )


def run_path(experiment_id: str, run_id: str) -> str:
    """Where a run stands in MLflow's pages, past the server's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_WORKFLOW}"


def view_path(experiment_id: str, key: str) -> str:
    """Where a saved view stands in MLflow's pages, past the server's address."""
    return (
        f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}"
        f"&compareRunsMode=CHART&{_WORKFLOW}"
    )


# Without it a browser that is new to MLflow opens the pages for language models.
_WORKFLOW = "workflowType=machine_learning"


def view_link(port: int, experiment_id: str, key: str) -> str:
    """The link to a saved view on this machine's server."""
    return f"http://127.0.0.1:{port}/{view_path(experiment_id, key)}"


@dataclass
class Server:
    """MLflow's pages on this machine; a context that ends them, and all they started."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        """Return when a person presses Ctrl-C or ends this process; the server is ended then.

        Raises: TrackingError if the server ended by itself.
        """

        def asked_to_end(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        # A signal that is ignored stays so: nohup, or a shell's background.
        listened = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, asked_to_end) for number in listened}
        try:
            code = self.process.wait()
            raise TrackingError(f"MLflow's server ended ({code}). {_last_words(self.log)}")
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """End the server and its workers; they are one process group of their own."""
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience_s)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def serve(uri: str | None, home: Path, port: int, *, patience_s: float = 90.0) -> Server:
    """Start MLflow's pages on 127.0.0.1 and return when they answer: one worker, no job runners.

    Raises: TrackingError if the port is taken, the store cannot be opened, the store is a server
        that has pages of its own, or nothing answers in `patience_s` seconds.
    """
    where = resolve_uri(uri)
    if _is_http(where):
        raise TrackingError(f"{_shown(where)} is an MLflow server with pages of its own: open it.")
    _check_port_is_free(port)
    with _first_contact(where):
        pass
    home.mkdir(parents=True, exist_ok=True)
    log = home / "mlflow_server.log"
    # The store's address may hold a password: in the environment, not in the list of processes.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": where,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(_artifact_place(where, home)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    inherited = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=inherited | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_it_answers(server, patience_s)
    except BaseException:
        server.stop()
        raise
    return server


def _check_port_is_free(port: int) -> None:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise TrackingError(
                f"the pages cannot use port {port} ({_first_line(error)}). If they run already, "
                f"open http://127.0.0.1:{port}; otherwise choose another: --port {port + 1}."
            ) from error


def _wait_until_it_answers(server: Server, patience_s: float) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise TrackingError(f"MLflow's server did not start. {_last_words(server.log)}")
        try:
            with direct.open(f"{server.url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(
        f"MLflow's server does not answer after {patience_s:.0f} s. {_last_words(server.log)}"
    )


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"Its last words: {lines[-1] if lines else 'none'} (all of them: {log})."


def resolve_uri(uri: str | None) -> str:
    """The store's address: as given, else MLFLOW_TRACKING_URI, else MLflow's default; absolute."""
    _import_mlflow()
    import mlflow

    where = uri or mlflow.get_tracking_uri()
    path = _sqlite_path(where)
    if path is None:
        return where
    _, question, options = where.partition("?")
    return f"sqlite:///{path}{question}{options}"


def _import_mlflow() -> None:
    """Import MLflow with all that it would say to a person's terminal off."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401
    # What matters is raised, and told once as a TrackingError.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.CRITICAL)


_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
}


@contextmanager
def _first_contact(uri: str) -> Iterator[MlflowClient]:
    """A client, while no other process of this user meets the same store for the first time.

    The first client of a fresh database makes its tables; two at once leave it broken for ever.
    MLflow asks a store that does not answer for minutes: here it is asked once or twice.
    """
    with _told(f"open the store {_shown(uri)}"), _alone_with(uri):
        path = _sqlite_path(uri)
        if path is not None:
            _check_sqlite(path)
        elif _is_database(uri):
            _check_database(uri)
        with _environment(_IMPATIENT):
            from mlflow import MlflowClient

            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            yield client


_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}


@contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    import fcntl

    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    # One lock file a user: another user's file in the shared folder could not be opened.
    path = Path(tempfile.gettempdir()) / f"harness-mlflow-{os.getuid()}-{digest}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _check_sqlite(path: Path) -> None:
    """Fail at once where MLflow would try for two minutes; let readers and writers meet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} may not be written to")
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        if _is_on_this_machine(path):
            # A third of the time per write, and the pages can be read meanwhile.
            connection.execute("PRAGMA journal_mode=WAL")


def _is_on_this_machine(path: Path) -> bool:
    """Whether the file lies on a local disk: WAL needs memory that all its processes share."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    folders = {line.split()[1].replace("\\040", " "): line.split()[2] for line in mounts}
    mounted = max((f for f in folders if path.is_relative_to(f)), key=len, default="/")
    return folders.get(mounted) in _LOCAL_DISKS


_LOCAL_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}


def _check_database(uri: str) -> None:
    """Knock at a database server's door, then log in once."""
    import sqlalchemy

    address = sqlalchemy.make_url(uri)
    ports = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
    port = address.port or ports.get(address.get_backend_name())
    if address.host and port:
        socket.create_connection((address.host, port), timeout=5).close()
    engine = sqlalchemy.create_engine(address)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _is_there(uri: str) -> bool:
    """False for a file that nobody has made yet: a client would make it."""
    path = _sqlite_path(uri)
    return path is None or path.exists()


def _run_of(client: MlflowClient, run_id: str) -> Run | None:
    """None for a run that was deleted, or never was."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return None if run.info.lifecycle_stage == "deleted" else run


def _sqlite_path(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if not name or name == ":memory:":
        return None
    # MLflow writes its default as an address, a space as %20, but opens it as it is written.
    plain = Path(unquote(name)).absolute()
    return plain if plain.parent.is_dir() else Path(name).absolute()


def _is_http(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql")


def _check_experiment(found: Experiment, uri: str) -> None:
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment '{found.name}' was deleted in MLflow. Restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or remove it for "
            f"good: mlflow gc --experiment-ids {found.experiment_id} "
            f"(both with MLFLOW_TRACKING_URI={_shown(uri)})."
        )
    if found.artifact_location.startswith("mlflow-artifacts:") and not _is_http(uri):
        raise TrackingError(
            f"the experiment '{found.name}' was made through an MLflow server, which alone can "
            "write its files. Set MLFLOW_TRACKING_URI to that server's address (http://...), or "
            f"rename it: mlflow experiments rename --experiment-id {found.experiment_id} "
            f"--new-name NAME (with MLFLOW_TRACKING_URI={_shown(uri)})."
        )


def _artifact_place(uri: str, home: Path) -> Path | None:
    """The folder of the artifacts; none where a server keeps them."""
    if path := _sqlite_path(uri):
        return path.parent / "mlruns"
    return home.absolute() / "mlruns" if _is_database(uri) else None


def _folder_name(experiment: str) -> str:
    if re.fullmatch(r"[A-Za-z][\w.-]*", experiment, re.ASCII):
        return experiment
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", experiment)
    return f"x-{plain}-{hashlib.sha256(experiment.encode()).hexdigest()[:6]}"


def _shown(uri: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


def finite_or_nan(value: float) -> float:
    """The value, or NaN in place of an infinite one."""
    return math.nan if math.isinf(value) else float(value)


def infinite_marks(points: Sequence[Point]) -> dict[str, str]:
    """Tags that say where a value was infinite."""
    return {f"infinite.{p.key}": f"step {p.step}" for p in points if math.isinf(p.value)}


def shortened(value: str, limit: int) -> str:
    """The value, or its beginning and a note if it has more characters than MLflow keeps."""
    if len(value) <= limit:
        return value
    note = f" ... (shortened: {len(value)} characters)"
    return value[: limit - len(note)] + note


def table_text(columns: Mapping[str, Sequence[object]]) -> str:
    """The columns in the form that MLflow's pages show as a table; NaN is an empty cell."""
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TrackingError(f"the columns of a table must be equally long, not {lengths}.")
    rows = [
        [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row]
        for row in zip(*columns.values(), strict=True)
    ]
    return json.dumps({"columns": list(columns), "data": rows})


# Characters that MLflow keeps of a value.
_PARAM, _TAG = 6000, 8000


def _short_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: shortened(str(value), _TAG) for key, value in tags.items()}


def _new_params(
    run_id: str, written: Mapping[str, str], values: Mapping[str, str]
) -> dict[str, str]:
    """The values that a run does not have yet. MLflow never lets a param be changed."""
    changed = [
        f"{key} is {written[key]!r}, not {value!r}"
        for key, value in values.items()
        if written.get(key, value) != value
    ]
    if changed:
        raise TrackingError(
            f"MLflow could not go on with the run {run_id}: its settings are others "
            f"({'; '.join(changed)}), and a param is written once. Start a new run."
        )
    return {key: value for key, value in values.items() if key not in written}


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"


def _as_image(picture: Picture) -> Image | numpy.ndarray:
    if not hasattr(picture, "savefig"):
        return picture
    from PIL import Image

    drawn = BytesIO()
    picture.savefig(drawn, format="png")
    return Image.open(drawn)


def _save_pt2(module: nn.Module, example: Tensor, folder: Path, description: Model) -> None:
    """Write the model as MLflow's folder: a graph that loads with torch alone, any batch size."""
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Weights of a pt2 cannot be moved when it is loaded, so they are saved on the CPU.
    still = copy.deepcopy(module).cpu().eval().to(memory_format=torch.contiguous_format)
    # One example would fix the batch size at 1. What it holds goes into the files, and nobody's
    # pictures are to leave with them.
    batch = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
    if batch.is_floating_point():
        batch.normal_(generator=torch.Generator().manual_seed(0))
    _check_room(folder.parent, sum(tensor.nbytes for tensor in still.state_dict().values()))
    with torch.no_grad():
        answer = still(batch)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(batch.numpy().dtype, (-1, *batch.shape[1:]))]),
            outputs=Schema([TensorSpec(answer.numpy().dtype, (-1, *answer.shape[1:]))]),
        )
        mlflow.pytorch.save_model(
            still,
            folder,
            mlflow_model=description,
            signature=signature,
            input_example=batch.numpy(),
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
            ],
            serialization_format="pt2",
        )


_ROOM = 16 * 2**20  # bytes of a graph, an example and MLflow's own files, and some more


def _check_room(folder: Path, size: int) -> None:
    """Raises OSError: where the disk is full torch.export.save would abort the whole process."""
    if shutil.disk_usage(folder).free < size + _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def save_model(
    module: nn.Module, example: Tensor, folder: Path, metadata: Mapping[str, object]
) -> None:
    """Write a module as a folder that `mlflow.pyfunc.load_model` opens without our code.

    example, metadata: as `log_model` takes them. Raises TrackingError.
    """
    with _told(f"write the model {folder.name}"):
        from mlflow.models import Model

        _save_pt2(module, example, folder, Model(metadata={"harness": dict(metadata)}))


@contextmanager
def _told(attempt: str) -> Iterator[None]:
    """Turn whatever MLflow, its store or torch.export raises into a TrackingError with a remedy."""
    _import_mlflow()
    try:
        # Warnings of MLflow's own making; nothing that a person could mend.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HarnessError:
        raise
    except Exception as error:
        raise _failure(attempt, error) from error


def _failure(attempt: str, error: Exception) -> TrackingError:
    said = f"{type(error).__name__}: {error}"
    for words, cause, remedy in _KNOWN:
        if words in said:
            return TrackingError(
                f"MLflow could not {attempt}: {cause or _first_line(error)}. {remedy}."
            )
    return TrackingError(f"MLflow could not {attempt}: {_first_line(error).rstrip('.')}.")


def _first_line(error: Exception) -> str:
    # SQLAlchemy puts the driver's class before the driver's words, and the query after them.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\([\w.]+\) ", "", lines[0])[:300]


_ELSEWHERE = "name another store in MLFLOW_TRACKING_URI"
_START = "Start the server, or mend MLFLOW_TRACKING_URI"

# What MLflow and its stores say, the cause in our words (empty: theirs are good), what helps.
_KNOWN = (
    (
        "_alembic_tmp_",
        "two programs made it at the same moment and left it half made",
        "Move its file away, or empty the database, and run again",
    ),
    (
        "out-of-date database schema",
        "another version of MLflow made it",
        "Make a copy of it, then run: mlflow db upgrade ADDRESS",
    ),
    (
        "Can't locate revision",
        "a newer MLflow made it",
        "Install that: pip install --upgrade mlflow",
    ),
    ("not a database", "", f"Move the file away, or {_ELSEWHERE}"),
    ("malformed", "", "The file is damaged. Put back a copy, or move it away and run again"),
    ("is locked", "", "Another program has held it for 20 s. End that one, then run again"),
    ("disk is full", "the disk is full", "Make room and run again: it goes on where it stopped"),
    ("No space left", "the disk is full", "Make room and run again: it goes on where it stopped"),
    ("readonly database", "", f"Make it writable, or {_ELSEWHERE}"),
    ("unable to open database", "", f"Make folder and file readable and writable, or {_ELSEWHERE}"),
    ("PermissionError", "", f"Make it writable, or {_ELSEWHERE}"),
    ("NotADirectoryError", "", f"If it is the store, {_ELSEWHERE}"),
    ("FileExistsError", "", f"If it is the store, {_ELSEWHERE}"),
    (
        "maintenance mode",
        "MLflow keeps no store in a folder any more",
        "Name a file: MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
    ),
    ("No module named 'psycopg2'", "", "Install its driver: pip install psycopg2-binary"),
    (
        "unsupported URI",
        "no such kind of store",
        "Name it as sqlite:///FILE, postgresql://... or http://... in MLFLOW_TRACKING_URI",
    ),
    ("ConnectionRefused", "nothing listens there", _START),
    ("Connection refused", "nothing listens there", _START),
    ("NameResolutionError", "there is no host of that name", _START),
    ("gaierror", "there is no host of that name", _START),
    ("ReadTimeoutError", "the server does not answer", _START),
    ("timed out", "the server does not answer", _START),
    ("Max retries exceeded", "the server does not answer", _START),
    ("valid JSON format", "a server answers there, but it is not MLflow's", _START),
    ("error code 404", "a server answers there, but it is not MLflow's", _START),
    (
        "error code 401",
        "the server wants to know who asks",
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    ),
    ("authentication failed", "", "Mend user and password in MLFLOW_TRACKING_URI"),
)
