"""Score the channels of a group: the larger, the more worth keeping.

Letters: C kept channels of the group. Every score is called as score(group, evidence) and returns
(C,) finite floats, never negative; members of a group are added up. Then it is normalised within
the group, so that groups can be compared:
`l2` divides by the root of the sum of squares (Molchanov 2017), `mean` by the mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.engine.evidence import Evidence
from harness.engine.graph import Graph, Group
from harness.errors import GraphError, UnknownName, unknown

Score = Callable[[Group, Evidence], Tensor]
Scores = dict[str, Tensor]


def taylor(group: Group, evidence: Evidence) -> Tensor:
    """Mean over examples of |mean over the map of activation x gradient|.

    Molchanov et al. 2017, arXiv:1611.06440, equation 8: the absolute value is each example's.
    """
    return _from_activity(group, evidence, lambda a: a.absolute / a.examples)


def taylor_origin(group: Group, evidence: Evidence) -> Tensor:
    """|sum over batches of the mean over examples and map of activation x gradient|.

    The form of seed 000: signs cancel before the absolute value is taken.
    """
    return _from_activity(group, evidence, lambda a: a.signed).abs()


def l1(group: Group, evidence: Evidence) -> Tensor:
    """Sum of absolute weights that produce each channel. Li et al. 2017, arXiv:1608.08710.

    Grows with fan-in: compare within a group, or normalise by the mean (the default).
    """
    return _from_weights(group, evidence, lambda rows: rows.abs().sum(1))


def l2(group: Group, evidence: Evidence) -> Tensor:
    """Root of the sum of squared weights that produce each channel, members added up."""
    return _from_weights(group, evidence, lambda rows: rows.square().sum(1).sqrt())


def random(group: Group, evidence: Evidence) -> Tensor:
    """Uniform in [0, 1) from the evidence's seeded generator: the control of every study."""
    kept = len(evidence.plan.kept[group.name])
    return torch.rand(kept, generator=evidence.generator, dtype=torch.float64)


@dataclass(frozen=True)
class Criterion:
    """A score, what it must be given ('weights' or 'activity'), and how it is made comparable."""

    score: Score
    needs: str
    normalize: str


CRITERIA: dict[str, Criterion] = {
    "taylor": Criterion(taylor, "activity", "l2"),
    "taylor_origin": Criterion(taylor_origin, "activity", "l2"),
    "l1": Criterion(l1, "weights", "mean"),
    "l2": Criterion(l2, "weights", "mean"),
    "random": Criterion(random, "weights", "none"),
}
NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "l2": lambda s: s / s.square().sum().sqrt(),
    "mean": lambda s: s / s.mean(),
}


def criterion_of(criterion: str | Criterion | Score) -> Criterion:
    """A row of the table by name, a row given whole, or a user's score(group, evidence) of weights.

    Raises UnknownName with the nearest names.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if callable(criterion):
        return Criterion(criterion, getattr(criterion, "needs", "weights"),
                         getattr(criterion, "normalize", "mean"))
    if criterion not in CRITERIA:
        raise UnknownName(unknown("criterion", criterion, CRITERIA))
    return CRITERIA[criterion]


def score(graph: Graph, criterion: Criterion, evidence: Evidence,
          normalize: str = "auto") -> Scores:
    """Scores of all groups. A group whose channels all score 0 is given equal scores, never NaN.

    Raises GraphError if a score has the wrong shape, is negative or is not finite; UnknownName.
    """
    way = criterion.normalize if normalize == "auto" else normalize
    if way not in NORMALIZERS:
        raise UnknownName(unknown("normalisation", way, ["auto", *NORMALIZERS]))
    method = NORMALIZERS[way]
    scores = {}
    for group in graph.groups:
        raw = torch.as_tensor(criterion.score(group, evidence)).to("cpu", torch.float64)
        kept = len(evidence.plan.kept[group.name])
        if raw.shape != (kept,) or not bool(raw.isfinite().all()) or bool((raw < 0).any()):
            raise GraphError(f"the scores of group '{group.name}' must be {kept} finite numbers "
                             f"that are not negative; got {_sample(raw)}. "
                             "NaN comes from a network that diverged: lower the learning rate.")
        even = torch.ones_like(raw) if not bool(raw.any()) else raw
        scores[group.name] = method(even)
    return scores


def _from_activity(group: Group, evidence: Evidence, value: Callable[..., Tensor]) -> Tensor:
    gates = evidence.graph.gates
    missing = [w.tensor for w in group.writers
               if w.tensor not in gates or not set(gates[w.tensor]) <= evidence.activity.keys()]
    if missing:
        raise GraphError(f"group '{group.name}': no activations were gathered for "
                         f"{', '.join(missing)}. Give batches and a loss, or use l1 or l2.")
    values = {w.tensor: torch.stack([value(evidence.activity[g]) for g in gates[w.tensor]]).sum(0)
              for w in group.writers}
    return evidence.per_channel(group, values)


def _from_weights(group: Group, evidence: Evidence, norm: Callable[[Tensor], Tensor]) -> Tensor:
    weights = {w.tensor: evidence.weights[w.tensor].detach().double().movedim(w.dim, 0)
               for w in group.writers}
    return evidence.per_channel(group, {n: norm(rows.flatten(1)) for n, rows in weights.items()})


def _sample(raw: Tensor) -> str:
    bad = raw[~raw.isfinite() | (raw < 0)]
    return f"shape {tuple(raw.shape)}" + (f" with {bad[:3].tolist()}" if len(bad) else "")
