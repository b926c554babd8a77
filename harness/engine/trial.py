"""Try a cut on the user's own network: does its forward still run, does it compute the same?"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from harness.engine.certificate import Certificate, certify
from harness.engine.graph import Example, Graph, Plan, meta_copy
from harness.engine.surgery import Transaction, cut
from harness.errors import SurgeryError


def try_cut(model: nn.Module, graph: Graph, before: Plan, after: Plan, example: Example, *,
            certify_cut: bool = True) -> tuple[dict[str, str], Certificate | None]:
    """Cut; run the user's own forward; check the certificate. If any fails, nothing has changed.

    Returns: groups that cannot be cut because `forward` holds a size ({} if the cut stands), and
    the certificate. Raises SurgeryError if the forward fails for no one group, or the certificate
    does not hold.
    """
    dense = copy.deepcopy(model) if certify_cut else None
    forward = Forward(model, example)
    transaction = Transaction(model)
    with transaction:
        cut(model, before, after)
        failure = forward.failure()
        if failure is None:
            certificate = None
            if dense is not None:
                certificate = certify(dense, model, graph, before, after, example)
                if not certificate.holds:
                    groups = _differing(dense, graph, before, after, example)
                    raise SurgeryError(
                        "the cut network does not compute what the silenced one does: difference "
                        f"{certificate.difference:.2g} of the spread, tolerance "
                        f"{certificate.tolerance:.0g}; alone, these groups differ: "
                        f"{', '.join(groups) or 'none'}. If the forward uses their number of "
                        "channels, list them under ignore; else please report it. The model is as "
                        "it was.")
            return {}, certificate
    transaction.undo()
    culprits = _sizes_in_forward(model, graph, before, after, forward)
    if not culprits:
        raise SurgeryError(f"the forward fails after the cut: {failure}. The model is as it was.")
    return culprits, None


class Forward:
    """A model's own forward, tried in the modes in which it runs before a cut. Changes no state.

    It runs on a copy: on the meta device, where nothing is computed; on a real one where the
    forward looks at values (control flow).
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._model = model
        self._args = example if isinstance(example, tuple) else (example,)
        self._ways: list[tuple[bool, bool]] = []  # (is_training, on_meta)
        for is_training in (False, True):
            ways = [(is_training, on_meta) for on_meta in (True, False)]
            self._ways += [way for way in ways if self._failure(*way) is None][:1]

    def failure(self) -> str | None:
        """What the forward raises now in one of those modes; None if it runs."""
        failures = (self._failure(*way) for way in self._ways)
        return next((f for f in failures if f is not None), None)

    def _failure(self, is_training: bool, on_meta: bool) -> str | None:
        model = meta_copy(self._model) if on_meta else copy.deepcopy(self._model)
        inputs = (a.to("meta") if on_meta and isinstance(a, Tensor) else a for a in self._args)
        devices = {p.device for p in model.parameters() if p.is_cuda}
        default = torch.device("meta") if on_meta else nullcontext()
        try:
            with torch.no_grad(), torch.random.fork_rng(list(devices)), default:
                model.train(is_training)(*inputs)
        except Exception as error:  # whatever a user's forward raises
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return None


def _one_by_one(graph: Graph, before: Plan, after: Plan) -> Iterator[tuple[str, Plan]]:
    """(group, the plan that cuts this group alone), for every group that shrinks."""
    for name, kept in after.kept.items():
        if len(kept) < len(before.kept[name]):
            yield name, graph.plan({**before.kept, name: kept})


def _sizes_in_forward(model: nn.Module, graph: Graph, before: Plan, after: Plan,
                      forward: Forward) -> dict[str, str]:
    """Groups that, cut alone, break the forward."""
    culprits = {}
    for name, alone in _one_by_one(graph, before, after):
        transaction = Transaction(model)
        cut(model, before, alone)
        failure = forward.failure()
        transaction.undo()
        if failure:
            culprits[name] = f"size written in forward ({failure})"
    return culprits


def _differing(dense: nn.Module, graph: Graph, before: Plan, after: Plan,
               example: Example) -> list[str]:
    """Groups that, cut alone, change what the network computes."""
    names = []
    for name, alone in _one_by_one(graph, before, after):
        small = copy.deepcopy(dense)
        cut(small, before, alone)
        if not certify(dense, small, graph, before, alone, example).holds:
            names.append(name)
    return names
