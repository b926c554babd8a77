"""Masks instead of cuts: one network computes what its cut forms do, one after the other.

What reads the channels that shall go is zeroed (see `certificate`), norms over channels take their
statistics over those that stay (`kept_widths`), and afterwards every tensor is as it was, to the
bit. So nothing is copied, traced or resized to ask what a cut would do to the outputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.certificate import silence
from harness.engine.graph import Example, Graph, Plan, layer_of
from harness.engine.kept_widths import Call, KeptWidths, Numbers, kept_of_norms
from harness.engine.surgery import copied, cut

_NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@contextmanager
def restored(model: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """These tensors of a model may be written to inside; behind, they are as they were."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, before, strict=True):
                tensor.copy_(values)


class Masked:
    """A network, cut by `before`, as it would be if a further cut were made."""

    def __init__(self, model: nn.Module, graph: Graph, before: Plan) -> None:
        self._model, self._graph, self._before = model, graph, before
        self._tensors = {**dict(model.named_parameters(remove_duplicate=False)),
                         **dict(model.named_buffers(remove_duplicate=False))}

    def touched(self, group: str) -> list[Tensor]:
        """The tensors that masking a group writes to."""
        names = [part.tensor for part in self._parts(group)]
        return list({id(self._tensors[n]): self._tensors[n] for n in names}.values())

    def changed(self, group: str) -> list[str]:
        """Modules that compute something else when channels of a group are masked."""
        modules = [layer_of(part.tensor) for part in self._parts(group)]
        norms = [layer_of(part.tensor) for part in self._graph[group].slices
                 if "product" not in part.roles and isinstance(
                     self._model.get_submodule(layer_of(part.tensor)), _NORMS_OVER_CHANNELS)]
        return list(dict.fromkeys([*modules, *norms]))

    @contextmanager
    def without(self, group: str, after: Plan, example: Example) -> Iterator["Forward"]:
        """While the block lasts, the model has the channels of a group alone that `after` keeps.

        Gives the forward by which to compute with it. example: inputs, a batch of two or more.
        """
        calls = self._calls(after, example) if self._graph[group].contracted else []
        kept = kept_of_norms(self._tensors, self._before, after)
        with restored(self._model, self.touched(group)):
            silence(self._tensors, self._graph, self._before, after)
            yield Forward(kept, calls)

    def _parts(self, group: str) -> list[Any]:
        """What silences a group: its readers, or all of it where products sum over it."""
        found = self._graph[group]
        return [part for part in (found.slices if found.contracted else found.readers)
                if "product" not in part.roles]

    def _calls(self, after: Plan, example: Example) -> list[Call]:
        """The numbers that a forward works out from widths, of the network really cut."""
        small = copied(self._model)
        cut(small, self._before, after)
        with torch.no_grad(), Numbers() as seen:
            small(*(example if isinstance(example, tuple) else (example,)))
        calls: list[Call] = seen.calls
        return calls


class Forward:
    """A call of a network with the widths that stay, where widths are part of a formula."""

    def __init__(self, kept: dict[int, dict[int, Tensor]], calls: Sequence[Call]) -> None:
        self._kept, self._calls = kept, calls

    def __call__(self, model: nn.Module, *inputs: Tensor) -> Any:
        with KeptWidths(self._kept, self._calls):
            return model(*inputs)
