"""The pictures of a study, and of one run: drawn at the end, kept in MLflow and in the home.

Everything that is measured here is measured on the validation split. A picture that cannot be drawn
is told, and costs nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from harness.analysis import curves as curve_pictures
from harness.analysis import harm
from harness.analysis import layer_pictures as by_layer
from harness.analysis.curves import Curve, Spot
from harness.analysis.feature_maps import feature_maps, first_filters
from harness.analysis.harm import judge
from harness.analysis.ink import Picture, save
from harness.config import short
from harness.engine.cost import FLOPS_PER_MAC, Cost
from harness.engine.graph import Plan
from harness.engine.inventory import blocks, is_in
from harness.errors import StoreError, StudyError, TrackingError
from harness.experiment import Experiment
from harness.sweep.controls import Control
from harness.sweep.ledger import ordinal_of
from harness.sweep.question import Question
from harness.sweep.results import AGAIN, CurvePoint, Final, Result
from harness.tracking import Tracker
from harness.trajectories import Stage

Found = tuple[FrozenTrial, Result]
FOLDER = "pictures"
SHOWN = 4  # pictures whose feature maps are drawn
MOST_WEIGHED = 1000  # trials, over which importances are computed in seconds


@dataclass
class Album:
    """Pictures as they are made. told: why one was not, in sentences."""

    pictures: list[Picture] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A mistake in a picture must not cost the study that it is of."""
        try:
            yield
        except (StoreError, TrackingError):
            raise
        except Exception as error:
            self.told.append(f"the picture {what} was not drawn: {type(error).__name__}: {error}")

    def add(self, what: str, make: Callable[[], Picture | None]) -> None:
        with self.attempt(what):
            picture = make()
            if picture is not None:
                self.pictures.append(picture)

    def keep(self, folder: Path, tracker: Tracker, run_id: str) -> None:
        """Each as PNG and CSV, in the folder and among the artifacts of the run."""
        written: list[Path] = []
        for picture in self.pictures:
            with self.attempt(picture.name):
                written += save([picture], folder)
        tracker.log_files(run_id, written, FOLDER)


@dataclass(frozen=True)
class Pruned:
    """A network that pictures show in detail, and the plans of the steps that led to it."""

    name: str
    stage: Stage
    plans: Sequence[Plan]


def of_study(experiment: Experiment, question: Question, results: Sequence[Found],
             controls: Sequence[Control], study: optuna.Study,
             champion: tuple[int, Final] | None) -> Album:
    """All that a study has to show. champion: the number of its trial, and its network."""
    album = Album()
    spots = _Spots(experiment)
    found: list[Curve] = []
    with album.attempt("of the trials"):
        found += [curve for trial, result in results
                  for curve in spots.of_trial(ordinal_of(trial), result, champion)]
        found += [spots.of_control(c) for c in controls if c.result]
    _curves(album, experiment, found, spots.baseline, _budget(question))
    album.add("search_cost", lambda: _search_cost(
        question, results, experiment.data.measure))
    album.add("setting_importance", lambda: _importance(study, experiment.data.measure))
    if champion is not None:
        with album.attempt("of the champion"):
            number, final = champion
            points = next(r for t, r in results if ordinal_of(t) == number).curve
            pruned = Pruned("champion", _stage(experiment, final.key), [
                _plan(experiment, p) for p in points if p.step <= final.step])
            _in_detail(album, experiment, pruned)
            album.add("channel_difference",
                      lambda: _differences(experiment, pruned, controls))
    return album


def of_run(experiment: Experiment, result: Result, pruned: Pruned) -> Album:
    """What one trajectory has to show."""
    album = Album()
    spots = _Spots(experiment)
    with album.attempt("of the steps"):
        found = spots.of_trial(0, result, (0, result.last), name="the run")
        _curves(album, experiment, found, spots.baseline, None)
    _in_detail(album, experiment, pruned)
    return album


def _curves(album: Album, experiment: Experiment, found: Sequence[Curve], baseline: Spot,
            budget: float | None) -> None:
    draw, measure = curve_pictures, experiment.data.measure
    album.add("accuracy_vs_filters_removed", lambda: draw.accuracy_removed(
        found, baseline, measure=measure))
    album.add("accuracy_vs_flops", lambda: draw.accuracy_flops(
        found, baseline, budget, measure=measure))
    album.add("accuracy_vs_training_gflops", lambda: draw.accuracy_training(
        found, baseline, measure=measure))
    album.add("accuracy_vs_latency", lambda: draw.accuracy_latency(
        found, baseline, measure=measure))


def _in_detail(album: Album, experiment: Experiment, pruned: Pruned) -> None:
    """Layer by layer, and on the validation split, beside the baseline."""
    baseline, whole = experiment.baseline, experiment.whole
    cost = experiment.cost(pruned.stage.plan)
    model, small = experiment.model(baseline), experiment.model(pruned.stage)
    names = ("baseline", pruned.name)
    album.add("params_removed_by_layer", lambda: by_layer.removed_bars(
        _params(whole), _params(cost), "layer"))
    album.add("params_removed_by_block", lambda: by_layer.removed_bars(
        *_blocks(model, small), "block"))
    album.add("kept_channels", lambda: by_layer.kept_channels(
        {x.layer: x.filters for x in whole.layers if x.filters},
        [experiment.removed(plan) for plan in pruned.plans]))
    before, after = (experiment.filter_norms(stage) for stage in (baseline, pruned.stage))
    album.add("l1_norms", lambda: by_layer.l1_norms(
        before, after, experiment.kept_filters(pruned.stage.plan), names=names))
    album.add("first_filters", lambda: _first_filters(experiment, pruned, names))
    data = experiment.chosen
    with album.attempt("of who is hurt"):
        first, last = (judge(m, data.val.inputs, data.val.targets, data.num_classes)
                       for m in (model, small))
        album.add("harm_by_class", lambda: harm.by_class(
            first, last, data.labels, names=names, of_pixels=data.task == "pixels"))
        album.add("feature_maps", lambda: feature_maps(
            dict(zip(names, (model, small))), data.val.inputs[:SHOWN], data.val.targets[:SHOWN],
            data.num_classes))
        album.add("calibration", lambda: harm.calibration(first, last, names=names))
        album.add("changed_most", lambda: harm.changed_most(
            data.val.inputs, data.val.targets, first, last, data.labels, names=names))


def _first_filters(experiment: Experiment, pruned: Pruned, names: tuple[str, str],
                   ) -> Picture | None:
    """Of the first convolution that sees the pictures."""
    kept = experiment.kept_filters(pruned.stage.plan)
    weights = experiment.baseline.tensors
    layer = next((name for name in kept if weights[f"{name}.weight"].dim() == 4), None)
    if layer is None:
        return None
    before, after = (stage.tensors[f"{layer}.weight"].float()
                     for stage in (experiment.baseline, pruned.stage))
    return first_filters(before, after, kept[layer], layer, names=names)


def _blocks(model: nn.Module, pruned: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters of both by block; without blocks that hold all that one around them holds."""
    found, left = blocks(model), {block.name: block.params for block in blocks(pruned)}
    shown = {block.name: block.params for block in found if not any(
        outer.name and outer.params == block.params and is_in(block.name, outer.name)
        for outer in found)}
    return shown, {name: left[name] for name in shown}


def _params(cost: Cost) -> dict[str, int]:
    """Of layers that multiply: norms have few."""
    return {x.layer: x.params for x in cost.layers if x.macs}


def _stage(experiment: Experiment, key: str) -> Stage:
    stage = experiment.stage(key)
    if stage is None:
        raise StudyError(f"the stage {key} is no longer in the store")
    return stage


def _plan(experiment: Experiment, point: CurvePoint) -> Plan:
    plan = experiment.plan(point.stage) if point.stage else None
    if plan is None:
        raise StudyError(f"the stage of step {point.step} is no longer in the store")
    return plan


@dataclass
class _Spots:
    """Networks as points of curves."""

    experiment: Experiment
    baseline: Spot = field(init=False)

    def __post_init__(self) -> None:
        stage, whole = self.experiment.baseline, self.experiment.whole
        self._paid = self.experiment.baseline_flops
        self.baseline = Spot(0, stage.accuracy, whole.flops, 1.0, whole.filters, stage.accuracy,
                             float(stage.facts["latency_ms"]), self._paid)

    def of_trial(self, number: int, result: Result, champion: tuple[int, Final] | None, *,
                 name: str = "") -> list[Curve]:
        """Its walk to its last network; networks on the way that were fine-tuned by themselves."""
        title = name or f"trial {number}"
        if champion is not None and champion[0] == number:
            end, role, kind = champion[1], "champion", name or "champion"
        else:
            end, role, kind = result.last, "trial", "trials"
        found = [Curve(title, role, kind, self._walk(result, end))]
        return found + [Curve(title, "trial", "trials", [self._final(final)])
                        for final in result.finals if final != end]

    def of_control(self, control: Control) -> Curve:
        assert control.result is not None
        name = f"{control.name}, replicate {control.replicate}" if control.replicate else (
            control.name)
        kind = {AGAIN: "the champion's settings again", "scratch": "from scratch"}.get(
            control.name, f"control: {control.name}")
        return Curve(name, "control", kind, self._walk(control.result, control.result.last))

    def _walk(self, result: Result, end: Final) -> list[Spot]:
        whole = self.experiment.whole
        spots = [Spot(p.step, p.accuracy, FLOPS_PER_MAC * p.macs, p.macs / whole.macs, p.filters,
                      p.accuracy_cut, p.latency_ms, self._all(p.training_flops))
                 for p in result.curve if p.filters and p.step <= end.step]
        if result.stopped or (spots and spots[-1].training_flops == self._all(end.training_flops)):
            return spots or [self._final(end)]
        return [*spots, self._final(end)]

    def _final(self, final: Final) -> Spot:
        whole = self.experiment.whole
        return Spot(final.step, final.accuracy, FLOPS_PER_MAC * final.macs,
                    final.macs / whole.macs, final.filters, None, final.latency_ms,
                    self._all(final.training_flops), is_final=True)

    def _all(self, training_flops: int | None) -> int | None:
        return None if training_flops is None else self._paid + training_flops


def _budget(question: Question) -> float | None:
    config = question.config
    return config.budget.flops if config.kind == "budget" else None


def _search_cost(question: Question, results: Sequence[Found], measure: str) -> Picture | None:
    if not results:
        return None
    is_budget = question.config.kind == "budget"
    seen: set[str] = set()
    epochs: list[int] = []
    for _, result in results:
        epochs.append(sum(n for key, n in result.epochs.items() if key not in seen))
        seen |= result.epochs.keys()
    if question.config.kind == "binary_search":
        asked = [trial.params["prune.percentage"] / 100 for trial, _ in results]
        holds = [r.reached and question.is_close(r.last.accuracy) for _, r in results]
        held = [max((a for a, h in zip(asked[:n], holds) if h), default=None)
                for n in range(1, len(asked) + 1)]
        return curve_pictures.search_cost(epochs, held, "largest percentage that holds", asked,
                                          holds, measure=measure)
    answers: list[float | None] = []
    leaders: list[tuple[int, Result]] = []  # the trial with the best so far, if there is one
    for trial, result in results:
        tried = [*leaders, (ordinal_of(trial), result)]
        best = question.best(tried)
        leaders = [each for each in tried if best is not None and each[0] == best[0]]
        answers.append(None if best is None else
                       best[1].accuracy if is_budget else best[1].macs / question.macs)
    what = f"{measure} of the champion" if is_budget else "FLOPs of the champion, of the baseline's"
    return curve_pictures.search_cost(epochs, answers, what)


def _importance(study: optuna.Study, measure: str) -> Picture | None:
    """By fANOVA (Hutter et al. 2014); None where there is too little to weigh."""
    done = [t for t in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]) if t.values]
    varied = {name for t in done for name in t.params
              if len({str(other.params.get(name)) for other in done}) > 1}
    values = {t.values[0] for t in done}
    if len(varied) < 2 or len(values) < 2 or not 4 <= len(done) <= MOST_WEIGHED:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    shares: Mapping[str, float] = optuna.importance.get_param_importances(
        study, evaluator=evaluator, params=sorted(varied), target=_first_value)
    return curve_pictures.importance({short(n): s for n, s in shares.items()}, measure)


def _first_value(trial: FrozenTrial) -> float:
    value: Any = trial.values[0]
    return float(value)


def _differences(experiment: Experiment, pruned: Pruned, controls: Sequence[Control],
                 ) -> Picture | None:
    found = {}
    for control in controls:
        plan = experiment.plan(control.result.last.key) if control.result else None
        if plan is not None and control.replicate <= 1 and control.name != "scratch":
            found[control.name] = experiment.difference(plan, pruned.stage.plan)
    return by_layer.channel_differences(found, f"the {pruned.name}") if found else None
