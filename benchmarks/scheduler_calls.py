"""What an agent's calls cost over a storage, by the trials in a study and the agents at work."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, TypeVar

import optuna
import sqlalchemy as sql
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages._rdb import models
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks import stub_study
from harness.store import write_whole
from harness.sweep.agent import Agent
from harness.sweep.claims import Claim, Claims, FileClaims, Holder
from harness.sweep.leases import FolderLeases, Lease, LeaseClaims, SqlLeases
from harness.sweep.ledger import Ledger
from harness.sweep.space import Space
from harness.sweep.storage import open_claims, open_study

T = TypeVar("T")
ROUNDS = 5
BEAT_S = 15.0  # a lease is renewed so often; an agent holds two: itself and its trial
LEASE_S = 3600.0  # those of the others lie still, and must not seem to be of the dead
MOST_AGENTS = {"sqlite": 100}  # of one machine
AT_ONCE = ("postgresql",)  # serves many at once: what one agent alone may hold is the turn to ask


@dataclass(frozen=True)
class Calls:
    """Seconds, medians. first: an agent's first look at the study; ask: for a trial, of which the
    turn to ask is held for `held`; write: all that is written of a trial, and told; poll: of an
    agent for whom there is nothing; attend: between two steps; beat: one renewal of one lease."""

    storage: str
    trials: int
    agents: int
    first: float
    ask: float
    held: float
    write: float
    poll: float
    attend: float
    beat: float

    def serial_s(self, length_s: float) -> float:
        """Seconds a trial in which no other agent is served."""
        if self.storage in AT_ONCE:
            return self.held
        return (self.ask + self.write + stub_study.STEPS * self.attend
                + 2 * self.beat * length_s / BEAT_S)

    def line(self) -> str:
        told = ", ".join(f"{name} {1000 * value:.1f}" for name, value in asdict(self).items()
                         if isinstance(value, float))
        return f"{self.storage}, {self.trials} trials, {self.agents} agents: {told} ms"


def measure(storages: Sequence[str], trials: Sequence[int], agents: Sequence[int], folder: Path,
            ) -> Iterator[Calls]:
    for storage in storages:
        with _places(storage, folder) as fresh:
            for known in trials:
                for others in [n for n in agents if n <= MOST_AGENTS.get(storage, n)]:
                    with stub_study.stubbed():
                        yield _one(storage, known, others, fresh())


@contextmanager
def _places(storage: str, folder: Path) -> Iterator[Callable[[], tuple[str, Path]]]:
    """Gives (URL, folder of locks) of a fresh storage at every call."""
    numbers = iter(range(10 ** 6))

    def place() -> Path:
        made = folder / f"{storage}{next(numbers)}"
        made.mkdir()
        return made

    with ExitStack() as stack:
        if storage == "postgresql":
            from tests import postgres

            server = postgres.Server()
            stack.callback(server.stop)

            def fresh() -> tuple[str, Path]:
                here = place()
                return server.url(here.name), here
        else:
            def fresh() -> tuple[str, Path]:
                here = place()
                return ("memory" if storage == "memory" else f"{storage}:///{here / 'study'}"), here
        yield fresh


def _one(storage: str, known: int, others: int, place: tuple[str, Path]) -> Calls:
    url, folder = place
    _fill(url, folder, known, others)
    first, ledger = _timed(lambda: _first_look(url, folder))
    claims: Any = _claims(url, folder)
    turns = _Turns(claims)
    worker = _agent(known + others + 10 * ROUNDS, ledger, turns)
    watcher = _agent(known + others, ledger, claims)
    seconds: dict[str, list[float]] = {name: [] for name in
                                       ("ask", "held", "attend", "beat", "write", "poll")}
    with _held(url, folder, known, others):
        for _ in range(ROUNDS):
            took, taken = _timed(worker._next)
            assert taken is not None, "there is nothing to ask for"
            trial, claim = taken
            seconds["ask"].append(took)
            seconds["held"].append(turns.held_s)
            seconds["attend"].append(_timed(lambda: worker._attend(claim))[0])  # noqa: B023
            seconds["beat"].append(_timed(lambda: _beat(claims, trial))[0])  # noqa: B023
            seconds["write"].append(_timed(
                lambda: worker._attempt(trial, claim))[0])  # noqa: B023
            claim.release()
        seconds["poll"] = [_timed(watcher._next)[0] for _ in range(ROUNDS)]
    return Calls(storage, known, others, first, **{n: median(s) for n, s in seconds.items()})


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def _first_look(url: str, folder: Path) -> Ledger:
    ledger = Ledger(_study(url, folder))
    ledger.results()
    return ledger


def _agent(trials: int, ledger: Ledger, claims: Any) -> Agent:
    return stub_study.agent(stub_study.study(trials), ledger, claims, Counter())


def _beat(claims: Claims, trial: FrozenTrial) -> None:
    if isinstance(claims, LeaseClaims):
        claims.renew(claims._held[f"trial-{trial.number}"])


@dataclass
class _Turns:
    """Claims that stop how long the turn to ask is held."""

    claims: Claims
    held_s: float = 0.0

    def take(self, name: str) -> Claim | None:
        claim = self.claims.take(name)
        return _Turn(claim, self, time.perf_counter()) if claim and name == "ask" else claim

    def maybe_free(self, names: Sequence[str]) -> Sequence[str]:
        return self.claims.maybe_free(names)


@dataclass
class _Turn:
    claim: Claim
    turns: _Turns
    since: float

    def is_held(self) -> bool:
        return self.claim.is_held()

    def release(self) -> None:
        self.claim.release()
        self.turns.held_s = time.perf_counter() - self.since


# Studies as a thousand agents would have left them, written in bulk.


def _trial(number: int, is_done: bool) -> FrozenTrial:
    random, result = Random(number), stub_study.result(number)
    return create_trial(
        state=TrialState.COMPLETE if is_done else TrialState.RUNNING,
        value=result.last.accuracy if is_done else None,
        params={path: random.choice(ladder) for path, ladder in stub_study.LADDERS.items()},
        distributions=DISTRIBUTIONS, system_attrs={"constraints:flops_over_budget": 0.0},
        user_attrs={"tries": 1, "run_id": f"{number:032d}",
                    **({"result": result.as_json()} if is_done else {})})


DISTRIBUTIONS = {path: CategoricalDistribution(ladder)
                 for path, ladder in stub_study.LADDERS.items()}
MEMORY: dict[Path, InMemoryStorage] = {}
LEASES: dict[Path, stub_study.MemoryLeases] = {}


def _study(url: str, folder: Path) -> optuna.Study:
    if url != "memory":
        return open_study(stub_study.NAME, url, folder)
    return optuna.create_study(study_name=stub_study.NAME, storage=MEMORY[folder],
                               load_if_exists=True, directions=[StudyDirection.MAXIMIZE])


def _claims(url: str, folder: Path) -> Claims:
    if url == "memory":
        return LeaseClaims(LEASES.setdefault(folder, stub_study.MemoryLeases()), LEASE_S)
    return open_claims(stub_study.NAME, url, folder, LEASE_S)


def _fill(url: str, folder: Path, known: int, others: int) -> None:
    trials = [_trial(number, number < known) for number in range(known + others)]
    if url == "memory":
        MEMORY.clear()  # a study is large
        MEMORY[folder] = InMemoryStorage()
        _study(url, folder).add_trials(trials)
    elif url.startswith("journal"):
        lines = _Lines()
        made = optuna.create_study(study_name=stub_study.NAME, storage=JournalStorage(lines),
                                   directions=[StudyDirection.MAXIMIZE])
        made.add_trials(trials)
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines.kept)
        Path(url.removeprefix("journal:///")).write_text(text)
    else:
        _fill_tables(url, _study(url, folder)._study_id, trials)


class _Lines(BaseJournalBackend):
    """A journal in this process, which costs nothing to write."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.kept += json.loads(json.dumps(logs))

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.kept[log_number_from:]


def _fill_tables(url: str, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    engine, table = sql.create_engine(url), models.TrialModel.__table__
    now = datetime.now()
    with engine.begin() as connection:
        connection.execute(table.insert(), [
            {"number": n, "study_id": study_id, "state": t.state, "datetime_start": now,
             "datetime_complete": now if t.state.is_finished() else None}
            for n, t in enumerate(trials)])
        found = connection.execute(sql.select(table.c.number, table.c.trial_id)).all()
        ids = {row.number: row.trial_id for row in found}
        rows = {
            models.TrialParamModel: [
                {"trial_id": ids[n], "param_name": path, "distribution_json": JSONS[path],
                 "param_value": DISTRIBUTIONS[path].to_internal_repr(value)}
                for n, t in enumerate(trials) for path, value in t.params.items()],
            models.TrialValueModel: [
                {"trial_id": ids[n], "objective": 0, "value": t.value, "value_type": "FINITE"}
                for n, t in enumerate(trials) if t.value is not None],
            models.TrialUserAttributeModel: [
                {"trial_id": ids[n], "key": key, "value_json": json.dumps(value)}
                for n, t in enumerate(trials) for key, value in t.user_attrs.items()],
            models.TrialSystemAttributeModel: [
                {"trial_id": ids[n], "key": key, "value_json": json.dumps(value)}
                for n, t in enumerate(trials) for key, value in t.system_attrs.items()]}
        for model, some in rows.items():
            connection.execute(model.__table__.insert(), some)
    if url.startswith("postgresql"):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sql.text("ANALYZE"))  # as the server does by itself in time
    engine.dispose()


JSONS = {path: distribution_to_json(d) for path, d in DISTRIBUTIONS.items()}


@contextmanager
def _held(url: str, folder: Path, known: int, others: int) -> Iterator[None]:
    """The claims of others: each has itself and a trial."""
    names = [name for n in range(others) for name in (f"agent-{n}", f"trial-{known + n}")]
    rows = {name: Lease(f"{n:032d}", 1, Holder.here()) for n, name in enumerate(names)}
    if url.startswith("sqlite"):
        others_claims = FileClaims(folder / stub_study.NAME)
        held = [others_claims.take(name) for name in names]
        yield
        for claim in held:
            assert claim is not None
            claim.release()
        return
    if url == "memory":
        for name, row in rows.items():
            LEASES[folder].swap(name, None, row)
    elif url.startswith("journal"):
        file = Path(url.removeprefix("journal:///")).with_suffix(f".{stub_study.NAME}.leases")
        FolderLeases(file)
        write_whole(file, json.dumps({n: asdict(row) for n, row in rows.items()}).encode())
    elif url.startswith("postgresql"):
        engine = sql.create_engine(url)
        table = SqlLeases(engine, stub_study.NAME)
        with engine.begin() as connection:
            for name, row in rows.items():
                connection.execute(table._change(name, None, row))
        engine.dispose()
    yield


def samplers(trials: Sequence[int]) -> Iterator[tuple[str, int, float]]:
    """(sampler, trials, seconds a suggestion), over a study in memory."""
    for known in trials:
        _fill("memory", Path(), known, 0)
        for name in ("random", "tpe", "grid"):
            study = _study("memory", Path())
            space = Space(stub_study.LADDERS, name, 0, 5)
            ledger = Ledger(study)
            begun = ledger.begin()
            seen, repeats = ledger.before(known)
            yield name, known, _timed(lambda: space.suggest(  # noqa: B023
                study, begun, "stub", seen, repeats))[0]  # noqa: B023
