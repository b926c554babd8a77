"""The work of a traced network, product by product: forward, and in a training step.

Which gradients a step computes is found by running a copy on the meta device, where nothing is
computed: it depends on what is frozen, and on which layers the pictures reach first.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from harness.engine.cost import Use, Work
from harness.engine.graph import Example, Graph, Plan
from harness.engine.rehearsal import meta_copy, meta_inputs

_WEIGHTED = frozenset([
    nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d,
    nn.functional.conv_transpose1d, nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d])
Gradients = Mapping[str, tuple[bool, bool]]


def gradients(model: nn.Module, example: Example) -> Gradients:
    """Weight -> (whether its input's gradient is computed, whether its own is).

    Weights that are used inside PyTorch's own compound functions (attention) are not listed. The
    model is not touched. example: an input or a tuple of them.
    """
    blank = meta_copy(model).eval()
    watch = _Watch({id(tensor): name for name, tensor in blank.named_parameters()})
    with torch.enable_grad(), torch.device("meta"), watch:
        blank(*meta_inputs(example))
    return watch.found


def work(graph: Graph, needed: Gradients, plan: Plan | None = None) -> Work:
    """Everything that the network cut by `plan` (None: the whole one) multiplies.

    needed: of `gradients`. A weight that is not in it has both, and so has a product of
    activations: the gradient of either factor.
    """
    shares = plan.shares if plan else {}
    shapes = {name: [len(shares[name][dim]) if dim in shares.get(name, {}) else size
                     for dim, size in enumerate(shape)] for name, shape in graph.shapes.items()}
    numel = {name: prod(shape) for name, shape in shapes.items()}
    uses = []
    for product in graph.products:
        weight = product.weight or ""
        is_layer = weight in graph.names and "transpose" not in product.operator
        outputs = product.rows * shapes[weight][0] if is_layer else 0
        bias = f"{product.layer}.bias" if product.layer else "bias"
        own = weight if weight in needed else f"{product.layer}.weight"
        uses.append(Use(product.layer, product.operator, product.count(numel), outputs,
                        bias in shapes, *needed.get(own, (True, True))))
    return Work(tuple(uses), graph.uncounted)


class _Watch(TorchFunctionMode):
    """Notes, at every layer that is called, whether gradients will flow through it."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.found: dict[str, tuple[bool, bool]] = {}
        self._names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _WEIGHTED:
            source = args[0] if args else given["input"]
            weight = args[1] if len(args) > 1 else given["weight"]
            name = self._names.get(id(weight))
            if name is not None:
                before = self.found.get(name, (False, False))
                self.found[name] = (before[0] or source.requires_grad, weight.requires_grad)
        return func(*args, **given)
