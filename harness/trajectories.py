"""The trajectory: prune, evaluate, retrain, evaluate, until enough is gone or nothing may go.

Every step's result is a *stage*, kept under the hash of its content: (parent stage, the exact
channels that stay, the retrain recipe). So trials whose cuts coincide share stages, whatever their
settings are called, and a killed trial starts again at its last stage. All randomness of a stage
is seeded from its key: the result does not depend on what was in the store, or on the order.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, Protocol

from torch import Tensor, nn

from harness.checkpoint import rebuild, rebuilt, state_of
from harness.engine.cost import Cost
from harness.engine.criteria import Criterion, Score, Scores, criterion_of
from harness.engine.evidence import Activity, Batch, Loss, Watch, taylor_pass
from harness.engine.graph import Example, Graph, Plan, trace
from harness.engine.pruner import ignoring, rank
from harness.engine.selection import Counts, Floors, select
from harness.engine.surgery import cut
from harness.engine.trial import try_cut
from harness.errors import ConfigError, GraphError
from harness.runtime import seed_of
from harness.store import NoStore, Record, Store, key_of

Observe = Callable[[], AbstractContextManager[object]]
Made = tuple[nn.Module, "list[EpochRow]", dict[str, Any]]  # network, its epochs, more facts
Make = Callable[[], Made]


@dataclass(frozen=True)
class EpochRow:
    """One epoch of retraining: mean losses, validation accuracy, learning rate (NaN: not known)."""

    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float


class Work(Protocol):
    """What a trajectory asks of whoever owns the data and the training."""

    identity: Mapping[str, Any]  # goes into the key of every stage that training makes

    def retrain(self, model: nn.Module, seed: int, observe: Observe) -> list[EpochRow]: ...
    def evaluate(self, model: nn.Module) -> tuple[float, float]: ...
    def batches(self) -> Iterable[Batch]: ...
    def latency(self, model: nn.Module) -> float: ...


class Watcher(Protocol):
    """Told what happens; a progress display is one."""

    def step(self, number: int, text: str, percentage: float) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a trajectory is asked to do.

    percentage: of the convolution output channels, to remove. macs: or stop as soon as no more
    than these MACs are left, whichever comes first; the last step is cut short to meet either.
    """

    filters_per_step: int
    percentage: float = 100.0
    macs: int | None = None
    criterion: str | Criterion | Score = "taylor"
    normalize: str = "auto"
    ranking: str = "merged"
    floors: Floors = field(default_factory=Floors)
    round_to: int = 1
    certify: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """One network on the way: what it kept, its weights, and what is known of it.

    tensors: weights by name, on the CPU. activity: evidence gathered while it was retrained.
    facts: plain numbers, as stored: accuracy, accuracy_cut, loss, epochs, seconds, made_ms, ...
    """

    key: str
    plan: Plan
    tensors: Mapping[str, Tensor]
    activity: Mapping[str, Activity]
    facts: Mapping[str, Any]
    reused: bool = False

    @property
    def accuracy(self) -> float:
        return float(self.facts["accuracy"])

    @property
    def epochs(self) -> list[EpochRow]:
        return [EpochRow(**row) for row in self.facts["epochs"]]


@dataclass(frozen=True)
class Step:
    """One pruning step, done: number 0 is the network before any cut.

    percentage: of the filters removed so far. accuracy_cut: right after the cut, before retraining.
    removed: group -> channels that this step took. cost: counted.
    """

    number: int
    percentage: float
    accuracy_cut: float
    accuracy: float
    cost: Cost
    removed: Mapping[str, int]
    stage: Stage

    @property
    def filters(self) -> int:
        return self.cost.filters

    @property
    def params(self) -> int:
        return self.cost.params

    @property
    def macs(self) -> int:
        return self.cost.macs

    @property
    def flops(self) -> int:
        return self.cost.flops

    @property
    def plan(self) -> Plan:
        return self.stage.plan


@dataclass(frozen=True)
class Path:
    """A trajectory that has ended: its steps, and why it ended."""

    steps: Sequence[Step]
    reason: str
    reached: bool


class Lab:
    """A traced network, someone who trains it, and a store: makes stages, or finds them made."""

    def __init__(self, template: nn.Module, example: Example, work: Work, *, store: Store,
                 ignore: Sequence[str] = (), place: Callable[[nn.Module], nn.Module] | None = None,
                 loss: Loss = nn.functional.cross_entropy, graph: Graph | None = None) -> None:
        """template: the whole network, on the CPU; place: moves a copy to where it is to run."""
        self.template, self.example, self.work, self.store = template, example, work, store
        self.graph = graph or ignoring(trace(template, example), ignore, template)
        self._place = place or (lambda module: module)
        self._loss = loss

    # Stages.

    def first(self, key: str, train: Callable[[nn.Module], list[EpochRow]]) -> Stage:
        """The baseline: found by its key, or made by `train` from the template."""

        def make() -> Made:
            model = self._place(copy.deepcopy(self.template))
            return model, train(model), {}

        return self._stage(key, self.graph.whole(), make)

    def step(self, parent: Stage, plan: Plan, settings: Settings) -> Stage:
        """Cut the parent to `plan`, evaluate, retrain, evaluate. Raises SizeInForward."""
        gather = self._merges(settings)
        key = key_of({"parent": parent.key, "kind": "step", "kept": digest(plan),
                      "retrain": self.work.identity["retrain"], "gather": gather})

        def make() -> Made:
            model = self.model(parent)
            culprits, certificate = try_cut(model, self.graph, parent.plan, plan, self._probe(),
                                            certify_cut=settings.certify)
            if culprits:
                raise SizeInForward(culprits)
            model = self._place(model)
            cut_accuracy, _ = self.work.evaluate(model)
            watches: list[Watch] = []

            def observe() -> AbstractContextManager[object]:
                if not gather:
                    return nullcontext()
                watches.append(Watch(model, self.graph))
                return watches[-1]

            rows = self.work.retrain(model, seed_of(key), observe)
            extra: dict[str, Any] = {"accuracy_cut": cut_accuracy}
            if certificate is not None:
                extra["certificate"] = asdict(certificate)
            if watches:
                extra["_activity"] = watches[-1].activity
            return model, rows, extra

        return self._stage(key, plan, make)

    def leaf(self, parent: Stage, recipe: Mapping[str, Any],
             train: Callable[[nn.Module, int], list[EpochRow]]) -> Stage:
        """The long final fine-tune, train(model, seed): a leaf, from which nothing else starts."""
        key = key_of({"parent": parent.key, "kind": "finetune", "finetune": dict(recipe)})

        def make() -> Made:
            model = self.model(parent)
            return model, train(model, seed_of(key)), {}

        return self._stage(key, parent.plan, make)

    def model(self, stage: Stage) -> nn.Module:
        """A fresh module of the stage, where it is to run, in eval mode."""
        return self._place(rebuilt(self.template, stage.plan.parameters, stage.tensors)).eval()

    def scores(self, stage: Stage, settings: Settings) -> Scores:
        """Scores of the channels that are alive: from what retraining gathered, or from a pass."""
        criterion = criterion_of(settings.criterion)
        model = self.model(stage)
        activity: Mapping[str, Activity] = {}
        if criterion.needs == "activity":
            merged = settings.ranking == "merged" and bool(stage.activity)
            activity = stage.activity if merged else self._passed(stage, model)
        return rank(model, self.graph, stage.plan, criterion, activity=activity,
                    normalize=settings.normalize, seed=seed_of(f"{stage.key}/{settings.seed}/rank"))

    def _passed(self, stage: Stage, model: nn.Module) -> Mapping[str, Activity]:
        """A separate pass in eval mode; kept, so that choosing again costs nothing."""
        key = key_of({"parent": stage.key, "kind": "taylor_pass",
                      "batches": self.work.identity["ranking"], "groups": sorted(stage.plan.kept)})
        with self.store.making(key):
            record = self.store.get(key)
            if record is None:
                activity = taylor_pass(model, self.graph, self.work.batches(), self._loss)
                record = Record(*_pack_activity(activity))
                self.store.put(key, record)
        return _unpack_activity(record)

    def _stage(self, key: str, plan: Plan, make: Make) -> Stage:
        """Look, lock, look again, make, keep."""
        with self.store.making(key):
            record = self.store.get(key)
            reused = record is not None
            if record is None:
                record = self._made(plan, make)
                self.store.put(key, record)
        return self._read(key, plan, record, reused)

    def find(self, key: str) -> Stage | None:
        """A stage by its key alone, if the store still has it."""
        record = self.store.get(key)
        if record is None:
            return None
        return self._read(key, self.graph.plan(record.facts["kept"]), record, reused=True)

    def _read(self, key: str, plan: Plan, record: Record, reused: bool) -> Stage:
        weights = {n.removeprefix("model/"): t for n, t in record.tensors.items()
                   if n.startswith("model/")}
        return Stage(key, plan, weights, _unpack_activity(record), record.facts, reused)

    def _made(self, plan: Plan, make: Make) -> Record:
        start = time.perf_counter()
        model, rows, extra = make()
        activity = extra.pop("_activity", {})
        if rows:
            accuracy, loss = rows[-1].val_accuracy, rows[-1].val_loss
        else:
            accuracy, loss = self.work.evaluate(model)
        more_facts, more_tensors = _pack_activity(activity)
        facts = {"kept": plan.as_json(), "accuracy": accuracy, "loss": loss,
                 "accuracy_cut": accuracy, "epochs": [asdict(r) for r in rows],
                 "latency_ms": self.work.latency(model), "seconds": time.perf_counter() - start,
                 "made_ms": int(1000 * time.time()), **extra, **more_facts}
        tensors = {f"model/{n}": t for n, t in state_of(model).items()}
        return Record(facts, {**tensors, **more_tensors})

    def _merges(self, settings: Settings) -> bool:
        needs = criterion_of(settings.criterion).needs
        return settings.ranking == "merged" and needs == "activity"

    def _probe(self) -> Example:
        device = next(self._place(nn.Linear(1, 1)).parameters()).device
        if isinstance(self.example, tuple):
            return tuple(e.to(device) for e in self.example)
        return self.example.to(device)


class SizeInForward(GraphError):
    """Groups that cannot be cut because the user's forward holds a size."""

    def __init__(self, culprits: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{g}: {why}" for g, why in culprits.items()))
        self.culprits = culprits


def walk(lab: Lab, start: Stage, settings: Settings, watcher: Watcher | None = None,
         ) -> Iterator[Step | Path]:
    """Yield every step as it is done, and last the whole path with the reason why it ended.

    The path is `reached` when the percentage (or the MACs) were met; if floors allow nothing
    more, it ends there, cleanly, and says which floors.
    """
    whole = lab.graph.cost()
    goal = whole.filters - ceil(settings.percentage * whole.filters / 100 - 1e-9)
    limit = -1 if settings.macs is None else settings.macs
    stage = start
    cost = lab.graph.cost(stage.plan)
    steps = [Step(0, 0.0, stage.accuracy, stage.accuracy, cost, {}, stage)]
    yield steps[0]
    while cost.filters > goal and cost.macs > limit:
        number = len(steps)
        left = max(goal, cost.filters - settings.filters_per_step)
        scores = lab.scores(stage, settings)
        chosen = select(lab.graph, scores, _enough(left, limit), start=stage.plan,
                        floors=settings.floors, round_to=settings.round_to, filters_only=True)
        if chosen.plan == stage.plan:
            yield Path(steps, _stuck(chosen.bound, lab.graph), reached=False)
            return
        if watcher:
            gone = 1 - chosen.counts.filters / whole.filters
            watcher.step(number, "cut and retrain", 100 * gone)
        before = stage
        try:
            stage = lab.step(before, chosen.plan, settings)
        except SizeInForward as error:
            lab.graph = lab.graph.freeze(error.culprits)
            stage = replace(before, plan=lab.graph.plan(
                {g.name: before.plan.kept[g.name] for g in lab.graph.groups}))
            continue
        cost = lab.graph.cost(stage.plan)
        removed = {g: len(kept) - len(stage.plan.kept[g]) for g, kept in before.plan.kept.items()
                   if g in stage.plan.kept and len(kept) > len(stage.plan.kept[g])}
        percentage = 100 * (1 - cost.filters / whole.filters)
        steps.append(Step(number, percentage, float(stage.facts["accuracy_cut"]), stage.accuracy,
                          cost, removed, stage))
        yield steps[-1]
    met = "the percentage is reached" if cost.filters <= goal else "the MACs are reached"
    yield Path(steps, met, reached=True)


def _enough(filters: int, macs: int) -> Callable[[Counts], bool]:
    return lambda counts: counts.filters <= filters or counts.macs <= macs


def _stuck(bound: Mapping[str, str], graph: Graph) -> str:
    held = [f"{g} ({why})" for g, why in bound.items()]
    frozen = [f"{g} ({why})" for g, why in graph.frozen.items()]
    return "nothing more may be cut: " + "; ".join(held + frozen)


def digest(plan: Plan) -> dict[str, str]:
    """Group -> hash of the channels that stay."""
    return {g: hashlib.sha256(str(kept.tolist()).encode()).hexdigest()[:16]
            for g, kept in sorted(plan.kept.items())}


def _pack_activity(activity: Mapping[str, Activity]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {f"activity/{gate}/absolute": a.absolute.cpu() for gate, a in activity.items()}
    tensors |= {f"activity/{gate}/signed": a.signed.cpu() for gate, a in activity.items()}
    return {"examples": {gate: a.examples for gate, a in activity.items()}}, tensors


def _unpack_activity(record: Record) -> dict[str, Activity]:
    return {gate: Activity(record.tensors[f"activity/{gate}/absolute"],
                           record.tensors[f"activity/{gate}/signed"], examples)
            for gate, examples in record.facts.get("examples", {}).items()}


# --- the loop for people who have their own training -------------------------------------------


@dataclass
class _OwnWork:
    """A user's train-one-epoch and evaluate functions as Work."""

    train: Callable[[nn.Module], object]
    score: Callable[[nn.Module], float]
    epochs: int
    given: Sequence[Batch]
    identity: Mapping[str, Any] = field(
        default_factory=lambda: {"retrain": "own", "ranking": "own"})

    def retrain(self, model: nn.Module, seed: int, observe: Observe) -> list[EpochRow]:
        nan = float("nan")
        for epoch in range(self.epochs):
            with observe() if epoch == self.epochs - 1 else nullcontext():
                self.train(model)
        if not self.epochs:
            return []
        return [EpochRow(nan, nan, self.evaluate(model)[0], nan)]

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        return float(self.score(model)), float("nan")

    def batches(self) -> Iterable[Batch]:
        return self.given

    def latency(self, model: nn.Module) -> float:
        return float("nan")


def trajectory(model: nn.Module, example: Example, *, train: Callable[[nn.Module], object],
               evaluate: Callable[[nn.Module], float], percentage: float, filters_per_step: int,
               retrain_epochs: int, criterion: str | Criterion | Score = "l1",
               ranking: str = "merged", batches: Sequence[Batch] | None = None,
               loss: Loss = nn.functional.cross_entropy, floors: Floors | None = None,
               round_to: int = 1, ignore: Sequence[str] = (), normalize: str = "auto",
               certify: bool = True, seed: int = 0) -> Iterator[Step]:
    """Prune `model` step by step with your own training; the same code that a trial runs.

    train: trains the model it is given for one epoch, in place (make the optimiser inside: the
        tensors shrink between steps). evaluate: its accuracy. After every step `model` itself is
        cut and carries that step's weights.
    percentage: of the convolution output channels, to remove; filters_per_step: of them, a step.
    criterion: 'taylor' and its like need `batches` for the first ranking; later ones ride on the
        last retrain epoch (`ranking='merged'`) or take a pass each (`'pass'`).

    Yields a Step for the network as given (number 0) and for every step. Stops early, cleanly,
    when floors allow nothing more. Raises ConfigError before anything is touched.
    """
    wrong = []
    if not 0 < percentage <= 100:
        wrong.append(f"percentage: {percentage} must be above 0 and at most 100")
    if filters_per_step < 1:
        wrong.append(f"filters_per_step: {filters_per_step} must be at least 1")
    if retrain_epochs < 0:
        wrong.append(f"retrain_epochs: {retrain_epochs} must not be negative")
    if criterion_of(criterion).needs == "activity" and batches is None:
        wrong.append("this criterion weighs activations: give batches=[(input, target), ...]")
    if wrong:
        raise ConfigError("trajectory: " + "; ".join(wrong) + ".")
    settings = Settings(filters_per_step, percentage, None, criterion, normalize, ranking,
                        floors or Floors(), round_to, certify, seed)
    return _own_steps(model, example, settings, ignore, loss,
                      _OwnWork(train, evaluate, retrain_epochs, batches or []))


def _own_steps(model: nn.Module, example: Example, settings: Settings, ignore: Sequence[str],
               loss: Loss, work: _OwnWork) -> Iterator[Step]:
    device = next(model.parameters()).device
    lab = Lab(copy.deepcopy(model).cpu(), example, work, store=NoStore(), ignore=ignore, loss=loss,
              place=lambda module: module.to(device))
    plan = lab.graph.whole()
    start = lab.first("given", lambda _: [])
    for step in walk(lab, start, settings):
        if isinstance(step, Path):
            return
        if step.number:
            cut(model, _in(lab.graph, plan), step.plan)
            rebuild(model, {}, step.stage.tensors)
            plan = step.plan
        yield step


def _in(graph: Graph, plan: Plan) -> Plan:
    """The same plan over the groups that the graph still cuts."""
    return graph.plan({g.name: plan.kept[g.name] for g in graph.groups})
