"""A cut with all that belongs to it, or nothing of it: constants folded into biases before it, the
certificate, batch norms measured afresh and the optimisers' memory cut along after it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from harness.engine.certificate import Certificate
from harness.engine.evidence import Batch
from harness.engine.folding import Folding, fold_constants
from harness.engine.graph import Example, Graph, Plan
from harness.engine.optimizer import Memory
from harness.engine.recalibration import Recalibration, recalibrate
from harness.engine.surgery import Transaction
from harness.engine.trial import try_cut


@dataclass(frozen=True)
class Outcome:
    """culprits: groups that cannot be cut, and why; if there are any, nothing has changed.

    The rest is None where it was not asked for.
    """

    culprits: Mapping[str, str]
    certificate: Certificate | None = None
    folding: Folding | None = None
    recalibration: Recalibration | None = None


def carry_out(model: nn.Module, graph: Graph, before: Plan, after: Plan, example: Example, *,
              certify_cut: bool = True, fold: bool = False,
              norm_batches: Iterable[Batch] | None = None, memory: Memory | None = None) -> Outcome:
    """Bring the model from `before` to `after`; if anything raises, nothing has changed.

    The certificate compares with the network as it is once its constants are folded; there is none
    if nothing goes.
    """
    with Transaction(model) as transaction:
        folding = fold_constants(model, graph, before, after, example) if fold else None
        culprits, certificate = try_cut(model, graph, before, after, example,
                                        certify_cut=certify_cut and after != before)
        if culprits:
            transaction.undo()
            return Outcome(culprits)
        recalibration = None if norm_batches is None else recalibrate(model, norm_batches)
        if memory is not None:
            _follow(memory, before, after)
    return Outcome({}, certificate, folding, recalibration)


def _follow(memory: Memory, before: Plan, after: Plan) -> None:
    try:
        memory.follow(before, after)
    except BaseException:
        memory.undo()
        raise
