"""Trace, gather, score, select, cut: the engine on one page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import nn

from harness.engine.aftercare import carry_out
from harness.engine.certificate import Certificate
from harness.engine.cost import Cost
from harness.engine.criteria import (
    CRITERIA,
    Criterion,
    Score,
    Scores,
    check_normalize,
    criterion_of,
    score,
)
from harness.engine.evidence import Batch, Evidence, Gathered, Loss, Settled, gather
from harness.engine.floors import Floors, floors_of, is_number, unknown_modules
from harness.engine.folding import Folding
from harness.engine.graph import Example, Graph, Plan
from harness.engine.ledger import Ledger, ledger
from harness.engine.optimizer import Memory, Optimizers
from harness.engine.recalibration import Recalibration
from harness.engine.request import Request
from harness.engine.selection import Selection
from harness.engine.surgery import copied, cut, misfits
from harness.engine.tally import LayerTime
from harness.engine.tracing import trace
from harness.errors import (
    ConfigError,
    GraphError,
    Mistakes,
    SurgeryError,
    TargetError,
    UnknownName,
)


@dataclass(frozen=True)
class Result:
    """What `prune` did, or would do. `model` is the caller's own, cut in place if `is_cut`.

    before, after: counted costs. frozen: group -> why it was not pruned. bound: group -> the floor
    that held it back. ledger: all of that, channel counts and scores, as a table or JSON.
    certificate, folding, recalibration: None if not asked for. batches_used: by the criterion.
    """

    model: nn.Module
    plan: Plan
    before: Cost
    after: Cost
    frozen: Mapping[str, str]
    bound: Mapping[str, str]
    certificate: Certificate | None
    graph: Graph
    ledger: Ledger
    batches_used: int = 0
    folding: Folding | None = None
    recalibration: Recalibration | None = None
    is_cut: bool = True


def prune(model: nn.Module, example: Example, *, target: Mapping[str, float] | None = None,
          ratios: Mapping[str, float] | None = None, scope: str = "global",
          layer_types: str = "all", only_follow: Sequence[str] = (), one_by_one: bool = False,
          latency: Mapping[str, LayerTime] | None = None,
          criterion: str | Criterion | Score = "l1",
          criterion_options: Mapping[str, object] | None = None, flops_penalty: float = 0.0,
          floors: Floors | Mapping[str, object] | None = None, round_to: int = 1,
          ignore: Sequence[str] = (), batches: Iterable[Batch] | None = None,
          loss: Loss = nn.functional.cross_entropy, normalize: str = "auto",
          settle_batches: int = 0, certify_cut: bool = True, seed: int = 0,
          optimizer: Optimizers | None = None, fold: bool = False,
          norm_batches: Iterable[Batch] | None = None, previous: Result | None = None,
          dry_run: bool = False) -> Result:
    """Cut channels out of any module, exactly, in place, all or nothing.

    target: shares in (0, 1) to remove, by resource: {"filters": 0.5} half of the convolution
        output channels, "channels" of all groups (linear layers included), "params", "macs" or
        "flops", "memory" (bytes of parameters and buffers), "latency" (of the tables given as
        `latency`, see `latency_tables`). With several, all are met.
    ratios: instead of a target, {layer or parent module: share of its channels to remove}.
    scope: 'global' compares the scores of all groups, 'local' takes the same share of each.
    layer_types: 'all', '1x1' or 'not_1x1' convolutions may be chosen, by the size of the kernel.
    only_follow: modules whose layers go only as a consequence of another's going.
    one_by_one: score anew after every single removal, activations included: slow.
    example: an input or a tuple of them; the first dimension is the batch. Two or more different
        examples make the certificate sharper.
    criterion: a name (`harness.CRITERIA`), package.module:function, or a function
        score(group, evidence); criterion_options: its keywords, {"p": 3}.
    flops_penalty: taken off a channel's normalised score for each MFLOP that it costs.
    floors: what must stay, see `Floors`. round_to: widths become multiples of it.
    ignore: names of modules whose output channels stay.
    batches, loss: (input, target) pairs for criteria of activations; loss is a mean over a batch.
    settle_batches: end the pass over them when what would go has stayed the same for so many
        batches in a row; 0 uses all.
    normalize: 'auto' (the criterion's own), 'none', 'l2' or 'mean', within each group.
    optimizer: one or several whose momenta and moments are cut along; they go on with the model.
    fold: what constant channels that go gave to their readers is added to the readers' biases,
        where that is exact. norm_batches: (input, target) pairs on which the statistics of the
        batch norms are measured afresh after the cut.
    previous: the result of a cut of this model, to go on from without tracing it again; shares
        and numbers stay those of the whole network.
    dry_run: everything is done on a copy: the model, and the optimizer, are not touched.

    Raises TargetError, nothing touched, if the floors and what is frozen do not allow the target;
    SurgeryError if the certificate does not hold; GraphError, ConfigError, UnknownName.
    """
    refused = Mistakes()
    wanted, limits = understood(refused, criterion, criterion_options, floors, normalize,
                                flops_penalty, settle_batches)
    with refused:
        request = Request({} if target is None else target, {} if ratios is None else ratios,
                          limits, round_to, scope, layer_types, only_follow, one_by_one, latency)
    if norm_batches is not None and not isinstance(norm_batches, Iterable):
        refused.add(f"norm_batches: {norm_batches!r} must be batches: [(input, target), ...].")
    refused.tell()
    if wanted.wants and batches is None:
        raise GraphError("this criterion weighs activations: give "
                         "batches=[(input, target), ...].")
    if previous is not None:
        check_previous(model, previous)
    graph = previous.graph if previous else trace(model, example)
    start = previous.plan if previous else graph.whole()
    check_data(model, certify_cut=certify_cut)
    memory = Memory(optimizer, model) if optimizer is not None else None
    held: dict[str, str] = {}
    with refused:
        graph, start, held = without(graph, start, ignored(graph, ignore, model))
    with refused:
        request.check(graph)
    refused.tell()
    request = replace(request, floors=limits.by_name(graph))
    before = graph.cost(start)

    def scores_from(gathered: Gathered) -> Scores:
        return rank(model, graph, start, wanted, gathered=gathered, normalize=normalize,
                    seed=seed, flops_penalty=flops_penalty)

    def choose(scores: Scores) -> Selection:
        return request.choose(graph, start, scores, held)

    batches = list(batches) if one_by_one and batches is not None else batches

    def scores_anew(smaller: nn.Module, plan: Plan) -> Scores:
        found = (gather(smaller, graph, batches, loss, wanted.wants)
                 if wanted.wants and batches is not None else Gathered())
        return rank(smaller, graph, plan, wanted, gathered=found, normalize=normalize, seed=seed,
                    flops_penalty=flops_penalty)

    gathered = Gathered()
    if wanted.wants and batches is not None:
        until = (Settled(lambda sums: choose(scores_from(sums)).plan, settle_batches)
                 if settle_batches else None)
        gathered = gather(model, graph, batches, loss, wanted.wants, until=until)
    subject = copied(model) if dry_run else model
    while True:
        scores = scores_from(gathered)
        rescore = rescorer(model, start, scores_anew) if one_by_one else None
        selection = request.choose(graph, start, scores, held, rescore)
        if not selection.reached:
            raise TargetError(request.unreachable(graph, selection))
        # All that may fail is done before the cut: what is cut is told.
        after = graph.cost(selection.plan)
        told = ledger(graph, start, selection.plan, asked=request.target, scores=scores,
                      bound=selection.bound, reached=request.gone(graph, selection.counts),
                      round_to=round_to)
        done = carry_out(subject, graph, start, selection.plan, example, certify_cut=certify_cut,
                         fold=fold, norm_batches=norm_batches, memory=None if dry_run else memory)
        if not done.culprits:
            break
        graph, start, more = without(graph, start, done.culprits)
        held = {**held, **more}
    return Result(model, selection.plan, before, after, {**graph.frozen, **held}, selection.bound,
                  done.certificate, graph, told, gathered.batches, done.folding,
                  done.recalibration, is_cut=not dry_run)


def rank(model: nn.Module, graph: Graph, plan: Plan, criterion: Criterion, *,
         gathered: Gathered, normalize: str = "auto", seed: int = 0,
         flops_penalty: float = 0.0) -> Scores:
    """Scores of the channels that `plan` keeps, from the model's weights and what was gathered."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    evidence = Evidence(graph, plan, weights, gathered, torch.Generator().manual_seed(seed))
    return score(graph, criterion, evidence, normalize, flops_penalty)


def understood(refused: Mistakes, criterion: str | Criterion | Score,
               options: Mapping[str, object] | None, floors: Floors | Mapping[str, object] | None,
               normalize: str, flops_penalty: float, settle_batches: int,
               ) -> tuple[Criterion, Floors]:
    """The criterion and the floors that are meant; what is wrong with any of these is collected.

    In place of what is refused stand a criterion that wants nothing, and no floors.
    """
    wanted, limits = CRITERIA["uniform"], Floors()
    with refused:
        wanted = criterion_of(criterion, options)
    with refused:
        limits = floors_of(floors)
    with refused:
        check_normalize(normalize)
    if not is_number(flops_penalty) or not 0 <= flops_penalty < inf:
        refused.add(f"flops_penalty: {flops_penalty!r} must be a finite number, not negative.")
    if not isinstance(settle_batches, int) or settle_batches < 0:
        refused.add(f"settle_batches: {settle_batches!r} must be a whole number, not negative.")
    return wanted, limits


def check_previous(model: nn.Module, previous: Result) -> None:
    """Raises SurgeryError for a model that is not as an earlier cut has left it."""
    if not isinstance(previous, Result):
        raise ConfigError("previous: give the result of an earlier cut, not a "
                          f"{type(previous).__name__}.")
    wrong = misfits(model, previous.plan.parameters)
    if wrong:
        dry = "" if previous.is_cut else ", which was a dry run and has cut nothing"
        raise SurgeryError(f"previous: the model is not cut by that result{dry}: {wrong[0]}"
                           + (f"; and {len(wrong) - 1} more." if len(wrong) > 1 else "."))


def check_data(model: nn.Module, *, certify_cut: bool) -> None:
    """Raises GraphError for weights on the meta device where a cut is to be certified."""
    empty = [name for name, p in model.named_parameters() if p.is_meta]
    if empty and certify_cut:
        raise GraphError(f"{len(empty)} parameters hold no data ({empty[0]} and so on): they are "
                         "on the meta device. Load them first; or, to plan alone, give "
                         "certify_cut=False and criterion='random' or 'uniform'.")


def ignoring(graph: Graph, names: Sequence[str], model: nn.Module) -> Graph:
    """Freeze the groups that the named modules (or their children) write.

    Raises UnknownName for a module that the model does not have.
    """
    return graph.freeze(ignored(graph, names, model))


def ignored(graph: Graph, names: Sequence[str], model: nn.Module) -> dict[str, str]:
    """Groups that the named modules (or their children) write -> 'ignored by name (...)'."""
    if isinstance(names, str):
        raise ConfigError(f"ignore: give a list of names: ['{names}'].")
    wrong = unknown_modules("ignore", {name for name, _ in model.named_modules()} - {""}, names)
    if wrong:
        raise UnknownName("\n".join(wrong))
    reasons = {}
    for group in graph.groups:
        hits = [n for n in names for layer in group.layers if f"{layer}.".startswith(f"{n}.")]
        if hits:
            reasons[group.name] = f"ignored by name ({hits[0]})"
    return reasons


def without(graph: Graph, plan: Plan, reasons: Mapping[str, str],
            ) -> tuple[Graph, Plan, dict[str, str]]:
    """Set groups aside: those that are whole are frozen, those already cut held as they are.

    Returns: the graph, the same plan over its groups, and group -> why it is held.
    """
    cut = {g.name for g in graph.groups if len(plan.kept[g.name]) < g.channels}
    graph = graph.freeze({name: why for name, why in reasons.items() if name not in cut})
    plan = graph.plan({g.name: plan.kept[g.name] for g in graph.groups})
    return graph, plan, {name: why for name, why in reasons.items() if name in cut}


def rescorer(model: nn.Module, start: Plan, scores_of: Callable[[nn.Module, Plan], Scores],
             ) -> Callable[[Plan], Scores]:
    """Scores of ever smaller plans, each from a copy of the model that is cut so far."""
    smaller, now = copied(model), start

    def rescore(plan: Plan) -> Scores:
        nonlocal now
        cut(smaller, now, plan)
        now = plan
        return scores_of(smaller, plan)

    return rescore
