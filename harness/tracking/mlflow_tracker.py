"""A tracker that writes into MLflow."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import TrackingError
from harness.foreign import load_pt2
from harness.tracking.address import artifact_place, folder_name, is_http, resolve_uri
from harness.tracking.contact import check_experiment, first_contact, is_there, run_of
from harness.tracking.failures import told
from harness.tracking.links import view_path
from harness.tracking.models import save_pt2
from harness.tracking.tracker import MISSING, Ending, Point, Registered, Version
from harness.tracking.values import (
    PARAM,
    as_image,
    finite_or_nan,
    infinite_marks,
    new_params,
    parts,
    short_tags,
    shortened,
    table_text,
    user,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric
    from torch import Tensor, nn

    from harness.tracking.tracker import Picture


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
        place = artifact_place(where, home)
        with first_contact(where) as client:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                location = None if place is None else str(place / folder_name(experiment))
                experiment_id = client.create_experiment(experiment, location)
            else:
                check_experiment(found, where)
                experiment_id = found.experiment_id
        return cls(where, experiment, experiment_id, client)

    @classmethod
    def of_run(cls, uri: str | None, run_id: str) -> MlflowTracker | None:
        """The tracker of the experiment that a run is in, or None where the store has no such run.

        Nothing is made, neither store nor experiment.
        """
        where = resolve_uri(uri)
        if not is_there(where):
            return None
        with first_contact(where) as client:
            run = run_of(client, run_id)
            if run is None:
                return None
            experiment = client.get_experiment(run.info.experiment_id)
        return cls(where, experiment.name, experiment.experiment_id, client)

    @property
    def server(self) -> str | None:
        """The address whose pages show this store, if a server keeps it."""
        return self.uri.rstrip("/") if is_http(self.uri) else None

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
        values = {key: shortened(str(value), PARAM) for key, value in (params or {}).items()}
        with told(f"open the run {name}"):
            if run_id is None:
                origin = {"mlflow.user": user(), "mlflow.source.name": "harness"}
                run = self.client.create_run(
                    self.experiment_id, tags=short_tags(origin | marks), run_name=name
                )
                run_id = run.info.run_id
            else:
                values = new_params(run_id, self.client.get_run(run_id).data.params, values)
                self.client.update_run(run_id, status="RUNNING", name=name)
                self.set_tags(run_id, marks)
            self._log_params(run_id, values)
        return run_id

    def find_run(self, study: str, key: str) -> str | None:
        with told(f"look for the run {key}"):
            found = self.client.search_runs(
                [self.experiment_id], f"tags.study = '{study}' and tags.key = '{key}'"
            )
        return found[0].info.run_id if found else None

    def running(self, study: str) -> Mapping[str, str]:
        wanted = f"tags.study = '{study}' and attributes.status = 'RUNNING'"
        with told("look for runs that nobody ended"):
            found = self.client.search_runs([self.experiment_id], wanted)
        return {run.info.run_id: run.data.tags.get("key", "") for run in found}

    def _log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for part in parts([Param(key, value) for key, value in values.items()], 100):
            self.client.log_batch(run_id, params=part)

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(point.key, finite_or_nan(point.value), point.timestamp_ms, point.step)
            for point in points
        ]
        with told(f"write {len(metrics)} points"):
            for part in parts(metrics, 1000):
                self.client.log_batch(run_id, metrics=part)
        if marks := infinite_marks(points):
            self.set_tags(run_id, marks)

    def steps(self, run_id: str, key: str) -> set[int]:
        with told(f"read the curve {key}"):
            return {point.step for point in self.client.get_metric_history(run_id, key)}

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with told("write tags"):
            marks = [RunTag(key, value) for key, value in short_tags(tags).items()]
            for part in parts(marks, 100):
                self.client.log_batch(run_id, tags=part)

    def tags(self, run_id: str) -> Mapping[str, str]:
        with told(f"read the tags of the run {run_id}"):
            return dict(self.client.get_run(run_id).data.tags)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        with told(f"write {path}"):
            self.client.log_text(run_id, text, path)

    def log_json(self, run_id: str, content: object, path: str) -> None:
        self.log_text(run_id, json.dumps(content, indent=2) + "\n", path)

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        with told(f"write {path}"):
            self.client.log_figure(run_id, figure, path)

    def log_files(self, run_id: str, files: Sequence[Path], folder: str) -> None:
        with told(f"write {len(files)} files into {folder}"):
            for file in files:
                self.client.log_artifact(run_id, str(file), folder)

    def read_text(self, run_id: str, path: str) -> str:
        with told(f"read {path} of the run {run_id}"), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text()

    def read_model(
        self, run_id: str, name: str, uri: str = ""
    ) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        from mlflow.artifacts import download_artifacts

        with told(f"read the model {name} of the run {run_id}"):
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
        with told(f"find the registered model {name}{which}"):
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
        with told(f"write the picture {key} of step {step}"):
            # MLflow names each file by a fresh number: written again it would stand there twice.
            name = f"images/{key.replace('/', '~')}+step+{step}"
            if name not in self._known_pictures(run_id):
                self.client.log_image(run_id, as_image(picture), key=key, step=step)
                self._pictures[run_id].add(name)

    def _known_pictures(self, run_id: str) -> set[str]:
        if run_id not in self._pictures:
            files = self.client.list_artifacts(run_id, "images")
            self._pictures[run_id] = {file.path.split("+timestamp")[0] for file in files}
        return self._pictures[run_id]

    def log_table(self, run_id: str, columns: Mapping[str, Sequence[object]], path: str) -> None:
        # Not the client's log_table: that one appends to the table of a run that is gone on with.
        self.log_text(run_id, table_text(columns), path)
        with told(f"write {path}"):
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
        with told(f"write the data {name}"):
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
        with told(f"keep the model {name}"), tempfile.TemporaryDirectory() as folder:
            before = self._model_of(run_id, name, short_tags(tags or {}))
            if before is not None:
                return f"models:/{before.model_id}"
            params = self.client.get_run(run_id).data.params
            kept = self.client.create_logged_model(
                self.experiment_id, name, run_id, short_tags(tags or {}), params
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
                save_pt2(module, example, Path(folder) / "model", description)
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

        with told(f"register the model {name}"):
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

        with told(f"read the alias {alias} of the model {name}"):
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
        with told(f"describe the model {name}"):
            self.client.update_registered_model(name, description)
            for key, value in short_tags(tags or {}).items():
                self.client.set_registered_model_tag(name, key, value)

    def _list_version(self, model: LoggedModel, entry: Mapping[str, object]) -> None:
        # What the pages of a model lead to; MLflow's client leaves it to the caller.
        listed = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
        if entry not in listed:
            tag = json.dumps([*listed, entry])
            self.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": tag})

    def save_view(self, key: str, value: str) -> str:
        with told("save the view"):
            self.client.set_experiment_tag(
                self.experiment_id, f"mlflow.sharedViewState.{key}", value
            )
        return view_path(self.experiment_id, key)

    def end_run(self, run_id: str, status: Ending) -> None:
        with told("end the run"):
            self.client.set_terminated(run_id, status)

    def status(self, run_id: str) -> str:
        with told("read a run"):
            run = run_of(self.client, run_id)
        return MISSING if run is None else str(run.info.status)
