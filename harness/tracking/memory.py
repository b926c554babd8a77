"""A tracker that writes into memory, for a test."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import TrackingError
from harness.tracking.links import view_path
from harness.tracking.tracker import MISSING, Ending, Point, Registered, Version
from harness.tracking.values import (
    PARAM,
    finite_or_nan,
    infinite_marks,
    new_params,
    shortened,
    table_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from harness.tracking.tracker import Picture


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
        values = {key: shortened(str(value), PARAM) for key, value in (params or {}).items()}
        if run_id is None:
            run_id = f"run-{len(self.runs) + 1}"
            self.runs[run_id] = MemoryRun(name, role, study, parent)
        run = self._run(run_id)
        run.params.update(new_params(run_id, run.params, values))
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

    def tags(self, run_id: str) -> Mapping[str, str]:
        return dict(self._run(run_id).tags)

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
