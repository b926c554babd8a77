"""Trace, gather, score, select, cut: the engine on one page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from harness.engine.certificate import Certificate
from harness.engine.cost import Cost
from harness.engine.criteria import Criterion, Score, Scores, criterion_of, score
from harness.engine.evidence import Activity, Batch, Evidence, Loss, taylor_pass
from harness.engine.graph import Example, Graph, Plan, trace
from harness.engine.selection import Counts, Floors, Selection, select
from harness.engine.trial import try_cut
from harness.errors import ConfigError, GraphError, TargetError, UnknownName, unknown

RESOURCES = ("filters", "channels", "params", "macs", "flops")


@dataclass(frozen=True)
class Result:
    """What `prune` did. `model` is the caller's own, cut in place.

    before, after: counted costs. frozen: group -> why it was not pruned. bound: group -> the floor
    that held it back. certificate: None if it was not asked for.
    """

    model: nn.Module
    plan: Plan
    before: Cost
    after: Cost
    frozen: Mapping[str, str]
    bound: Mapping[str, str]
    certificate: Certificate | None
    graph: Graph


def prune(model: nn.Module, example: Example, *, target: Mapping[str, float],
          criterion: str | Criterion | Score = "l1",
          floors: Floors | Mapping[str, object] | None = None, round_to: int = 1,
          ignore: Sequence[str] = (), batches: Iterable[Batch] | None = None,
          loss: Loss = nn.functional.cross_entropy, normalize: str = "auto",
          certify_cut: bool = True, seed: int = 0) -> Result:
    """Cut channels out of any module, exactly, in place, all or nothing.

    target: shares in (0, 1) to remove, by resource: {"filters": 0.5} half of the convolution
        output channels, "channels" of all groups (linear layers included), "params", "macs" or
        "flops". With several, all are met.
    example: an input or a tuple of them; the first dimension is the batch. Two or more different
        examples make the certificate sharper.
    criterion: a name (`harness.CRITERIA`), or a function score(group, evidence).
    floors: what must stay, see `Floors`. round_to: widths become multiples of it.
    ignore: names of modules whose output channels stay.
    batches, loss: (input, target) pairs for criteria of activations; loss is a mean over a batch.
    normalize: 'auto' (the criterion's own), 'none', 'l2' or 'mean', within each group.

    Raises TargetError, nothing touched, if the floors and what is frozen do not allow the target;
    SurgeryError if the certificate does not hold; GraphError, ConfigError, UnknownName.
    """
    wanted = criterion_of(criterion)
    enough = _enough(target)
    limits = _floors(floors)
    if round_to < 1:
        raise ConfigError(f"round_to: {round_to} must be at least 1.")
    graph = ignoring(trace(model, example), ignore, model)
    whole = graph.whole()
    before = graph.cost()
    activity: Mapping[str, Activity] = {}
    if wanted.needs == "activity":
        if batches is None:
            raise GraphError("this criterion weighs activations: give "
                             "batches=[(input, target), ...].")
        activity = taylor_pass(model, graph, batches, loss)
    while True:
        scores = rank(model, graph, whole, wanted, activity=activity, normalize=normalize,
                      seed=seed)
        selection = select(graph, scores, enough(graph), floors=limits, round_to=round_to,
                           filters_only=set(target) == {"filters"})
        if not selection.reached:
            raise TargetError(unreachable(graph, selection, target))
        culprits, certificate = try_cut(model, graph, whole, selection.plan, example,
                                        certify_cut=certify_cut)
        if not culprits:
            break
        graph = graph.freeze(culprits)
        whole = graph.whole()
    return Result(model, selection.plan, before, graph.cost(selection.plan), graph.frozen,
                  selection.bound, certificate, graph)


def rank(model: nn.Module, graph: Graph, plan: Plan, criterion: Criterion, *,
         activity: Mapping[str, Activity], normalize: str = "auto", seed: int = 0) -> Scores:
    """Scores of the channels that `plan` keeps, from the model's weights and gathered activity."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    evidence = Evidence(graph, plan, weights, activity, torch.Generator().manual_seed(seed))
    return score(graph, criterion, evidence, normalize)


def ignoring(graph: Graph, names: Sequence[str], model: nn.Module) -> Graph:
    """Freeze the groups that the named modules (or their children) write.

    Raises UnknownName for a module that the model does not have.
    """
    modules = {name for name, _ in model.named_modules()} - {""}
    wrong = [unknown("module", name, modules) for name in names if name not in modules]
    if wrong:
        raise UnknownName("ignore: " + "; ".join(wrong))
    reasons = {}
    for group in graph.groups:
        hits = [n for n in names for layer in group.layers if f"{layer}.".startswith(f"{n}.")]
        if hits:
            reasons[group.name] = f"ignored by name ({hits[0]})"
    return graph.freeze(reasons)


def unreachable(graph: Graph, selection: Selection, target: Mapping[str, float]) -> str:
    """Sentence for a target that cannot be met: what is nearest, and what stands in the way."""
    totals = _totals(graph)
    gone = {r: 1 - _left(selection.counts, r) / n if n else 0.0 for r, n in totals.items()}
    nearest = ", ".join(f"{gone[r]:.1%} of the {r} can go, {share:.1%} asked"
                        for r, share in target.items())
    reasons = [f"  {g}: {why}" for g, why in [*selection.bound.items(), *graph.frozen.items()]]
    return f"the target cannot be met: {nearest}. In the way:\n" + "\n".join(reasons)


def _enough(target: Mapping[str, float]) -> Callable[[Graph], Callable[[Counts], bool]]:
    wrong = [unknown("resource", name, RESOURCES) for name in target if name not in RESOURCES]
    wrong += [f"{name}: {share} must be a share above 0 and below 1"
              for name, share in target.items() if not 0 < share < 1]
    if wrong or not target:
        raise ConfigError("target: " + ("; ".join(wrong) or f"name one of {', '.join(RESOURCES)}."))

    def of(graph: Graph) -> Callable[[Counts], bool]:
        totals = _totals(graph)
        # 1e-9: a share such as 0.7 must not ask for one more because it is 0.7000000000000001.
        left = {r: totals[r] * (1 - share) + 1e-9 * totals[r] for r, share in target.items()}
        # Of nothing no share can go.
        return lambda counts: all(totals[r] > 0 and _left(counts, r) <= limit
                                  for r, limit in left.items())

    return of


def _totals(graph: Graph) -> dict[str, int]:
    whole = graph.cost()
    return {"filters": whole.filters, "channels": graph.channels, "params": whole.params,
            "macs": whole.macs, "flops": whole.macs}


def _left(counts: Counts, resource: str) -> int:
    return int(getattr(counts, "macs" if resource == "flops" else resource))


def _floors(floors: Floors | Mapping[str, object] | None) -> Floors:
    if isinstance(floors, Floors):
        return floors
    known = Floors.__dataclass_fields__
    wrong = [unknown("floor", name, known) for name in floors or {} if name not in known]
    if wrong:
        raise ConfigError("floors: " + "; ".join(wrong))
    return Floors(**(floors or {}))  # type: ignore[arg-type]
