"""Optuna's own dashboard on a study storage: with notes on studies and trials, and the pictures.

Notes are written when somebody looks, so they cost a study nothing, and studies of earlier versions
have them too. They lie where `optuna_dashboard.save_note` puts them; one that a person has edited
there stays as it is. Needs the extra `dashboard`.
"""

import json
import mimetypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from uuid import NAMESPACE_URL, uuid5
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from harness.errors import StudyError, unknown
from harness.sweep import notes, study_notes
from harness.sweep.champion import outcomes
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.outcome import Outcome
from harness.sweep.pictures import FOLDER
from harness.sweep.place import Place
from harness.sweep.report import REPORT
from harness.sweep.results import Result
from harness.sweep.runs import MEASURE, named
from harness.sweep.storage import open_storage

OURS = 1  # the version of a note that no person has edited: each edit counts it up
EVERY_S = 20.0  # how soon a trial that has just ended has its note
SHOWN = (".png", ".csv", ".html")


@contextmanager
def dashboard(place: Place, port: int, name: str | None = None) -> Iterator["Pages"]:
    """Serve the dashboard on 127.0.0.1 while entered. name: of a study, or its id; by default all.

    Raises StudyError if the extra is not installed, a study is unknown, or the port is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise StudyError("Optuna's dashboard is not installed: pip install 'harness[dashboard]'",
                         ) from None
    studies = _called(place, name)
    storage, pictures = open_storage(place.url, place.locks), Pictures(place.home)
    scribe = Scribe(place, storage, pictures, studies)
    scribe.write()
    try:
        server = make_server("127.0.0.1", port, wsgi(storage, artifact_store=pictures),
                             server_class=_Threads, handler_class=_Silent)
    except (OSError, OverflowError) as error:
        raise StudyError(f"the dashboard cannot use port {port} ({error}). Choose another: "
                         f"--port {port + 1}") from error
    ended = threading.Event()
    threads = [threading.Thread(target=server.serve_forever, daemon=True),
               threading.Thread(target=_again_and_again, args=(scribe.write, ended), daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield Pages(f"http://127.0.0.1:{port}/dashboard", scribe.numbers, ended)
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join(timeout=10)


def _called(place: Place, name: str | None) -> list[str]:
    known = place.names()
    found = [study for study in known if name in (None, study, study.rpartition("-")[0])]
    if not found:
        raise StudyError(f"no study has been started in {place.home}." if name is None else
                         unknown("study", name, {*known, *(n.rpartition("-")[0] for n in known)})
                         + f" (looked in {place.home}; another place: --home, --storage)")
    return found


@dataclass(frozen=True)
class Pages:
    """url: of the list of studies; studies: id -> number of the study in its storage."""

    url: str
    studies: dict[str, int]
    ended: threading.Event

    def of(self, study_id: str) -> str:
        return f"{self.url}/studies/{self.studies[study_id]}"

    def wait(self) -> None:
        """Return when the pages have ended, or a person presses Ctrl-C."""
        self.ended.wait()


def _again_and_again(call: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(EVERY_S):
        call()


class _Threads(WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Pictures:
    """Optuna's artifact store, over the pictures and reports that lie in the studies' folders; what
    a person adds in the dashboard lies in the home's `artifacts`."""

    def __init__(self, home: Path) -> None:
        self._ours: dict[str, Path] = {}
        self._folder = home / "artifacts"

    def add(self, study_id: str, file: Path) -> str:
        """Its id, the same each time."""
        name = str(uuid5(NAMESPACE_URL, f"{study_id}/{file.name}"))
        self._ours[name] = file
        return name

    def open_reader(self, artifact_id: str) -> IO[bytes]:
        if artifact_id in self._ours:
            return BytesIO(self._ours[artifact_id].read_bytes())
        return self._theirs().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: Any) -> None:
        self._theirs().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """A picture of a study stays in the study's folder."""
        if artifact_id not in self._ours:
            self._theirs().remove(artifact_id)

    def _theirs(self) -> FileSystemArtifactStore:
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(self._folder)


class Scribe:
    """Writes into a storage what the dashboard shows beside the numbers; the same once."""

    def __init__(self, place: Place, storage: BaseStorage, pictures: Pictures,
                 names: list[str]) -> None:
        self._place, self._storage, self._pictures = place, storage, pictures
        self._ledgers = {name: place.ledger(name) for name in names}
        self.numbers = {name: storage.get_study_id_from_name(name) for name in names}

    def write(self) -> None:
        found = {outcome.study_id: outcome for outcome in outcomes(self._place.home)}
        for name, ledger in self._ledgers.items():
            self._study(name, ledger, found.get(name))

    def _study(self, name: str, ledger: Ledger, outcome: Outcome | None) -> None:
        number, results = self.numbers[name], dict(_numbered(ledger))
        written = self._storage.get_study_system_attrs(number)
        # Not known before there is a baseline, nor of studies under way of earlier versions.
        measure = outcome.measure if outcome else str(ledger.get(MEASURE, "accuracy"))
        if measure != "accuracy":
            axes = [f"{measure} (validation)", "share of the FLOPs"]
            self._set(number, written, "study:metric_names",
                      axes[:len(ledger.study.directions)])
        best = outcome.champion if outcome else None
        for trial in ledger.originals():
            is_best = best is not None and best.name == f"trial {ordinal_of(trial)}"
            self._note(number, written, trial._trial_id, _of_trial(
                trial, results.get(ordinal_of(trial)), measure, outcome if is_best else None))
        self._note(number, written, None, study_notes.study(outcome) if outcome else
                   f"**Under way:** {len(results)} settings have a result.")
        for file in self._files(name):
            self._artifact(number, written, name, file)

    def _note(self, number: int, written: dict[str, Any], trial: int | None, body: str) -> None:
        from optuna_dashboard._note import note_ver_key, save_note_with_version, split_body

        version = written.get(note_ver_key(trial), 0)
        parts = split_body(body, trial)
        if version <= OURS and any(written.get(key) != part for key, part in parts.items()):
            save_note_with_version(self._storage, number, trial, OURS, body)

    def _files(self, name: str) -> list[Path]:
        folder = self._place.home / "studies" / name
        found = [folder / REPORT, *sorted((folder / FOLDER).glob("*"))]
        return [file for file in found if file.suffix in SHOWN and file.is_file()]

    def _artifact(self, number: int, written: dict[str, Any], name: str, file: Path) -> None:
        artifact = self._pictures.add(name, file)
        kind, _ = mimetypes.guess_type(file.name)
        self._set(number, written, f"artifacts:{artifact}", json.dumps({
            "artifact_id": artifact, "filename": file.name, "mimetype": kind, "encoding": None}))

    def _set(self, number: int, written: dict[str, Any], key: str, value: Any) -> None:
        if key not in written:
            self._storage.set_study_system_attr(number, key, value)


def _numbered(ledger: Ledger) -> Iterator[tuple[int, Result]]:
    for trial, result in ledger.results():
        yield ordinal_of(trial), result


def _of_trial(trial: FrozenTrial, result: Result | None, measure: str,
              chosen_in: Outcome | None) -> str:
    head = notes.tried(named(trial.params))
    if result is None:
        return notes.failed(head, str(trial.user_attrs.get("reason", "no reason was noted")))
    whole = notes.Whole.begun_with(result)
    if whole is None:
        return head
    best = chosen_in.champion if chosen_in else None
    final = next((f for f in result.finals if best and f.key == best.stage), None)
    return notes.walked(head, result, whole, measure=measure, excess=trial.constraints,
                        champion=final, test_accuracy=best.test_accuracy if best else None)
