"""What each layer's loss costs alone: accuracy on validation against the share that is gone.

Unstructured: of one layer's weights the smallest are zero. Structured: one group of coupled
channels is masked as if it were cut (see `engine.masked`), since layers that are coupled cannot be
cut one without the other; what is frozen is listed with the reason. One network is measured in all
its forms, without copies and cuts, and what lies in front of a layer is computed once for all
ratios (see `engine.replay`). Nothing is retrained, and layers are measured one at a time: a curve
tells where it hurts first, not what is left after training.

Every curve is kept in the store under what it was measured on: the weights, the validation
pictures, and exactly what was zero or masked.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.analysis.costs import Sheet
from harness.checkpoint import state_of
from harness.console import percent
from harness.engine.floors import Floors
from harness.engine.graph import Graph, Plan
from harness.engine.masked import Forward, Masked, restored
from harness.engine.replay import Replay
from harness.engine.selection import select_ratios
from harness.engine.sparsity import smallest, weights_of
from harness.errors import ConfigError, GraphError, TargetError, unknown
from harness.evaluate import Examples, Measured, batches_of, evaluate
from harness.store import NoStore, Record, Store, key_of, write_whole

KINDS = ("unstructured", "structured")
RULES = ("count", "quantile")
RATIOS = tuple(tenth / 10 for tenth in range(1, 10))
BATCH = 256
TRIED = 8  # pictures on which a replay is compared with a whole forward
Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Curve:
    """One layer's, or one group's.

    name: the layer, or the group's first. layers: all that lose channels together. size: weights
    or channels there are; removed: how many are gone at each ratio; accuracy in [0, 1] and mean
    loss at each, NaN where a layer would be left without channels. reused: found in the store.
    """

    kind: str
    name: str
    layers: tuple[str, ...]
    size: int
    removed: tuple[int, ...]
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    reused: bool = False

    @property
    def label(self) -> str:
        """The name, and how many layers go along."""
        others = len(self.layers) - 1
        return f"{self.name} (+{others} coupled)" if others > 0 else self.name


@dataclass(frozen=True)
class Sensitivity:
    """All curves of a network. baseline: its accuracy on validation, whole; examples: there.

    measure: what accuracy is, in words.
    """

    baseline: Measured
    examples: int
    ratios: tuple[float, ...]
    criterion: str
    rule: str
    curves: tuple[Curve, ...]
    frozen: Mapping[str, str]
    measure: str = "top-1 accuracy"

    def of(self, kind: str) -> tuple[Curve, ...]:
        return tuple(curve for curve in self.curves if curve.kind == kind)

    def drops(self, curve: Curve) -> tuple[float, ...]:
        """Accuracy lost at each ratio, in percentage points."""
        return tuple(100 * (self.baseline.accuracy - a) for a in curve.accuracy)


@dataclass(frozen=True)
class Suggestion:
    """Ratios for `prune.ratios` within a budget: {layer: share of its channels to remove}.

    drop: points that each layer alone may cost by its curve; macs, share: what is left.
    """

    ratios: Mapping[str, float]
    drop: float
    macs: int
    share: float


class Sensitivities:
    """Measures the curves of one network on one split."""

    def __init__(self, model: nn.Module, graph: Graph, plan: Plan, examples: Examples, *,
                 store: Store | None = None, identity: Mapping[str, Any] | None = None,
                 told: Told = lambda done, total, text: None, batch_size: int = BATCH) -> None:
        """plan: by which the model is cut already. identity: what results depend on besides the
        weights, such as the data and the device; told: of progress."""
        self._model, self._graph, self._plan, self._examples = model.eval(), graph, plan, examples
        self._store, self._told, self._batch_size = store or NoStore(), told, batch_size
        self._batches = [inputs for inputs, _ in batches_of(examples, batch_size)]
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        self._identity = {**(identity or {}), "weights": weights_digest(model), "batch": batch_size,
                          "code": code}
        self._masked = Masked(model, graph, plan)
        self._replay: Replay | None = None  # the last one, from which the next may go on

    def measure(self, ratios: Sequence[float] = RATIOS, *, scores: Mapping[str, Tensor],
                criterion: str = "", kinds: Sequence[str] = KINDS,
                rule: str = "count") -> Sensitivity:
        """All curves; the model is as it was afterwards.

        scores: group -> (kept channels,), the lowest go first. rule: `count` removes as many as
        `prune.ratios` would, of n channels int(n (1 - ratio)) stay; `quantile` (seed 003) those
        below the ratio's quantile of the scores, interpolated.
        Raises ConfigError, before anything is measured, for ratios, kinds and rules that are none.
        """
        ratios = checked(ratios, kinds, rule)
        whole = self._whole()
        jobs: list[tuple[str, str]] = []
        if "unstructured" in kinds:
            jobs += [("unstructured", name) for name in weights_of(self._model)]
        if "structured" in kinds:
            jobs += [("structured", group.name) for group in self._graph.groups]
        curves = []
        for done, (kind, name) in enumerate(jobs):
            self._told(done, len(jobs), f"{kind} {name}")
            if kind == "unstructured":
                curves.append(self._of_weights(name, ratios))
            else:
                curves.append(self._of_group(name, ratios, scores[name], rule))
        self._told(len(jobs), len(jobs), "")
        return Sensitivity(whole, len(self._examples.targets), ratios, criterion, rule,
                           tuple(curves), dict(self._graph.frozen))

    def _whole(self) -> Measured:
        found = self._kept({"kind": "whole"}, lambda: [evaluate(
            self._model, self._examples, batch_size=self._batch_size)])[0]
        return found[0]

    def _of_weights(self, layer: str, ratios: Sequence[float]) -> Curve:
        weight = weights_of(self._model)[layer]
        counts = tuple(round(ratio * weight.numel()) for ratio in ratios)
        original = weight.detach().clone()

        @contextmanager
        def zeroing(count: int) -> Iterator[None]:
            weight.copy_(original.masked_fill(smallest(original, count), 0.0))
            yield

        users = [name for name, module in self._model.named_modules()
                 if any(p is weight for p in module.parameters(recurse=False))]

        def make() -> list[Measured]:
            with restored(self._model, [weight]):
                return self._forms(users, [zeroing(count) for count in counts],
                                   [zeroing(counts[-1])])

        found, reused = self._kept({"kind": "weights", "layer": layer, "zero": counts}, make)
        return Curve("unstructured", layer, (layer,), weight.numel(), counts,
                     tuple(m.accuracy for m in found), tuple(m.loss for m in found), reused)

    def _of_group(self, group: str, ratios: Sequence[float], scores: Tensor, rule: str) -> Curve:
        before = self._plan.kept[group]
        stay = [before[_staying(scores, ratio, rule)] for ratio in ratios]
        plans = [self._plan_of(group, kept) for kept in stay]
        layers = self._graph[group].layers
        example = self._batches[0][:2]

        def make() -> list[Measured]:
            forms = [self._masked.without(group, plan, example) for plan in plans if plan]
            last = next((p for p in reversed(plans) if p), None)
            trial = [self._masked.without(group, last, example)] if last else []
            changed = self._masked.changed(group)
            # Numbers that follow a width come in the order of the calls: of all of them.
            measured = iter(self._forms([] if self._graph[group].contracted else changed,
                                        forms, trial))
            return [next(measured) if plan else Measured(math.nan, math.nan) for plan in plans]

        found, reused = self._kept(
            {"kind": "channels", "group": group, "layers": layers,
             "stay": [kept.tolist() for kept in stay]}, make)
        return Curve("structured", layers[0] if layers else group, layers, len(before),
                     tuple(len(before) - len(kept) for kept in stay),
                     tuple(m.accuracy for m in found), tuple(m.loss for m in found), reused)

    def _plan_of(self, group: str, kept: Tensor) -> Plan | None:
        """None if a layer would be left without channels."""
        try:
            return self._graph.plan({**self._plan.kept, group: kept})
        except GraphError:
            return None

    def _forms(self, changed: Sequence[str], forms: Sequence[AbstractContextManager[Any]],
               trial: Sequence[AbstractContextManager[Any]]) -> list[Measured]:
        """The network in each form. changed: modules before which it is the same in all of them;
        none: not known. trial: one form, by which that is tried."""
        replay = self._replay_of(changed, trial)
        found = []
        for form in forms:
            with form as forward:
                if replay is not None:
                    replay.from_the_start()
                runner = _Form(replay or self._model, forward)
                found.append(evaluate(runner, self._examples, batch_size=self._batch_size))
        return found

    def _replay_of(self, changed: Sequence[str], trial: Sequence[AbstractContextManager[Any]],
                   ) -> Replay | None:
        """None where nothing comes before the change, or replaying some pictures fails them."""
        if not changed:
            return None
        some = self._batches[0][:TRIED]
        small = Replay(self._model, changed, [some])
        with trial[0] if trial else nullcontext():
            if not small.skipped or not small.agrees(some):
                return None
        self._replay = Replay(self._model, changed, self._batches, earlier=self._replay)
        return self._replay

    def _kept(self, content: Mapping[str, Any], make: Callable[[], list[Measured]],
              ) -> tuple[list[Measured], bool]:
        """Measured before on the same, or now."""
        key = "sensitivity-" + key_of({**self._identity, **content})
        with self._store.making(key):
            record = self._store.get(key)
            reused = record is not None
            if record is None:
                found = make()
                record = Record({"accuracy": [_known(m.accuracy) for m in found],
                                 "loss": [_known(m.loss) for m in found]}, {})
                self._store.put(key, record)
        pairs = zip(record.facts["accuracy"], record.facts["loss"], strict=True)
        return [Measured(_number(a), _number(b)) for a, b in pairs], reused


class _Form(nn.Module):
    """A network by the way of computing of one of its forms."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model, self._by = model, forward

    def forward(self, batch: Tensor) -> Any:
        return self.model(batch) if self._by is None else self._by(self.model, batch)


def suggest(graph: Graph, found: Sensitivity, scores: Mapping[str, Tensor], flops: float, *,
            floors: Floors = Floors(), round_to: int = 1) -> Suggestion:
    """Ratios that leave a share of the FLOPs, by the measured curves of the whole network.

    Every layer may cost the same number of points by its own curve (read between the ratios along
    straight lines, made to rise); the smallest such number that is enough is taken (bisection).
    Curves may be flat there, at 0 above all: then all layers go the same part of the way along, as
    far as is needed. Counts are exact, floors hold. Layers are taken as if they did not add up:
    retrain. Raises ConfigError for a share outside (0, 1); TargetError if the curves do not lead
    so far.
    """
    check_flops(flops)
    curves = found.of("structured")
    whole = graph.cost().macs

    def costing(most: float) -> dict[str, float]:
        return {c.name: _tolerated(found.ratios, found.drops(c), most) for c in curves}

    def left(ratios: Mapping[str, float]) -> int:
        return select_ratios(graph, scores, _in_thousandths(ratios), floors=floors,
                             round_to=round_to).counts.macs

    def is_enough(ratios: Mapping[str, float]) -> bool:
        return left(ratios) <= flops * whole

    high = max([0.0, *(d for c in curves for d in found.drops(c) if not math.isnan(d))])
    if not is_enough(costing(high)):
        raise TargetError(f"a share of {flops:g} of the FLOPs is further than the curves lead: at "
                          f"ratio {max(found.ratios):g} of every layer "
                          f"{percent(left(costing(high)) / whole)} are left. Ask for more, measure "
                          "larger ratios, or lower prune.floors.")
    if is_enough(costing(0.0)):
        drop, less = 0.0, dict.fromkeys(costing(0.0), 0.0)
    else:
        low, drop = _bisected(0.0, high, lambda most: is_enough(costing(most)))
        less = costing(low)
    more = costing(drop)

    def between(part: float) -> dict[str, float]:
        return {name: start + part * (more[name] - start) for name, start in less.items()}

    _, part = _bisected(0.0, 1.0, lambda part: is_enough(between(part)))
    ratios = _in_thousandths(between(part))
    macs = left(ratios)
    return Suggestion(ratios, drop, macs, macs / whole)


def _in_thousandths(ratios: Mapping[str, float]) -> dict[str, float]:
    """As they are written down: in thousandths, and of layers that lose something alone."""
    short = {name: math.floor(1000 * ratio + 1e-9) / 1000 for name, ratio in ratios.items()}
    return {name: ratio for name, ratio in short.items() if ratio > 0}


def _bisected(low: float, high: float, is_enough: Callable[[float], bool]) -> tuple[float, float]:
    """(not enough, enough), a thousandth apart, between two numbers that are so."""
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return low, high


def weights_digest(model: nn.Module) -> str:
    """Of all parameters and buffers: names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_of(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tables(found: Sensitivity) -> list[Sheet]:
    """For the screen: accuracy of every layer at every ratio; drops of every group; the frozen."""
    heads = tuple(f"{ratio:g}" for ratio in found.ratios)
    sheets = []
    if found.of("unstructured"):
        sheets.append(Sheet(
            f"{found.measure} on validation with zeros in one layer, by share of its weights",
            ("layer", "weights", *heads),
            tuple((c.label, c.size, *map(percent, c.accuracy)) for c in found.of("unstructured")),
            (f"whole: {percent(found.baseline.accuracy)}, {found.examples} pictures; nothing is "
             "retrained.",)))
    if found.of("structured"):
        notes = [f"{c.name} cannot be cut alone: measured with {', '.join(c.layers[1:])}"
                 for c in found.of("structured") if len(c.layers) > 1]
        notes += [f"never cut, hence not measured: {g}: {why}" for g, why in found.frozen.items()]
        sheets.append(Sheet(
            f"drop of {found.measure} in points without channels of one group, by share of them",
            ("group", "channels", *heads),
            tuple((c.label, c.size, *(_points(d) for d in found.drops(c)))
                  for c in found.of("structured")),
            (f"lowest first by {found.criterion}.", *_gaps(found), *notes)))
    return sheets


def save(found: Sensitivity, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json (everything) and NAME.csv (one number a row); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / f"{name}.json", folder / f"{name}.csv"
    write_whole(as_json, (json.dumps(plain(found), indent=1, allow_nan=False) + "\n").encode())
    write_whole(as_csv, as_rows(found).encode())
    return as_json, as_csv


def plain(found: Sensitivity) -> dict[str, Any]:
    """As JSON: NaN is null; which curves were found in the store is left out."""
    curves = [{**asdict(c), "accuracy": [_known(a) for a in c.accuracy],
               "loss": [_known(v) for v in c.loss],
               "drop_points": [_known(d) for d in found.drops(c)]} for c in found.curves]
    for curve in curves:
        del curve["reused"]
    facts = asdict(replace(found, curves=()))
    facts["baseline"] = {name: _known(value) for name, value in facts["baseline"].items()}
    return {**facts, "curves": curves}


def as_rows(found: Sensitivity) -> str:
    """As CSV: kind, layer, layers, size, ratio, removed, accuracy, loss, drop_points."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["kind", "layer", "layers", "size", "ratio", "removed", "accuracy", "loss",
                   "drop_points"])
    for c in found.curves:
        rows.writerows([c.kind, c.name, " ".join(c.layers), c.size, ratio, gone,
                        *("" if math.isnan(v) else f"{v:.6g}" for v in (accuracy, loss, drop))]
                       for ratio, gone, accuracy, loss, drop in
                       zip(found.ratios, c.removed, c.accuracy, c.loss, found.drops(c)))
    return text.getvalue()


def check_flops(flops: float | None, kinds: Sequence[str] = KINDS) -> None:
    """Raises ConfigError for what is no share of the FLOPs, or if no curve would lead there."""
    if flops is None:
        return
    if not 0 < flops < 1:
        raise ConfigError(f"flops: {flops!r} must be a share above 0 and below 1.")
    if "structured" not in kinds:
        raise ConfigError("flops: zeros save none; a plan needs the structured curves.")


def checked(ratios: Sequence[float], kinds: Sequence[str], rule: str) -> tuple[float, ...]:
    """The ratios, ascending, each once. Raises ConfigError with all that is wrong."""
    wrong = [f"ratios: {ratio!r} must be above 0 and below 1." for ratio in ratios
             if not 0 < ratio < 1]
    wrong += [] if ratios else ["ratios: give at least one."]
    wrong += [f"kinds: {unknown('kind', kind, KINDS)}" for kind in kinds if kind not in KINDS]
    wrong += [] if rule in RULES else [f"rule: {unknown('rule', rule, RULES)}"]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return tuple(sorted(set(ratios)))


def _staying(scores: Tensor, ratio: float, rule: str) -> Tensor:
    """(channels,) bool; at least the best one stays."""
    scores = scores.detach().double().cpu()
    if rule == "quantile":
        return scores >= scores.quantile(ratio)
    stay = max(1, int(len(scores) * (1 - ratio) + 1e-9))  # as `prune.ratios` counts
    rank = scores.argsort(stable=True).argsort()
    return rank >= len(scores) - stay


def _tolerated(ratios: Sequence[float], drops: Sequence[float], most: float) -> float:
    """The largest ratio, by a curve from (0, 0) that is made to rise, that costs no more."""
    points, worst = [(0.0, 0.0)], 0.0
    for ratio, drop in zip(ratios, drops):
        if math.isnan(drop):
            break
        worst = max(worst, drop)
        points.append((ratio, worst))
    for (start, low), (end, high) in pairwise(points):
        if high > most:
            return start + (end - start) * (most - low) / (high - low)
    return points[-1][0]


def _gaps(found: Sensitivity) -> list[str]:
    gaps = any(math.isnan(a) for c in found.of("structured") for a in c.accuracy)
    return ["-: a layer of the group would be left without channels."] if gaps else []


def _points(drop: float) -> str:
    return "-" if math.isnan(drop) else f"{drop:.2f}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
