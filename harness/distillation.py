"""A network in retraining learns from a teacher besides: the whole network that it was cut from.

Shapes: logits (N, K, ...), maps (N, C, H, W).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

Lesson = Callable[[Tensor, Tensor], Tensor]  # (the student's logits, inputs) -> what is added


@dataclass(frozen=True)
class Lessons:
    """What is learned from the teacher; weights of 0 are nothing.

    weight: of `soft_targets` at this temperature; attention: of `attention_distance`, the mean over
    the modules named in layers.
    """

    weight: float = 0.0
    temperature: float = 8.0
    attention: float = 0.0
    layers: tuple[str, ...] = ()

    @property
    def are_given(self) -> bool:
        return bool(self.weight or self.attention)


def soft_targets(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 x mean cross-entropy against the teacher's softened probabilities. Hinton et al. 2015."""
    wanted = (teacher.float() / temperature).softmax(1)
    given = log_softmax(logits.float() / temperature, 1)
    return temperature ** 2 * -(wanted * given).sum(1).mean()


def attention_distance(maps: Tensor, teacher: Tensor) -> Tensor:
    """Mean over examples of the squared distance of attention maps: mean over channels of squares,
    scaled to length 1. Zagoruyko and Komodakis 2017. The numbers of channels may differ.
    """
    def attention(given: Tensor) -> Tensor:
        return normalize(given.float().square().mean(1).flatten(1), dim=1)

    return (attention(maps) - attention(teacher)).square().sum(1).mean()


@contextmanager
def taught(student: nn.Module, teacher: nn.Module, lessons: Lessons) -> Iterator[Lesson]:
    """While entered, gives what to add to the loss of the batch that the student has just seen."""
    teacher.eval().requires_grad_(False)
    layers = lessons.layers if lessons.attention else ()
    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    hooks = [model.get_submodule(name).register_forward_hook(_keeper(kept, name))
             for model, kept in ((student, ours), (teacher, theirs)) for name in layers]

    def lesson(logits: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(inputs)
        total = logits.new_zeros((), dtype=torch.float32)
        if lessons.weight:
            total = total + lessons.weight * soft_targets(logits, wanted, lessons.temperature)
        if layers:
            found = [attention_distance(ours[name], theirs[name]) for name in layers]
            total = total + lessons.attention * torch.stack(found).mean()
        return total

    try:
        yield lesson
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(kept: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        kept[name] = output

    return keep
