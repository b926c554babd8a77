"""The table of criteria, and scores of all groups: the larger, the more worth keeping.

Letters: C kept channels of the group. Every score is called as score(group, evidence, **options)
and returns (C,) finite floats, never negative; members of a group are added up. Then it is
normalised within the group, so that groups can be compared:
`l2` divides by the root of the sum of squares (Molchanov 2017), `mean` by the mean.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from harness.engine import activation_criteria as activations
from harness.engine import weight_criteria as weights
from harness.engine.evidence import Evidence, check_needs
from harness.engine.floors import is_number
from harness.engine.graph import Graph, Slice
from harness.errors import ConfigError, GraphError, UnknownName, unknown
from harness.plugins import is_reference, load_object

Score = Callable[..., Tensor]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """A score, what it must be given, and how it is made comparable.

    needs: 'weights' (always there) or kinds of evidence, see `evidence.KINDS`.
    """

    score: Score
    needs: str | tuple[str, ...] = "weights"
    normalize: str = "mean"

    @property
    def wants(self) -> frozenset[str]:
        """The kinds of evidence to gather."""
        words = (self.needs,) if isinstance(self.needs, str) else self.needs
        return frozenset(words) - {"weights"}

    @property
    def options(self) -> dict[str, object]:
        """Option -> default."""
        return {p.name: p.default for p in _options(self.score)}


CRITERIA: dict[str, Criterion] = {
    "taylor": Criterion(activations.taylor, "activity", "l2"),
    "taylor_origin": Criterion(activations.taylor_origin, "activity", "l2"),
    "taylor_weight": Criterion(activations.taylor_weight, "gradients", "l2"),
    "l1": Criterion(weights.l1, "weights", "mean"),
    "l2": Criterion(weights.l2, "weights", "mean"),
    "lp": Criterion(weights.lp, "weights", "mean"),
    "min_weight": Criterion(weights.min_weight, "weights", "mean"),
    "geometric_median": Criterion(weights.geometric_median, "weights", "mean"),
    "deviation_from_mean": Criterion(weights.deviation_from_mean, "weights", "mean"),
    "bn_scale": Criterion(weights.bn_scale, "weights", "none"),
    "mean_activation": Criterion(activations.mean_activation, "activations", "l2"),
    "std_activation": Criterion(activations.std_activation, "activations", "l2"),
    "apoz": Criterion(activations.apoz, "activations", "none"),
    "entropy": Criterion(activations.entropy, "pooled", "none"),
    "activation_deviation": Criterion(activations.activation_deviation, "maps", "none"),
    "ipad": Criterion(activations.ipad, "maps", "none"),
    "random": Criterion(weights.random, "weights", "none"),
    "uniform": Criterion(weights.uniform, "weights", "none"),
}
NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "l2": lambda s: s / s.square().sum().sqrt(),
    "mean": lambda s: s / s.mean(),
}
# Option of our criteria -> (whether a value is right, what it must be).
_RIGHT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "p": (lambda v: is_number(v) and 0 < v < inf, "a finite number above 0"),
    "omega": (lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "equalizer": (lambda v: is_number(v) and 0 <= v < inf, "a finite number, not negative"),
    "bins": (lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 1,
             "a whole number above 1"),
    "scale": (lambda v: v in weights.SCALES, f"one of {', '.join(weights.SCALES)}"),
    **dict.fromkeys(["rectified", "resized", "root_mean", "weights_alone_1x1"],
                    (lambda v: isinstance(v, bool), "true or false")),
}


def criterion_of(criterion: str | Criterion | Score,
                 options: Mapping[str, object] | None = None) -> Criterion:
    """A row of the table by name, a row given whole, or a user's own score(group, evidence).

    A user's own is the function, or its name: package.module:function. It may carry the attributes
    `needs` (default 'weights') and `normalize` ('mean'). A functools.partial of a function of the
    table keeps its row. options: keywords for the score.

    Raises UnknownName with the nearest names; ConfigError for an option that it does not have, or
    a value that it cannot take.
    """
    row = _row(criterion)
    check_needs(row.wants)
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"criterion_options: {options!r} must be a table: {{'p': 3}}.")
    _check_options(row.score, options or {}, criterion if isinstance(criterion, str) else "")
    return replace(row, score=functools.partial(row.score, **options)) if options else row


def score(graph: Graph, criterion: Criterion, evidence: Evidence,
          normalize: str = "auto", flops_penalty: float = 0.0) -> Scores:
    """Scores of all groups. A group whose channels all score 0 is given equal scores, never NaN.

    flops_penalty: lambda of Molchanov 2017; so much is taken off the normalised score for each
    MFLOP (2 x MACs) of an example that a channel costs in the layers that write it, as they are.

    Raises GraphError if a score has the wrong shape, is negative or is not finite; UnknownName.
    """
    way = criterion.normalize if normalize == "auto" else normalize
    check_normalize(way)
    scores = {}
    for group in graph.groups:
        raw = _numbers(criterion.score(group, evidence), group.name)
        _check_scores(raw, len(evidence.plan.kept[group.name]), group.name)
        scores[group.name] = _normalized(raw, NORMALIZERS[way])
    if flops_penalty:
        costs = mflops(graph, evidence)
        scores = {name: found - flops_penalty * costs[name] for name, found in scores.items()}
    return scores


def check_normalize(way: str) -> None:
    """Raises UnknownName for a normalisation that there is not."""
    if way not in (known := ["auto", *NORMALIZERS]):
        raise UnknownName(unknown("normalisation", str(way), known))


def _numbers(given: object, group: str) -> Tensor:
    """What a score has returned, in float64 on the CPU. Raises GraphError if it is no numbers."""
    try:
        raw = torch.as_tensor(given)
        if not raw.is_complex():
            return raw.detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"{type(given).__name__}: {(str(error).splitlines() or [''])[0]}"
    else:
        what = f"numbers of type {raw.dtype}"
    raise GraphError(f"the scores of group '{group}' must be a tensor of one number for each "
                     f"channel; got {what}.")


def _check_scores(raw: Tensor, kept: int, group: str) -> None:
    if raw.shape == (kept,) and bool(raw.isfinite().all()) and not bool((raw < 0).any()):
        return
    hint = ("" if raw.isfinite().all() else " NaN and infinity come from the data, or "
            "from a network that diverged: lower the learning rate.")
    raise GraphError(f"the scores of group '{group}' must be {kept} finite numbers "
                     f"that are not negative; got {_sample(raw)}.{hint}")


def _normalized(raw: Tensor, method: Callable[[Tensor], Tensor]) -> Tensor:
    even = raw if bool(raw.any()) else torch.ones_like(raw)
    found = method(even)
    if found.isfinite().all() and found.any():
        return found
    return method(even / even.max())  # their squares or sums are out of range


def mflops(graph: Graph, evidence: Evidence) -> Scores:
    """Group -> (C,) millions of FLOPs (2 x MACs) of an example in the layers that write it."""
    rows: dict[str, int] = {}
    for product in graph.products:
        if product.weight:
            rows[product.weight] = rows.get(product.weight, 0) + product.rows

    def cost(writer: Slice) -> Tensor | None:
        weight = evidence.weights.get(writer.tensor)
        if weight is None:
            return None
        width = weight.shape[writer.dim]
        each = 2e-6 * rows.get(writer.tensor, 0) * weight.numel() / width
        return torch.full((width,), each, dtype=torch.float64)

    return {group.name: evidence.add_up(group, cost) for group in graph.groups}


def _row(criterion: str | Criterion | Score) -> Criterion:
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, functools.partial):
        base = _row(criterion.func)
        _check_options(base.score, criterion.keywords)
        return replace(base, score=criterion)
    if not callable(criterion) and not isinstance(criterion, str):
        raise ConfigError(f"criterion: {criterion!r} must be a name, package.module:function, a "
                          "Criterion or a function score(group, evidence).")
    if callable(criterion):
        ours = next((row for row in CRITERIA.values() if row.score is criterion), None)
        return ours or Criterion(criterion, getattr(criterion, "needs", "weights"),
                                 getattr(criterion, "normalize", "mean"))
    if is_reference(criterion):
        return _row(load_object(criterion, "criterion"))
    if criterion not in CRITERIA:
        raise UnknownName(unknown("criterion", criterion, CRITERIA))
    return CRITERIA[criterion]


def _check_options(function: Score, options: Mapping[str, object], name: str = "") -> None:
    parameters = _options(function)
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    takes_rest = len(known) < len(parameters)
    right = _RIGHT if _is_ours(function) else {}
    mistakes = [unknown("option", option, known) for option in options
                if option not in known and not takes_rest]
    mistakes += [f"{option}: {value!r} must be {right[option][1]}."
                 for option, value in options.items()
                 if option in known and option in right and not right[option][0](value)]
    mistakes += [f"option '{p.name}' must be given." for p in parameters
                 if p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in options]
    if mistakes:
        name = name or str(getattr(function, "__name__", function))
        raise ConfigError(f"criterion {name}: " + " ".join(mistakes))


def _is_ours(function: Score) -> bool:
    base = function.func if isinstance(function, functools.partial) else function
    return any(base is row.score for row in CRITERIA.values())


def _options(function: Score) -> list[inspect.Parameter]:
    """The parameters of a score after the group and the evidence; none if it has no signature."""
    try:
        return list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):
        return []


def _sample(raw: Tensor) -> str:
    bad = raw[~raw.isfinite() | (raw < 0)]
    return f"shape {tuple(raw.shape)}" + (f" with {bad[:3].tolist()}" if len(bad) else "")

