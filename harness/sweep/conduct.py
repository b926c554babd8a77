"""Run a study, or go on with it, or show what it found: the one entrance to a sweep."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

from harness.config import Study, differences, fingerprint, identity, short
from harness.console import Screen, count, percent
from harness.errors import StudyError
from harness.store import locked
from harness.sweep.agent import Agent
from harness.sweep.conclude import conclude
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.outcome import Outcome
from harness.sweep.results import Result
from harness.sweep.storage import open_study, study_names, told
from harness.tracking import Tracker


def study_id(study: Study) -> str:
    """A study is its name and the fingerprint of all that changes its results."""
    return f"{study.config.name}-{fingerprint(study)}"


def conduct(study: Study, home: Path, url: str, open_tracker: Callable[[], Tracker],
            screen: Screen) -> tuple[Outcome, bool]:
    """Work until the study has as many settings as it asks for. Returns (outcome, was it new).

    Raises StudyError if another process is at work on it.
    """
    name = study_id(study)
    with _alone(name, home), told(url):
        ledger = Ledger(open_study(name, url, home / "locks"))
        done = _finished(ledger, study)
        if done is not None:
            return done, False
        _say_what_changed(study, name, url, home, ledger, screen)
        agent = Agent(study, name, home, ledger, open_tracker(), screen)
        screen.study(name, len(ledger.results()), study.config.trials)
        with agent.opened():
            agent.run()
            outcome = conclude(agent)
        ledger.set("outcome", outcome.as_json())  # last: from here on the study is finished
        return outcome, True


def _finished(ledger: Ledger, study: Study) -> Outcome | None:
    facts = ledger.get("outcome")
    if facts is None:
        return None
    outcome = Outcome.from_json(facts)
    space = prod(len(ladder) for ladder in study.config.space.values())
    is_all = (len(ledger.originals()) >= space
              and outcome.settings_finished == len(ledger.results()))
    return outcome if is_all or outcome.settings_finished >= study.config.trials else None


@dataclass(frozen=True)
class Progress:
    """How far a study is, as a table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def progress(study: Study, home: Path, url: str) -> Progress:
    """Every trial with its state; read only, also while the study runs."""
    name = study_id(study)
    if name not in study_names(url, home / "locks"):
        raise StudyError(f"{name} has not been started in {home}. Start it: harness study "
                         f"{study.config.name}")
    ledger = Ledger(open_study(name, url, home / "locks"))
    rows = []
    for trial in ledger.trials():
        result = trial.user_attrs.get("result")
        found = Result.from_json(result).last if result else None
        copied = trial.user_attrs.get("duplicate_of")
        rows.append((str(ordinal_of(trial)), trial.state.name.lower(),
                     *(str(trial.params.get(path, "-")) for path in study.config.space),
                     percent(found.accuracy if found else None),
                     count(found.macs) if found else "-", str(trial.user_attrs.get("tries", 0)),
                     f"same as {copied}" if copied is not None else
                     str(trial.user_attrs.get("reason", ""))))
    finished, planned = len(ledger.results()), study.config.trials
    state = "at work" if _taken(name, home) else "idle"
    return Progress(f"{name}: {finished} of {planned} settings, {state}",
                    ("trial", "state", *(short(p) for p in study.config.space), "accuracy", "MACs",
                     "tries", "note"), tuple(rows), ())


def _taken(name: str, home: Path) -> bool:
    try:
        with locked(home / "locks" / f"{name}.lock", wait=False):
            return False
    except BlockingIOError:
        return True


@contextmanager
def _alone(name: str, home: Path) -> Iterator[None]:
    path = home / "locks" / f"{name}.lock"
    try:
        lock = locked(path, wait=False)
        lock.__enter__()
    except BlockingIOError as error:
        raise StudyError(f"another process is at work on {name} (lock {path}). Wait for it, or "
                         "give this run another --home.") from error
    except OSError as error:
        raise StudyError(f"{home} cannot be written: {error.strerror}. Choose another folder with "
                         "--home.") from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _say_what_changed(study: Study, name: str, url: str, home: Path, ledger: Ledger,
                      screen: Screen) -> None:
    """A changed file starts a new study: say so, and which keys differ from the last one."""
    now = identity(study)
    if ledger.get("settings") is None:
        ledger.set("settings", now)
        family = [n for n in study_names(url, home / "locks")
                  if n.rpartition("-")[0] == study.config.name and n != name]
        if family:
            before = Ledger(open_study(family[-1], url, home / "locks")).get("settings", {})
            keys = ", ".join(differences(before, now)) or "nothing that is named"
            screen.message(f"new study {name}: differs from {family[-1]} in {keys}")
