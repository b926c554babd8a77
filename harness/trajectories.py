"""The trajectory: prune, evaluate, retrain, evaluate, until enough is gone or nothing may go.

Every step's result is a *stage*, kept under the hash of its content: (parent stage, the exact
channels that stay, the retrain recipe). So trials whose cuts coincide share stages, whatever their
settings are called, and a killed trial starts again at its last stage. All randomness of a stage
is seeded from its key: the result does not depend on what was in the store, or on the order.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness.checkpoint import rebuild, rebuilt, state_of
from harness.engine.aftercare import carry_out
from harness.engine.choices import LAYER_TYPES, not_chosen
from harness.engine.cost import Cost
from harness.engine.criteria import Criterion, Score, Scores, criterion_of
from harness.engine.evidence import Batch, Gathered, Loss, Settled, Watch, gather
from harness.engine.floors import Floors, check_names, is_number, modules_in
from harness.engine.graph import Example, Graph, Plan
from harness.engine.latency import latency_tables
from harness.engine.ledger import Ledger, ledger
from harness.engine.lineage import removed_channels
from harness.engine.pruner import ignoring, rank, rescorer, understood, without
from harness.engine.request import check_on
from harness.engine.selection import (
    SCOPES,
    Selection,
    select,
    select_one_by_one,
    select_ratios,
)
from harness.engine.surgery import Transaction, copied, cut
from harness.engine.tally import Counts, LayerTime, counts_of
from harness.engine.targets import (
    RESOURCES,
    SLACK,
    budget_of,
    gone_of,
    left_of,
    origin_iterations,
    whole_counts,
)
from harness.errors import (
    ConfigError,
    GraphError,
    Mistakes,
    TargetError,
    TrainingError,
    unknown,
)
from harness.graphs import traced
from harness.runtime import seed_of, seeded
from harness.store import NoStore, Record, Store, key_of

ITERATIONS = ("exact", "whole", "origin")
RANKINGS, RANKING_MODES = ("merged", "pass"), ("eval", "train")
Observe = Callable[[], AbstractContextManager[object]]
Made = tuple[nn.Module, "list[EpochRow]", dict[str, Any]]  # network, its epochs, more facts
Make = Callable[[], Made]


@dataclass(frozen=True)
class EpochRow:
    """One epoch of retraining: mean losses, accuracies, learning rate (NaN: not known)."""

    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    train_accuracy: float = math.nan
    val_top5: float = math.nan


class Work(Protocol):
    """What a trajectory asks of whoever owns the data and the training.

    latency: latency_ms of one picture, and whatever else was measured with it.
    """

    identity: Mapping[str, Any]  # goes into the key of every stage that training makes

    def retrain(self, model: nn.Module, seed: int, observe: Observe) -> list[EpochRow]: ...
    def evaluate(self, model: nn.Module) -> tuple[float, float]: ...
    def batches(self) -> Iterable[Batch]: ...
    def latency(self, model: nn.Module) -> Mapping[str, float]: ...


class Watcher(Protocol):
    """Told what happens; a progress display is one."""

    def step(self, number: int, text: str, percentage: float) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a trajectory is asked to do.

    percentage: to remove, of a resource (`percentage_of`; filters are convolution output
    channels). macs: or stop as soon as no more than these MACs are left, whichever comes first; the
    last step is cut short to meet either. ratios: instead, {layer or parent module: share of its
    channels to remove}, in one step.
    filters_per_step: so many go in a step; or `step`, {resource: amount}, see `Budget`.
    iterations: 'exact' meets the percentage; 'whole' cuts no step short, so that the percentage is
    passed by less than a step, and walks to different ones are the same as far as they go; 'origin'
    makes as many whole steps as the first seeds' loop, see `origin_iterations`.
    scope, layer_types, only_follow: as `prune` takes them. one_by_one: within a step, score anew
    after every single removal, activations included.
    fold: as `prune` takes it. norm_batches: of the ranking data, on which batch norms are measured
    afresh after a cut, before it is judged. retrain_last: also after the step that meets the end.
    renew: modules whose weights begin anew after every cut, before it is judged.
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
    flops_penalty: float = 0.0
    settle_batches: int = 0
    percentage_of: str = "filters"
    step: Mapping[str, float] = field(default_factory=dict)
    iterations: str = "exact"
    scope: str = "global"
    layer_types: str = "all"
    only_follow: Sequence[str] = ()
    one_by_one: bool = False
    ratios: Mapping[str, float] = field(default_factory=dict)
    ranking_mode: str = "eval"
    fold: bool = False
    norm_batches: int = 0
    retrain_last: bool = True
    renew: Sequence[str] = ()

    def __post_init__(self) -> None:
        wrong = [f"{name}: {unknown(kind, given, known)}" for name, kind, given, known in (
            ("percentage_of", "resource", self.percentage_of, RESOURCES),
            ("iterations", "way of counting", self.iterations, ITERATIONS),
            ("ranking", "ranking", self.ranking, RANKINGS),
            ("ranking_mode", "mode", self.ranking_mode, RANKING_MODES),
            ("scope", "scope", self.scope, SCOPES),
            ("layer_types", "type", self.layer_types, LAYER_TYPES)) if given not in known]
        if self.ratios and self.floors.group_rule != "share":
            wrong.append("floors.group_rule: works from a percentage; with ratios give group_min.")
        if self.iterations == "origin" and (self.step or self.percentage_of != "filters"):
            wrong.append("iterations: the origin counts filters; leave step and percentage_of.")
        if wrong:
            raise ConfigError("\n".join(wrong))
        if self.step:
            budget_of(self.step)

    def check(self, graph: Graph) -> None:
        """Raises ConfigError for what is wrong on this network: names, and numbers of layers."""
        refused = Mistakes()
        with refused:
            check_on(graph, self.floors, self.only_follow, self.ratios)
        with refused:
            check_names("renew", modules_in(graph), self.renew)
        refused.tell()

    @property
    def needs_latency(self) -> bool:
        return "latency" in (self.percentage_of, *self.step)


@dataclass(frozen=True)
class Stage:
    """One network on the way: what it kept, its weights, and what is known of it.

    tensors: weights by name, on the CPU. gathered: evidence from while it was retrained.
    facts: plain numbers, as stored: accuracy, accuracy_cut, loss, epochs, seconds, made_ms, ...
    """

    key: str
    plan: Plan
    tensors: Mapping[str, Tensor]
    gathered: Gathered
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
    removed: group -> channels that this step took. cost: counted. ledger: asked against reached,
    scores, floors, what stayed whole and why; None for step 0. pruned: layer -> original output
    channels that are gone by now.
    """

    number: int
    percentage: float
    accuracy_cut: float
    accuracy: float
    cost: Cost
    removed: Mapping[str, int]
    stage: Stage
    ledger: Ledger | None = None
    pruned: Mapping[str, Sequence[int]] = field(default_factory=dict)

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
                 loss: Loss = nn.functional.cross_entropy, graph: Graph | None = None,
                 latency_file: FilePath | None = None) -> None:
        """template: the whole network, on the CPU; place: moves a copy to where it is to run.

        latency_file: where tables of layers' latencies are kept.
        """
        self.template, self.example, self.work, self.store = template, example, work, store
        self.graph = graph or ignoring(traced(template, example, store), ignore, template)
        self._place = place or (lambda module: module)
        self._loss = loss
        self._latency_file = latency_file
        self.batches_used = 0
        self.held: dict[str, str] = {}  # groups that are cut and may not be cut further, and why

    @cached_property
    def times(self) -> Mapping[str, LayerTime]:
        """Weight -> latency of its layer by its sizes, measured where networks run here."""
        return latency_tables(self._place(copied(self.template)), self._probe(), self.graph,
                              self._latency_file)

    # Stages.

    def first(self, key: str, train: Callable[[nn.Module], list[EpochRow]]) -> Stage:
        """The baseline: found by its key, or made by `train` from the template."""

        def make() -> Made:
            model = self._place(copied(self.template))
            return model, train(model), {}

        return self._stage(key, self.graph.whole(), make)

    def judged(self, parent: Stage, by: str) -> Stage:
        """The same network, judged anew; by: what tells it from other ways of judging."""
        key = key_of({"parent": parent.key, "kind": "judged", "by": by})
        return self._stage(key, parent.plan, lambda: (self.model(parent), [], {}))

    def prepared(self, parent: Stage, recipe: Mapping[str, Any],
                 train: Callable[[nn.Module, int], list[EpochRow]]) -> Stage:
        """Trained on before the first cut, train(model, seed); the fact `is_prepared` says so."""
        key = key_of({"parent": parent.key, "kind": "prepared", "train": dict(recipe)})

        def make() -> Made:
            model = self.model(parent)
            return model, train(model, seed_of(key)), {"is_prepared": True}

        return self._stage(key, parent.plan, make)

    def step(self, parent: Stage, plan: Plan, settings: Settings, *, retrains: bool = True,
             ) -> Stage:
        """Cut the parent to `plan`, evaluate, retrain, evaluate. Raises SizeInForward."""
        needs = sorted(self._merged(settings)) if retrains else []
        # True is activity alone: seeds come from keys, and this key is older than other kinds.
        kinds = True if needs == ["activity"] else needs or False
        care: dict[str, Any] = {"fold": True} if settings.fold else {}
        if settings.renew:
            care["renew"] = sorted(settings.renew)
        if settings.norm_batches:
            care["norms"] = [settings.norm_batches, self.work.identity["ranking"]]
        key = key_of({"parent": parent.key, "kind": "step", "kept": digest(plan),
                      "retrain": self.work.identity["retrain"] if retrains else None,
                      "gather": kinds, **care})

        def make() -> Made:
            model = self.model(parent)
            batches = (islice(self.work.batches(), settings.norm_batches)
                       if settings.norm_batches else None)
            done = carry_out(model, self.graph, parent.plan, plan, self._probe(),
                             certify_cut=settings.certify, fold=settings.fold, norm_batches=batches)
            if done.culprits:
                raise SizeInForward(done.culprits)
            with seeded(seed_of(f"{key}/weights")):
                kept = [f"{name}.{own}".removeprefix(".") for name in sorted(settings.renew)
                        for own in renew(model.get_submodule(name))]
            model = self._place(model)
            cut_accuracy, _ = self.work.evaluate(model)
            watches: list[Watch] = []

            def observe() -> AbstractContextManager[object]:
                if not needs:
                    return nullcontext()
                watches.append(Watch(model, self.graph, needs))
                return watches[-1]

            rows = self.work.retrain(model, seed_of(key), observe) if retrains else []
            extra: dict[str, Any] = {"accuracy_cut": cut_accuracy}
            extra |= {what: asdict(found) for what in ("certificate", "folding", "recalibration")
                      if (found := getattr(done, what)) is not None}
            if kept:
                extra["not_renewed"] = kept
            if watches:
                extra["_gathered"] = watches[-1].gathered
            return model, rows, extra

        return self._stage(key, plan, make)

    def leaf(self, parent: Stage, recipe: Mapping[str, Any],
             train: Callable[[nn.Module, int], list[EpochRow]], kind: str = "finetune") -> Stage:
        """The long final fine-tune, train(model, seed): a leaf, from which no cut starts.

        kind: of other work on weights alone, and then `recipe` says all that it depends on.
        """
        key = key_of({"parent": parent.key, "kind": kind, kind: dict(recipe)})

        def make() -> Made:
            model = self.model(parent)
            return model, train(model, seed_of(key)), {}

        return self._stage(key, parent.plan, make)

    def newborn(self, twin: Stage, recipe: Mapping[str, Any], root: str,
                train: Callable[[nn.Module, int], list[EpochRow]]) -> Stage:
        """The twin's widths with weights of their own, trained from the start: a control.

        root: what it shares with no other. The fact `not_renewed` names parameters that no module
        knows how to begin anew: they keep the template's values.
        """
        key = key_of({"root": root, "kind": "newborn", "kept": digest(twin.plan),
                      "train": dict(recipe)})

        def make() -> Made:
            model = copied(self.template)
            cut(model, self.graph.whole(), twin.plan)
            with seeded(seed_of(f"{key}/weights")):
                left = renew(model)
            model = self._place(model)
            return model, train(model, seed_of(key)), {"not_renewed": left}

        return self._stage(key, twin.plan, make)

    def model(self, stage: Stage) -> nn.Module:
        """A fresh module of the stage, where it is to run, in eval mode."""
        return self._place(rebuilt(self.template, stage.plan.parameters, stage.tensors)).eval()

    def scores(self, stage: Stage, settings: Settings,
               choose: Callable[[Scores], object] | None = None) -> Scores:
        """Scores of the channels that are alive: from what retraining gathered, or from a pass.

        choose: what would be cut by scores; with `settings.settle_batches` a pass ends when that
        (compared by ==) has stopped changing. `batches_used`: what the scores rest on.
        """
        criterion = criterion_of(settings.criterion)
        model = self.model(stage)

        def ranked(gathered: Gathered) -> Scores:
            return rank(model, self.graph, stage.plan, criterion, gathered=gathered,
                        normalize=settings.normalize, flops_penalty=settings.flops_penalty,
                        seed=seed_of(f"{stage.key}/{settings.seed}/rank"))

        gathered, merged = Gathered(), self._merged(settings)
        if merged and merged <= stage.gathered.kinds:
            gathered = stage.gathered
        elif criterion.wants and choose and settings.settle_batches:
            # What is chosen decides where this pass ends: it is of no use to another choice.
            until = Settled(lambda sums: choose(ranked(sums)), settings.settle_batches)
            gathered = self._pass(model, settings, until)
        elif criterion.wants:
            gathered = self._kept_pass(stage, model, settings)
        self.batches_used = gathered.batches
        return ranked(gathered)

    def rescore(self, stage: Stage, settings: Settings) -> Callable[[Plan], Scores]:
        """Scores of what a smaller plan keeps, before it is retrained: from a pass, if need be."""
        criterion = criterion_of(settings.criterion)

        def scores_of(model: nn.Module, plan: Plan) -> Scores:
            gathered = self._pass(model, settings) if criterion.wants else Gathered()
            return rank(model, self.graph, plan, criterion, gathered=gathered,
                        normalize=settings.normalize, flops_penalty=settings.flops_penalty,
                        seed=seed_of(f"{stage.key}/{settings.seed}/rank"))

        smaller = rescorer(self.model(stage), stage.plan, scores_of)
        return lambda plan: self.scores(stage, settings) if plan == stage.plan else smaller(plan)

    def _pass(self, model: nn.Module, settings: Settings,
              until: Callable[[Gathered], bool] | None = None) -> Gathered:
        """A pass of its own over the batches."""
        return gather(model, self.graph, self.work.batches(), self._loss,
                      criterion_of(settings.criterion).wants, until=until,
                      train_mode=settings.ranking_mode == "train")

    def _kept_pass(self, stage: Stage, model: nn.Module, settings: Settings) -> Gathered:
        """The same, kept, so that choosing again costs nothing."""
        needs = sorted(criterion_of(settings.criterion).wants)
        key = key_of({"parent": stage.key, "kind": "evidence_pass", "needs": needs,
                      "mode": settings.ranking_mode, "batches": self.work.identity["ranking"],
                      "groups": sorted(stage.plan.kept)})
        with self.store.making(key):
            record = self.store.get(key)
            if record is None:
                gathered = self._pass(model, settings)
                record = Record({"needs": needs}, gathered.tensors())
                self.store.put(key, record)
        return Gathered.from_tensors(record.tensors)

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
        return Stage(key, plan, weights, Gathered.from_tensors(record.tensors), record.facts,
                     reused)

    def _made(self, plan: Plan, make: Make) -> Record:
        start = time.perf_counter()
        model, rows, extra = make()
        gathered = extra.pop("_gathered", Gathered())
        if rows:
            accuracy, loss = rows[-1].val_accuracy, rows[-1].val_loss
        else:
            accuracy, loss = self.work.evaluate(model)
        facts = {"kept": plan.as_json(), "accuracy": accuracy, "loss": loss,
                 "accuracy_cut": accuracy, "epochs": [asdict(r) for r in rows],
                 **self.work.latency(model), "seconds": time.perf_counter() - start,
                 "made_ms": int(1000 * time.time()), **extra}
        tensors = {f"model/{n}": t for n, t in state_of(model).items()}
        return Record(facts, {**tensors, **gathered.tensors()})

    def _merged(self, settings: Settings) -> frozenset[str]:
        """The kinds of evidence to gather while retraining."""
        wants = criterion_of(settings.criterion).wants
        return wants if settings.ranking == "merged" else frozenset()

    def _probe(self) -> Example:
        device = next(self._place(nn.Linear(1, 1)).parameters()).device
        placed: Example = tree_map_only(Tensor, lambda e: e.to(device), self.example)
        return placed


def renew(model: nn.Module) -> list[str]:
    """Give every module new first weights, as PyTorch does by default for its sizes.

    Returns the parameters of modules that have no `reset_parameters`: those stay as they are.
    """
    left = []
    for name, module in model.named_modules():
        reset = (getattr(module, "reset_parameters", None)
                 or getattr(module, "_reset_parameters", None))  # nn.MultiheadAttention's
        if callable(reset):
            reset()
        else:
            left += [f"{name}.{own}".removeprefix(".") for own, _ in
                     module.named_parameters(recurse=False)]
    return left


class SizeInForward(GraphError):
    """Groups that cannot be cut because the user's forward holds a size."""

    def __init__(self, culprits: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{g}: {why}" for g, why in culprits.items()))
        self.culprits = culprits


def walk(lab: Lab, start: Stage, settings: Settings, watcher: Watcher | None = None,
         ) -> Iterator[Step | Path]:
    """Yield every step as it is done, and last the whole path with the reason why it ended.

    The path is `reached` when the percentage (or the MACs, or the ratios) were met; if floors allow
    nothing more, it ends there, cleanly, and says which floors. Raises ConfigError, before anything
    is done, for names that the network does not have.
    """
    settings.check(lab.graph)
    settings = replace(settings, floors=settings.floors.by_name(lab.graph))
    goal = Goal(lab, settings)
    lab.held = {}
    stage = start
    now = counts_of(lab.graph, stage.plan, goal.times)
    steps = [Step(0, 0.0, stage.accuracy, stage.accuracy, lab.graph.cost(stage.plan), {}, stage)]
    yield steps[0]
    while not goal.met(now):
        chosen, scores = _choose(lab, stage, settings, goal, now)
        if chosen.plan == stage.plan:
            yield Path(steps, _stuck(chosen.bound, lab.graph), reached=False)
            return
        if watcher:
            watcher.step(len(steps), "cut and retrain", goal.percentage(chosen.counts))
        before = stage
        try:
            is_last = bool(settings.ratios or goal.met(chosen.counts))
            stage = lab.step(before, chosen.plan, settings,
                             retrains=settings.retrain_last or not is_last)
        except SizeInForward as error:
            lab.graph, plan, held = without(lab.graph, before.plan, error.culprits)
            lab.held |= held
            stage = replace(before, plan=plan)
            continue
        except TrainingError as error:
            raise TrainingError(f"step {len(steps)}: {error}") from error
        left = counts_of(lab.graph, stage.plan, goal.times)
        asked, now = goal.asked(now, left), left
        removed = {g: len(kept) - len(stage.plan.kept[g]) for g, kept in before.plan.kept.items()
                   if g in stage.plan.kept and len(kept) > len(stage.plan.kept[g])}
        steps.append(Step(len(steps), goal.percentage(now), float(stage.facts["accuracy_cut"]),
                          stage.accuracy, lab.graph.cost(stage.plan), removed, stage,
                          ledger(lab.graph, before.plan, stage.plan, asked=asked, scores=scores,
                                 reached=goal.gone(now), bound=chosen.bound,
                                 round_to=settings.round_to),
                          removed_channels(lab.graph, stage.plan)))
        yield steps[-1]
        if settings.ratios:
            met = "the ratios are met" if chosen.reached else _stuck(chosen.bound, lab.graph)
            yield Path(steps, met, chosen.reached)
            return
    yield Path(steps, goal.met(now), reached=True)


def would_go(lab: Lab, stage: Stage, settings: Settings) -> Selection:
    """What one cut from this stage to the whole percentage would take; nothing is cut or trained.

    Raises ConfigError for names that the network does not have.
    """
    settings.check(lab.graph)
    settings = replace(settings, floors=settings.floors.by_name(lab.graph), step={},
                       filters_per_step=lab.graph.cost().filters, iterations="exact")
    goal = Goal(lab, settings)
    lab.held = {}
    return _choose(lab, stage, settings, goal, counts_of(lab.graph, stage.plan, goal.times))[0]


class Goal:
    """When a walk ends, and how far one step of it goes."""

    def __init__(self, lab: Lab, settings: Settings) -> None:
        self.times = lab.times if settings.needs_latency else None
        self._settings = settings
        self.whole = whole_counts(lab.graph, self.times)
        self._resource = settings.percentage_of
        total = left_of(self.whole, self._resource)
        self._limit = total - (settings.percentage / 100 - SLACK) * total
        if settings.iterations == "origin":
            steps = origin_iterations(self.whole.filters, settings.filters_per_step,
                                      settings.percentage)
            self._limit = self.whole.filters - steps * settings.filters_per_step

    def met(self, counts: Counts) -> str:
        """Which end is reached, in words; '' if none is."""
        if self._settings.ratios:
            return ""
        if left_of(counts, self._resource) <= self._limit:
            return "the percentage is reached"
        if self._settings.macs is not None and counts.macs <= self._settings.macs:
            return "the MACs are reached"
        return ""

    def ends_step(self, now: Counts) -> Callable[[Counts], bool]:
        """Whether a step that begins with these counts has taken its share, or the walk ends."""
        resource, left = self._after_step(now)
        is_whole = self._settings.iterations == "whole"
        return lambda counts: left_of(counts, resource) <= left or (
            not is_whole and bool(self.met(counts)))

    def asked(self, before: Counts, after: Counts) -> dict[str, float]:
        """Share of the whole network that was to be gone after the step between these.

        Of the step's own resource; of the walk's, if its end has cut the step short.
        """
        if self._settings.ratios:
            return {}
        resource, left = self._after_step(before)
        ends = [(self._resource, self._limit)]
        if self._settings.macs is not None:
            ends.append(("macs", self._settings.macs))
        left = max(left, 0, *(limit for of, limit in ends if of == resource))
        met = [(of, limit) for of, limit in ends if left_of(after, of) <= limit]
        if met and left_of(after, resource) > left:
            resource, left = met[0]
        total = left_of(self.whole, resource)
        return {resource: 1 - left / total} if total else {}

    def gone(self, counts: Counts) -> dict[str, float]:
        """Share of every resource that is gone, of the whole network's."""
        return gone_of(self.whole, counts)

    def _after_step(self, now: Counts) -> tuple[str, float]:
        """The resource of which a step takes its share, and how much it leaves."""
        if not self._settings.step:
            return "filters", float(now.filters - self._settings.filters_per_step)
        budget = budget_of(self._settings.step)
        return budget.resource, budget.enough(self.whole, now)

    def percentage(self, counts: Counts) -> float:
        """Of the filters removed."""
        return 100 * (1 - counts.filters / self.whole.filters) if self.whole.filters else 0.0


def _choose(lab: Lab, stage: Stage, settings: Settings, goal: Goal, now: Counts,
            ) -> tuple[Selection, Scores]:
    """What the next step cuts, and by which scores; none if they change with every removal."""
    floors = settings.floors.settled(settings.percentage)
    if settings.ratios:
        scores = lab.scores(stage, settings)
        return select_ratios(lab.graph, scores, settings.ratios, start=stage.plan, floors=floors,
                             round_to=settings.round_to, held=lab.held), scores
    held = {**not_chosen(lab.graph, settings.layer_types, settings.only_follow), **lab.held}
    rules: dict[str, Any] = {
        "start": stage.plan, "floors": floors, "round_to": settings.round_to,
        "filters_only": settings.percentage_of == "filters", "scope": settings.scope,
        "held": held, "times": goal.times}
    enough = goal.ends_step(now)
    if settings.one_by_one:
        return select_one_by_one(lab.graph, lab.rescore(stage, settings), enough, **rules), {}
    scores = lab.scores(stage, settings,
                        lambda scores: select(lab.graph, scores, enough, **rules).plan)
    return select(lab.graph, scores, enough, **rules), scores


def _stuck(bound: Mapping[str, str], graph: Graph) -> str:
    reasons = [f"{group} ({why})" for group, why in {**bound, **graph.frozen}.items()]
    return "nothing more may be cut: " + "; ".join(reasons)


def digest(plan: Plan) -> dict[str, str]:
    """Group -> hash of the channels that stay."""
    return {g: hashlib.sha256(str(kept.tolist()).encode()).hexdigest()[:16]
            for g, kept in sorted(plan.kept.items())}


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

    def latency(self, model: nn.Module) -> Mapping[str, float]:
        return {"latency_ms": float("nan")}


def trajectory(model: nn.Module, example: Example, *, train: Callable[[nn.Module], object],
               evaluate: Callable[[nn.Module], float], percentage: float = 100.0,
               filters_per_step: int | None = None, step: Mapping[str, float] | None = None,
               percentage_of: str = "filters", ratios: Mapping[str, float] | None = None,
               scope: str = "global", layer_types: str = "all", only_follow: Sequence[str] = (),
               one_by_one: bool = False, retrain_epochs: int,
               criterion: str | Criterion | Score = "l1",
               criterion_options: Mapping[str, object] | None = None, flops_penalty: float = 0.0,
               ranking: str = "merged", batches: Sequence[Batch] | None = None,
               loss: Loss = nn.functional.cross_entropy,
               floors: Floors | Mapping[str, object] | None = None,
               round_to: int = 1, ignore: Sequence[str] = (), normalize: str = "auto",
               settle_batches: int = 0, certify: bool = True, seed: int = 0, fold: bool = False,
               norm_batches: int = 0) -> Iterator[Step]:
    """Prune `model` step by step with your own training; the same code that a trial runs.

    train: trains the model it is given for one epoch, in place (make the optimiser inside: the
        tensors shrink between steps). evaluate: its accuracy. After every step `model` itself is
        cut and carries that step's weights.
    percentage: to remove, of the convolution output channels or another resource
        (`percentage_of`); or, in one step, `ratios`, {layer or parent module: share of its own}.
    filters_per_step: convolution output channels that go in a step; or `step`, {resource: amount},
        below 1 a share of the whole network's.
    scope, layer_types, only_follow, one_by_one: as `prune` takes them.
    criterion: 'taylor' and its like need `batches` for the first ranking; later ones ride on the
        last retrain epoch (`ranking='merged'`) or take a pass each (`'pass'`).
    criterion_options, flops_penalty, settle_batches, fold: as `prune` takes them. norm_batches: of
        `batches`, on which batch norms are measured afresh after a cut, before it is judged.

    Yields a Step for the network as given (number 0) and for every step. Stops early, cleanly,
    when floors allow nothing more; TargetError if nothing at all can go. Raises ConfigError before
    anything is touched; and if a step fails, `model` is as the last one left it.
    """
    refused, wrong = Mistakes(), []
    wanted, limits = understood(refused, criterion, criterion_options, floors, normalize,
                                flops_penalty, settle_batches)
    if not is_number(percentage) or not 0 < percentage <= 100:
        wrong.append(f"percentage: {percentage!r} must be above 0 and at most 100")
    if filters_per_step is not None and filters_per_step < 1:
        wrong.append(f"filters_per_step: {filters_per_step} must be at least 1")
    if (filters_per_step is not None) + bool(step) + bool(ratios) != 1:
        wrong.append("give one of filters_per_step, step and ratios")
    if retrain_epochs < 0:
        wrong.append(f"retrain_epochs: {retrain_epochs} must not be negative")
    if wanted.wants and batches is None:
        wrong.append("this criterion weighs activations: give batches=[(input, target), ...]")
    if norm_batches and not batches:
        wrong.append("norm_batches: give batches=[(input, target), ...] to measure norms on")
    if wrong:
        refused.add("trajectory: " + "; ".join(wrong) + ".")
    with refused:
        settings = Settings(
            filters_per_step or 1, percentage, None, wanted, normalize, ranking, limits, round_to,
            certify, seed, flops_penalty, settle_batches, percentage_of, step or {}, "exact", scope,
            layer_types, only_follow, one_by_one, ratios or {}, fold=fold,
            norm_batches=norm_batches)
    refused.tell()
    return _own_steps(model, example, settings, ignore, loss,
                      _OwnWork(train, evaluate, retrain_epochs, batches or []))


def _own_steps(model: nn.Module, example: Example, settings: Settings, ignore: Sequence[str],
               loss: Loss, work: _OwnWork) -> Iterator[Step]:
    device = next(model.parameters()).device
    lab = Lab(copied(model).cpu(), example, work, store=NoStore(), ignore=ignore, loss=loss,
              place=lambda module: module.to(device))
    plan = lab.graph.whole()
    start = lab.first("given", lambda _: [])
    for step in walk(lab, start, settings):
        if isinstance(step, Path):
            if not step.reached and len(step.steps) == 1:
                raise TargetError(step.reason)
            return
        if step.number:
            with Transaction(model):
                cut(model, _in(lab.graph, plan), step.plan)
                rebuild(model, {}, step.stage.tensors)
            plan = step.plan
        yield step


def _in(graph: Graph, plan: Plan) -> Plan:
    """The same plan over the groups that the graph still cuts."""
    return graph.plan({g.name: plan.kept[g.name] for g in graph.groups})
