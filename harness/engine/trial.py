"""Try a cut on the user's own network: does its forward still run, does it compute the same?"""

from collections.abc import Iterator

import torch
from torch import nn

from harness.engine.certificate import Certificate, certify, is_random
from harness.engine.graph import Example, Graph, Plan
from harness.engine.rehearsal import Forward, sizes_in_forward
from harness.engine.surgery import Transaction, copied, cut
from harness.errors import SurgeryError


def try_cut(model: nn.Module, graph: Graph, before: Plan, after: Plan, example: Example, *,
            certify_cut: bool = True) -> tuple[dict[str, str], Certificate | None]:
    """Cut; run the user's own forward; check the certificate. If any fails, nothing has changed.

    Returns: groups that cannot be cut, and why, because `forward` holds a size or computes with
    their width ({} if the cut stands); and the certificate. Raises SurgeryError if the certificate
    does not hold for no one group.
    """
    culprits = sizes_in_forward(model, graph, before, after, Forward(model, example))
    if culprits:
        return culprits, None
    dense = copied(model) if certify_cut else None
    transaction = Transaction(model)
    failure = None
    with transaction:
        cut(model, before, after)
        if dense is None:
            return {}, None
        try:
            certificate = certify(dense, model, graph, before, after, example)
            if certificate.holds:
                return {}, certificate
            failure = (f"difference {certificate.difference:.2g} of the spread, tolerance "
                       f"{certificate.tolerance:.0g}")
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a person's hook with a size of its own, say
            certificate, failure = None, _first_line(error)
    transaction.undo()
    if is_random(dense, example):
        raise SurgeryError(
            "the forward is random in eval mode too, in what is cut, and nothing can be compared: "
            f"{failure}. Switch that off in eval mode, or give certify_cut=False. The model is as "
            "it was.")
    differing = _differing(dense, graph, before, after, example)
    if not differing:
        raise SurgeryError(
            f"the cut network does not compute what the silenced one does: {failure}, "
            "and no group is to blame alone. Please report it. The model is as it was.")
    return differing, certificate


def _differing(dense: nn.Module, graph: Graph, before: Plan, after: Plan,
               example: Example) -> dict[str, str]:
    """Groups that, cut alone, change what the network computes."""
    found = {}
    for name, alone in _one_by_one(graph, before, after):
        small = copied(dense)
        cut(small, before, alone)
        try:
            certificate = certify(dense, small, graph, before, alone, example)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the sizes of two groups must agree, and both were cut
            found[name] = f"size written in forward ({_first_line(error)})"
            continue
        if not certificate.holds:
            found[name] = ("the forward computes with its width or order: cut alone, it changes "
                           f"the outputs by {certificate.difference:.2g} of their spread")
    return found


def _one_by_one(graph: Graph, before: Plan, after: Plan) -> Iterator[tuple[str, Plan]]:
    """(group, the plan that cuts this group alone), for every group that shrinks."""
    for name, kept in after.kept.items():
        if len(kept) < len(before.kept[name]):
            yield name, graph.plan({**before.kept, name: kept})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
