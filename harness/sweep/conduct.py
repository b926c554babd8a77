"""Work on a study until it has found what it is asked for: what every agent does."""

from collections.abc import Callable
from contextlib import suppress

from harness.checking import check_pruning
from harness.config import Study, differences, identity
from harness.console import Screen
from harness.errors import HandedBack
from harness.sweep.agent import Agent
from harness.sweep.bookkeeping import Stopwatch
from harness.sweep.claims import holding
from harness.sweep.conclude import conclude, finished
from harness.sweep.ledger import Ledger
from harness.sweep.orders import Order, give
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place, study_id
from harness.sweep.runs import ENDED
from harness.sweep.storage import told
from harness.tracking import Tracker


def conduct(study: Study, place: Place, open_tracker: Callable[[], Tracker], screen: Screen,
            *, most_trials: int | None = None, order: Order | None = None,
            ) -> tuple[Outcome | None, bool]:
    """Work until the study has as many settings as it asks for. Returns (outcome, was it new).

    Any number of processes may be at it; each returns the same outcome. most_trials: leave after
    so many, without an outcome if the study then lacks some. order: to give first. Raises
    HandedBack if the study was told to stop.
    """
    check_pruning(study)
    name = study_id(study)
    place.check_writable()
    watch = Stopwatch()
    with told(place.url):
        with watch.on("optuna"):
            ledger = place.ledger_of(study)
        done = finished(ledger, study)
        if done is not None and ledger.get(ENDED, True):
            return done, False
        if order is not None:
            give(ledger, order)
        claims = place.claims(name)
        with holding(claims, "settings"):
            _say_what_changed(study, name, place, ledger, screen)
        with watch.on("mlflow"):
            tracker = open_tracker()
        agent = Agent(study, name, place.home, ledger, claims, tracker, screen, most_trials,
                      watch=watch)
        screen.study(name, len(ledger.results()), study.config.trials)
        with suppress(_Left), agent.opened():
            if not agent.run():
                raise _Left
            return conclude(agent), True
        return None, True


class _Left(HandedBack):
    """An agent that has done its share; the study goes on without it."""


def command(study: Study, place: Place, order: Order) -> str:
    """Tell the agents of a study, wherever they run; returns the study's id."""
    with told(place.url):
        name = place.begun(study)
        give(place.ledger(name), order)
        return name


def _say_what_changed(study: Study, name: str, place: Place, ledger: Ledger, screen: Screen,
                      ) -> None:
    """A changed file starts a new study: say so, and which keys differ from the last one."""
    now = identity(study)
    if ledger.get("settings") is None:
        ledger.set("settings", now)
        family = [other for other in place.names()
                  if other.rpartition("-")[0] == study.config.name and other != name]
        if family:
            before = place.ledger(family[-1]).get("settings", {})
            keys = ", ".join(differences(before, now)) or "nothing that is named"
            screen.message(f"new study {name}: differs from {family[-1]} in {keys}")
