"""One run from start to end: data, network, baseline, trajectory, final fine-tune.

`Experiment` holds what all runs of a configuration share and need not be made twice: the data on
the device, the traced network, the baseline. A trial is one walk through it with its own settings.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness import train as training
from harness.analysis.costs import gops
from harness.analysis.criterion_lab import Comparison, compare
from harness.analysis.sensitivity import (
    KINDS,
    RATIOS,
    Sensitivities,
    Sensitivity,
    Suggestion,
    suggest,
)
from harness.checking import check_loss, check_pruning
from harness.config import RunConfig
from harness.data import Data
from harness.engine.cost import Cost, Work
from harness.engine.criteria import CRITERIA, criterion_of
from harness.engine.evidence import Batch
from harness.engine.graph import Plan
from harness.engine.lineage import Difference, channel_difference, removed_channels
from harness.engine.selection import select
from harness.engine.sparsity import held_at_zero, make_zero, shares_of, zeroed
from harness.engine.targets import gone_of, whole_counts
from harness.engine.tracing import trace
from harness.engine.work import Gradients, gradients, work
from harness.errors import ConfigError, TrainingError
from harness.evaluate import evaluate, latencies
from harness.export.record import record
from harness.loading import architecture, digest_of_source, load_data, model_facts, started
from harness.losses import Mixture
from harness.models.weights import digest_of
from harness.rounding import rounded_up
from harness.runtime import bits, code_version, device_of, seed_of, seeded, settle
from harness.store import FolderStore, Hold, Shelf, Store, key_of
from harness.trajectories import EpochRow, Lab, Observe, Path, Stage, Step, walk, would_go
from harness.translation import recipe_of, settings_of, terms_of

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Watcher(Protocol):
    """A progress display, or nothing."""

    def step(self, number: int, text: str, percentage: float) -> None: ...
    def epoch(self, done: int, total: int, text: str = "") -> None: ...


@dataclass(frozen=True)
class Trial:
    """What one walk found. finals: step number -> that step after the final fine-tune.

    stopped: whoever watched it ended it, and its last step was not fine-tuned. spent: key of a
    stage -> FLOPs that training it took, the baseline's not among them.
    """

    steps: Sequence[Step]
    finals: Mapping[int, Stage]
    reason: str
    reached: bool
    stopped: bool = False
    spent: Mapping[str, int] = field(default_factory=dict)

    @property
    def last(self) -> Step:
        return self.steps[-1]

    @property
    def final(self) -> Stage:
        return self.finals[self.last.number]

    @property
    def stages(self) -> list[Stage]:
        """Every stage that this trial trained or found trained, once; not the baseline."""
        found = [s.stage for s in self.steps if s.number or s.stage.facts.get("is_prepared")]
        found += [stage for number, stage in self.finals.items() if number]
        return list({stage.key: stage for stage in found}.values())


@dataclass(frozen=True)
class Sparse:
    """A network with zeros. shares: layer -> asked; cut: before the fine-tune, final: behind it."""

    shares: Mapping[str, float]
    cut: Stage
    final: Stage


@dataclass
class Training:
    """The configured training as `Work`: what a trajectory asks for.

    judged_by: whose validation split says what a network is worth, if not the data's own.
    teacher: gives the network that lessons come from, where it runs. whole: the network before any
    cut, whatever its weights, beside which latencies are measured. team: who trains together.
    """

    config: RunConfig
    data: Data
    watcher: Watcher | None = None
    judged_by: Data | None = None
    teacher: Callable[[], nn.Module] | None = None
    whole: Callable[[], nn.Module] | None = None
    team: training.Team = training.SOLO
    identity: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        terms = asdict(terms_of(self.config)) if terms_of(self.config) != training.PLAIN else None
        self.identity = {
            "retrain": self.facts(recipe_of(self.config, "retrain")),
            "ranking": {"examples": self.config.prune.ranking_examples,
                        "data": self.config.prune.ranking_data,
                        "batch_size": self.config.retrain.batch_size,
                        **({"loss": terms} if terms else {}), **self._whose()}}

    def facts(self, recipe: training.Recipe) -> dict[str, Any]:
        """What a stage is known by that this recipe trains here."""
        return training.facts(recipe) | self._whose()

    def _whose(self) -> dict[str, Any]:
        """Whose examples are trained on and judged by, where that is not all of them."""
        if self.judged_by is None:
            return {}
        return {"trained_on": self.data.fingerprint, "judged_by": self.judged_by.fingerprint}

    def retrain(self, model: nn.Module, seed: int, observe: Observe) -> list[EpochRow]:
        return self.fit(model, recipe_of(self.config, "retrain"), seed, observe)

    def fit(self, model: nn.Module, recipe: training.Recipe, seed: int,
            observe: Observe | None = None) -> list[EpochRow]:
        """Train in place on the training split; validation after every epoch."""
        if self.config.devices != self.team.size:
            raise ConfigError(f"devices: {self.config.devices} are asked for, and {self.team.size} "
                              "would train. Several train in `harness run`; elsewhere leave it at "
                              "1 (studies use several cards by --agents).")
        watcher = self.watcher
        teacher = self.teacher() if self.teacher and recipe.lessons.are_given else None
        with seeded(seed + self.team.rank):  # dropout: other masks for others' examples
            rows = training.train(
                model, self.data.train, recipe, seed=seed, autocast=self.config.autocast,
                validate=self._score,
                on_epoch=(lambda done, total: watcher.epoch(done, total)) if watcher
                else (lambda done, total: None), observe=observe or nullcontext, teacher=teacher,
                team=self.team)
        return [EpochRow(r.train_loss, r.val.loss, r.val.accuracy, r.lr, r.train_accuracy,
                         r.val.top5) for r in rows]

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        score = self._score(model)
        return score.accuracy, score.loss

    def _score(self, model: nn.Module) -> training.Score:
        found = self.team.judged(lambda split: evaluate(model, split),
                                 (self.judged_by or self.data).val)
        return training.Score(found.accuracy, found.loss, found.top5)

    def batches(self) -> Iterator[Batch]:
        prune, size = self.config.prune, self.config.retrain.batch_size
        split = self.data.val if prune.ranking_data == "val" else self.data.train
        count = prune.ranking_examples or len(split.targets)
        pairs = list(zip(split.inputs[:count].split(size), split.targets[:count].split(size)))
        yield from pairs[-1:] if prune.ranking_data == "last_batch" else pairs

    def latency(self, model: nn.Module) -> dict[str, float]:
        """latency_ms of one forward of one picture, and latency_share of the whole network's.

        Medians of ten, the two taking turns, so that a busy machine hurts both.
        """
        models = {"": model, **({"whole": self.whole()} if self.whole else {})}
        found = {name: each.median_ms for name, each in
                 latencies(models, self.data.val.inputs[:1], rounds=10).items()}
        return {"latency_ms": found[""], "latency_share": found[""] / found.get("whole", found[""])}


class Experiment:
    """What the runs of one configuration share; the baseline is trained when it is asked for."""

    def __init__(self, config: RunConfig, store: Store, watcher: Watcher | None = None,
                 team: training.Team = training.SOLO) -> None:
        """Raises ConfigError, before anything is trained, for settings that do not fit.

        team: the processes that run this together, each with its own store or none.
        """
        self.config, self.watcher, self.team = config, watcher, team
        self.store = team.store(store)
        if config.devices > 1:
            self.store = Shelf(self.store, f"{config.devices}-devices")
        check_pruning(config)
        self._settings = settings_of(config)
        self.device = team.device(device_of(config.device))
        settle(config.threads)
        data = load_data(config)
        check_loss(config, data)
        self.data = data.to(self.device)
        self.chosen = self.data.only(config.adapt.classes) if config.adapt.classes else self.data
        self._root = {
            "kind": "baseline", "data": data.fingerprint, "model": model_facts(config),
            "weights": digest_of(config.model.weights, config.model.name),
            "source": digest_of_source(config.model.name),
            "train": training.facts(recipe_of(config, "baseline")), "seed": config.seed,
            "replicate": config.replicate, "memory_format": config.memory_format,
            "autocast": config.autocast, "bits": bits(self.device, config.threads)}
        self.template, self.new_weights = started(config, data)
        example = data.val.inputs[:8].contiguous()
        root = getattr(self.store, "root", None)
        self._latency_file = root.parent / "latency.json" if root else None
        self._lab = Lab(self.template, example, self._training(config), store=self.store,
                        ignore=config.prune.ignore, place=self.place,
                        latency_file=self._latency_file)
        self._settings.check(self._lab.graph)

    @property
    def new_weights_told(self) -> str:
        """Which tensors begin anew beside given weights, in words; '' if none."""
        names = self.new_weights
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        return ", ".join(names[:6]) + more

    @property
    def key(self) -> str:
        """By which the store knows the whole network, trained."""
        return key_of(self._root)

    @cached_property
    def trained(self) -> Stage:
        """The whole network, trained on all; found in the store if it was trained before."""
        key = self.key
        recipe = recipe_of(self.config, "baseline")
        work = self._training(self.config)
        if self.watcher:
            self.watcher.step(0, "baseline", 0.0)
        return self._lab.first(key, lambda model: work.fit(model, recipe, seed_of(key)))

    @cached_property
    def baseline(self) -> Stage:
        """The same, judged by the classes that it is to be pruned for."""
        if not self.config.adapt.classes:
            return self.trained
        return self.lab(self.config).judged(self.trained, self.chosen.fingerprint)

    def start(self, config: RunConfig) -> Stage:
        """Where pruning begins: the baseline, trained on as `adapt` says."""
        if not config.adapt.epochs:
            return self.baseline
        recipe = replace(recipe_of(config, "retrain"), epochs=config.adapt.epochs, updates=None,
                         until=config.adapt.until)
        work = self._work(config)
        if self.watcher:
            self.watcher.step(0, "train before the first cut", 0.0)
        return self.lab(config).prepared(self.baseline, work.facts(recipe),
                                         lambda model, seed: work.fit(model, recipe, seed))

    def _work(self, config: RunConfig) -> Training:
        """Training as a trial has it, after the baseline."""
        if not config.adapt.classes:
            return replace(self._training(config), teacher=self._teacher,
                           whole=lambda: self._beside)
        data = self.data if config.adapt.train_on == "all" else self.chosen
        return Training(config, data, self.watcher, self.chosen, self._teacher,
                        lambda: self._beside, self.team)

    def _training(self, config: RunConfig) -> Training:
        """Training as the baseline has it, on all and from nobody."""
        return Training(config, self.data, self.watcher, team=self.team)

    @cached_property
    def _beside(self) -> nn.Module:
        return self.place(copy.deepcopy(self.template)).eval()

    def _teacher(self) -> nn.Module:
        return self._lab.model(self.trained)

    @property
    def whole(self) -> Cost:
        """The baseline's cost."""
        return self._lab.graph.cost()

    @property
    def frozen(self) -> Mapping[str, str]:
        """Group -> why it is never cut."""
        return self._lab.graph.frozen

    def place(self, module: nn.Module) -> nn.Module:
        """Where and how networks run here."""
        return module.to(self.device).to(memory_format=MEMORY_FORMATS[self.config.memory_format])

    def trial(self, config: RunConfig, *, macs: int | None = None,
              is_candidate: Callable[[Step], bool] | None = None,
              on_step: Callable[[Step], str | None] = lambda step: None) -> Trial:
        """Walk with these settings; fine-tune the last step, and the first that is a candidate.

        macs: stop at these MACs (a control at matched FLOPs) instead of the percentage.
        is_candidate: whether a network may be chosen; the first is the largest. on_step: told of
        every step as soon as it is done; what it returns is a reason to stop here, or nothing.
        """
        lab = self.lab(config)
        settings = settings_of(config, macs)
        steps: list[Step] = []
        end: Path | None = None
        for event in walk(lab, self.start(config), settings, self.watcher):
            if isinstance(event, Path):
                end = event
                break
            steps.append(event)
            if reason := on_step(event):
                ends = {event.number: event.stage}
                return Trial(steps, ends, reason, False, stopped=True,
                             spent=self._spent(config, steps, ends))
        assert end is not None
        worth = {s.number: s for s in [*self._first(steps, is_candidate), steps[-1]]}
        if self.watcher:
            self.watcher.step(steps[-1].number, "final fine-tune", steps[-1].percentage)
        finals = {number: self.finetune(lab, config, step) for number, step in worth.items()}
        return Trial(steps, finals, end.reason, end.reached,
                     spent=self._spent(config, steps, finals))

    def _spent(self, config: RunConfig, steps: Sequence[Step], finals: Mapping[int, Stage],
               ) -> dict[str, int]:
        seen = len(self._work(config).data.train)
        spent = {s.key: self.training_flops(s, config.finetune, seen) for s in finals.values()}
        spent |= {s.stage.key: self.training_flops(s.stage, config.retrain, seen)
                  for s in steps if s.number}
        before = config.retrain.model_copy(update={"updates": None})  # see `start`
        return spent | {s.stage.key: self.training_flops(s.stage, before, seen) for s in steps
                        if s.stage.facts.get("is_prepared")}

    def plan(self, key: str) -> Plan | None:
        """What a stage kept, if the store still has it; its weights are not read."""
        record = self.store.get(key, prefix="none of them")
        return None if record is None else self._lab.graph.plan(record.facts["kept"])

    def cost(self, plan: Plan) -> Cost:
        """Counts of the network cut by a plan."""
        return self._lab.graph.cost(plan)

    def kept_filters(self, plan: Plan) -> dict[str, list[int]]:
        """Convolution -> original numbers of the filters that a plan keeps."""
        graph = self._lab.graph
        return {weight.removesuffix(".weight"): plan.parameters.get(weight, {}).get(
            dim, torch.arange(graph.shapes[weight][dim])).tolist()
            for weight, (dim, _) in graph.convolutions.items()}

    def filter_norms(self, stage: Stage) -> dict[str, Tensor]:
        """Convolution -> (filters,) mean |weight| of each filter."""
        return {weight.removesuffix(".weight"): stage.tensors[weight].float().movedim(
            dim, 0).flatten(1).abs().mean(1)
            for weight, (dim, _) in self._lab.graph.convolutions.items()}

    def record(self, plan: Plan, lineage: Mapping[str, Any]) -> dict[str, Any]:
        """What a file of the network cut by a plan says of itself, see `export.record`."""
        return record(self.config, self.data, self.cost(plan),
                      model=architecture(self.config, self.data), lineage=lineage)

    def work(self, plan: Plan) -> Work:
        """What the network cut by a plan multiplies for a picture, forward and in training."""
        return work(self._lab.graph, self._gradients, plan)

    @cached_property
    def _gradients(self) -> Gradients:
        return gradients(self.template, self._lab.example)

    def training_flops(self, stage: Stage, section: Any, seen: int) -> int:
        """That training a stage took: forward and backward, 2 x MACs; evaluation is not counted.

        section: of the configuration, by which it was trained; seen: examples of an epoch.
        """
        examples = len(stage.epochs) * seen
        if section.updates is not None:
            examples = min(examples, section.updates * section.batch_size)
        return examples * self.work(stage.plan).training_flops

    @property
    def baseline_flops(self) -> int:
        """That training the baseline took."""
        return self.training_flops(self.trained, self.config.baseline, len(self.data.train))

    def gops(self, stage: Stage) -> dict[str, float]:
        """Counted work and memory of a stage's network beside the whole one's, see `costs.gops`."""
        graph = self._lab.graph
        return gops(self.work(stage.plan), graph.cost(stage.plan), self.work(graph.whole()),
                    self.whole, self.config.retrain.batch_size)

    def channels_gone(self, percentages: Sequence[float]) -> dict[str, dict[str, object]]:
        """What each percentage would take from the baseline in one cut; nothing is cut.

        percentage -> pruned: {layer: original channels}; prunePerc: the exact percentage of the
        configured resource; removed: of filters, parameters and FLOPs; reached: whether the floors
        allow it all.
        """
        found: dict[str, dict[str, object]] = {}
        for percentage in percentages:
            settings = replace(self._settings, percentage=float(percentage))
            chosen = would_go(self.lab(self.config), self.baseline, settings)
            whole = whole_counts(self._lab.graph)
            gone = {of: 100 * share for of, share in gone_of(whole, chosen.counts).items()}
            found[f"{percentage:g}"] = {
                "prunePerc": gone.get(settings.percentage_of), "reached": chosen.reached,
                "removed": gone, "pruned": self.removed(chosen.plan)}
        return found

    def removed(self, plan: Plan) -> dict[str, list[int]]:
        """Layer -> original output channels that a plan removes."""
        return removed_channels(self._lab.graph, plan)

    def difference(self, one: Plan, other: Plan) -> Difference:
        """How much two plans differ in the channels that they remove, by layer and in total."""
        return channel_difference(self._lab.graph, one, other)

    def epochs_of(self, section: Any) -> float:
        """Passes over the training split that a training section asks for."""
        if section.updates is None:
            return float(section.epochs)
        return float(section.updates * section.batch_size / len(self.data.train))

    def scratch(self, twin: Stage, epochs: int) -> Trial:
        """A control: the twin's widths with new weights, trained as the baseline for so long."""
        recipe = replace(recipe_of(self.config, "baseline"), epochs=epochs, updates=None)
        work = self._work(self.config)
        if self.watcher:
            self.watcher.step(1, "from scratch", 0.0)
        stage = self.lab(self.config).newborn(
            twin, work.facts(recipe), self.key, lambda model, seed: work.fit(model, recipe, seed))
        cost = self._lab.graph.cost(stage.plan)
        percentage = 100 * (1 - cost.filters / self.whole.filters)
        step = Step(1, percentage, stage.accuracy, stage.accuracy, cost, {}, stage,
                    pruned=self.removed(stage.plan))
        return Trial([step], {1: stage}, "trained from scratch", True,
                     spent={stage.key: self.training_flops(stage, self.config.baseline,
                                                           len(work.data.train))})

    def rounded(self, config: RunConfig, steps: Sequence[Stage], to: int) -> Trial:
        """A trial's widths rounded up to multiples of `to`, retrained as its last step was.

        steps: the stages of its trajectory as far as the network goes, see `rounded_up`. With
        nothing to round the trial has the one step that there was.
        """
        lab = self.lab(config)
        settings = settings_of(config)
        parent, plan = rounded_up(lab.graph, steps, lambda stage: lab.scores(stage, settings), to)
        is_done = plan == steps[-1].plan
        if self.watcher:
            self.watcher.step(1, f"widths in multiples of {to}", 0.0)
        stage = steps[-1] if is_done else lab.step(parent, plan, settings,
                                                   retrains=bool(steps[-1].epochs))
        cost = self._lab.graph.cost(plan)
        step = Step(1, 100 * (1 - cost.filters / self.whole.filters),
                    float(stage.facts["accuracy_cut"]), stage.accuracy, cost, {}, stage,
                    pruned=self.removed(plan))
        finals = {1: self.finetune(lab, config, step)}
        return Trial([step], finals, "all widths are multiples already" if is_done else
                     f"widths rounded up to multiples of {to}", True,
                     spent=self._spent(config, [step], finals))

    @staticmethod
    def _first(steps: Sequence[Step], is_candidate: Callable[[Step], bool] | None) -> list[Step]:
        return [step for step in steps if is_candidate and is_candidate(step)][:1]

    def least_macs(self, config: RunConfig) -> int:
        """No network within the floors has fewer MACs; 0 where that depends on the way there."""
        graph, settings = self._lab.graph, settings_of(config)
        floors = settings.floors
        if (floors.relative or floors.block_min_params or floors.node_min or floors.node_min_params
                or floors.node_min_macs or floors.counting == "current"):
            return 0
        scores = {group.name: torch.zeros(group.channels) for group in graph.groups}
        smallest = select(graph, scores, lambda counts: False, floors=floors,
                          round_to=settings.round_to,
                          filters_only=settings.percentage_of == "filters")
        return smallest.counts.macs

    def lab(self, config: RunConfig) -> Lab:
        """The shared network and store, with a trial's own way of retraining."""
        return Lab(self.template, self._lab.example, self._work(config), store=self.store,
                   place=self.place, graph=self._lab.graph, latency_file=self._latency_file,
                   loss=Mixture(terms_of(config)).at(0))

    def finetune(self, lab: Lab, config: RunConfig, step: Step) -> Stage:
        """The leaf stage behind a step; without fine-tune epochs it is the step itself."""
        if not self.epochs_of(config.finetune) or not step.number:
            return step.stage
        recipe = recipe_of(config, "finetune")
        work = self._work(config)

        def fit(model: nn.Module, seed: int) -> list[EpochRow]:
            return work.fit(model, recipe, seed)

        try:
            if config.finetune.weights == "new":
                return lab.newborn(step.stage, work.facts(recipe), self.key, fit)
            return lab.leaf(step.stage, work.facts(recipe), fit)
        except TrainingError as error:
            raise TrainingError(f"final fine-tune of step {step.number}: {error}") from error

    def compare_criteria(self, *, num_channels: int, num_batches: int | None = None) -> Comparison:
        """All criteria on the baseline, over the first batches of the training split."""
        criteria = {**CRITERIA, self.config.prune.criterion: criterion_of(self._settings.criterion)}
        data = islice(self._work(self.config).batches(), num_batches)
        stage = self.baseline
        return compare(self.model(stage), self._lab.graph, stage.plan, data,
                       Mixture(terms_of(self.config)).at(0), criteria, num_channels=num_channels,
                       share=self.config.prune.percentage / 100, seed=self.config.seed)

    def sparsified(self) -> Sparse:
        """The baseline with the zeros of `sparsify`, and behind the fine-tune that keeps them."""
        sparsify, lab = self.config.sparsify, self.lab(self.config)
        shares = shares_of(self.template, sparsify.amount, sparsify.layers)
        places: dict[str, Tensor] = {}

        def zero(model: nn.Module) -> dict[str, Tensor]:
            """Chosen once, on the baseline."""
            if not places:
                places.update(zeroed(self.model(self.baseline), shares, sparsify.scope))
            return places

        def cut(model: nn.Module, seed: int) -> list[EpochRow]:
            make_zero(model, zero(model))
            return []

        def fit(model: nn.Module, seed: int) -> list[EpochRow]:
            with held_at_zero(model, zero(model)):
                return work.fit(model, recipe, seed)

        chosen = {"shares": shares, "scope": sparsify.scope}
        stage = lab.leaf(self.baseline, chosen, cut, kind="zeros")
        recipe = recipe_of(self.config, "finetune")
        if not self.epochs_of(self.config.finetune):
            return Sparse(shares, stage, stage)
        if self.watcher:
            self.watcher.step(1, "fine-tune, zeros stay", 0.0)
        work = self._work(self.config)
        return Sparse(shares, stage, lab.leaf(stage, work.facts(recipe), fit,
                                              kind="finetune_zeros"))

    def sensitivity(self, ratios: Sequence[float] = RATIOS, *, kinds: Sequence[str] = KINDS,
                    rule: str = "count", flops: float | None = None,
                    ) -> tuple[Sensitivity, Suggestion | None]:
        """Of the baseline's layers, on validation; with flops, ratios that leave such a share."""
        stage, lab, watcher = self.baseline, self.lab(self.config), self.watcher
        scores = lab.scores(stage, self._settings)
        measured = Sensitivities(
            self.model(stage), lab.graph, stage.plan, self.chosen.val, store=self.store,
            identity={"data": self.chosen.fingerprint, "bits": self._root["bits"],
                      "memory_format": self.config.memory_format},
            told=watcher.epoch if watcher else lambda done, total, text: None)
        found = replace(measured.measure(
            ratios, scores=scores, criterion=self.config.prune.criterion, kinds=kinds, rule=rule),
            measure=self.data.measure)
        if flops is None:
            return found, None
        floors = self._settings.floors.by_name(lab.graph)
        return found, suggest(lab.graph, found, scores, flops, floors=floors,
                              round_to=self._settings.round_to)

    def stage(self, key: str) -> Stage | None:
        """A stage made before, if the store still has it."""
        return self._lab.find(key)

    def model(self, stage: Stage) -> nn.Module:
        """The stage's network, where it runs, in eval mode."""
        return self._lab.model(stage)

    def found(self) -> Stage | None:
        """The whole network as trained, if the store has it; nothing is trained."""
        return self.stage(self.key)

    def cost_of(self, model: nn.Module) -> Cost:
        """Another network, cut or not, counted."""
        return trace(copy.deepcopy(model).cpu(), self._lab.example).cost()

    def test_accuracy(self, stage: Stage) -> float:
        """Accuracy on the test split: for the report, never for a choice."""
        return evaluate(self.model(stage), self.chosen.read_test()).accuracy


def stages(home: FilePath, hold: Hold | None = None,
           say: Callable[[str], None] = lambda text: None) -> FolderStore:
    """The stage store of a home, for the code as it is. hold, say: see FolderStore."""
    return FolderStore(home / "stages", version=code_version(), hold=hold, say=say)
