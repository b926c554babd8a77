"""What a study writes down, wherever that goes: the interface of all trackers.

A tracker writes into one experiment. A run is one study, baseline, trial or control; it is known by
its id, so that another process can go on with it. Every method may be called again with the same
content: it is then held once.

Raises: TrackingError from every method, with what was tried, what was said, and what helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor, nn

    Picture: TypeAlias = Image | Figure | numpy.ndarray


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

    def tags(self, run_id: str) -> Mapping[str, str]:
        """All tags of a run, as they are now."""

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
