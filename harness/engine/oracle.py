"""What a channel is really worth: the change of the loss when it is silenced, and rank agreement.

A channel is silenced at its gates (see `evidence`): there its values become 0, in every
layer that writes it. That is what Taylor criteria estimate, and what a cut does where the
activation behind the gate keeps zero at zero. No weight is touched.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.evidence import Batch, Loss, alive_channels, in_mode, pairs
from harness.engine.graph import Graph, Plan
from harness.errors import GraphError

Channels = Mapping[str, Sequence[int]]  # group -> original numbers of channels


@contextmanager
def silenced(model: nn.Module, graph: Graph, plan: Plan, channels: Channels) -> Iterator[None]:
    """While the block lasts, the model (cut by `plan`) computes without these channels.

    Raises GraphError if a channel is not there, or its layer is no module that can be masked.
    """
    masks = _masks(graph, plan, channels)
    with ExitStack() as stack:
        for gate, mask in masks.items():
            module = model.get_submodule(gate)
            stack.callback(module.register_forward_hook(_hook(module, mask)).remove)
        yield


def loss_changes(model: nn.Module, graph: Graph, plan: Plan, batches: Iterable[Batch], loss: Loss,
                 channels: Channels) -> dict[str, Tensor]:
    """Group -> (number of its channels asked for,) loss without the channel minus loss with it.

    The oracle of Molchanov 2017 is the absolute value. One pass over the batches for every
    channel, in eval mode; loss: a mean over a batch. The model is left as it was.
    """
    given = list(batches)
    if not given:
        raise GraphError("the oracle has no batches.")
    changes = {}
    with in_mode(model, False):
        whole = _mean_loss(model, given, loss)
        for group, numbers in channels.items():
            values = []
            for number in numbers:
                with silenced(model, graph, plan, {group: [number]}):
                    values.append(_mean_loss(model, given, loss) - whole)
            changes[group] = torch.tensor(values, dtype=torch.float64)
    return changes


def sample(graph: Graph, plan: Plan, num_channels: int, *, seed: int = 0) -> dict[str, list[int]]:
    """Group -> channels, ascending: about as many of every group, `num_channels` in all.

    Less where a group, or the network, has not so many. Only groups that can be silenced.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = [g for g in graph.groups if all(w.tensor in graph.gates for w in g.writers)]
    orders = {g.name: plan.kept[g.name][torch.randperm(len(plan.kept[g.name]),
                                                       generator=generator)].tolist()
              for g in groups}
    turns = [(turn, name) for name, order in orders.items() for turn in range(len(order))]
    chosen: dict[str, list[int]] = {}
    for turn, name in sorted(turns, key=lambda t: t[0])[:num_channels]:
        chosen.setdefault(name, []).append(orders[name][turn])
    return {name: sorted(numbers) for name, numbers in chosen.items()}


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two (N,) rows of numbers, in [-1, 1]; equal numbers share a mean rank.

    Without ties it is 1 - 6 sum d^2 / (N (N^2 - 1)). NaN if all of a row are equal, or N < 2.
    """
    ranks = [_ranks(values.double()) for values in (a, b)]
    first, second = (r - r.mean() for r in ranks)
    spread = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / spread) if len(a) > 1 and spread > 0 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[place]
    return ranks


def _mean_loss(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> float:
    total, examples = 0.0, 0
    with torch.no_grad():
        for inputs, targets in pairs(batches):
            outputs = model(*inputs)
            total += float(loss(outputs, targets).double()) * len(targets)
            examples += len(targets)
    return total / examples


def _masks(graph: Graph, plan: Plan, channels: Channels) -> dict[str, Tensor]:
    """Gate -> (positions,) whether a channel stays."""
    masks: dict[str, Tensor] = {}
    groups = [graph[name] for name in channels]
    for group in groups:
        wanted = torch.as_tensor(list(channels[group.name]), dtype=torch.long)
        lost = wanted[~torch.isin(wanted, plan.kept[group.name])]
        if len(lost):
            raise GraphError(f"group '{group.name}' has no channels {lost.tolist()} to silence.")
        for writer in group.writers:
            stays = ~torch.isin(alive_channels(plan, writer), wanted)
            if writer.tensor not in graph.gates:
                raise GraphError(f"{writer.layer} is no module that can be silenced.")
            for gate in graph.gates[writer.tensor]:
                masks[gate] = masks[gate] & stays if gate in masks else stays
    return masks


def _hook(module: nn.Module, mask: Tensor) -> Any:
    def silence(_: nn.Module, __: object, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[-1 if isinstance(module, nn.Linear) else 1] = len(mask)
        # Chosen, not multiplied: infinity times 0 is not a number.
        return torch.where(mask.to(output.device).reshape(shape), output, 0.0)

    return silence
