"""Go through a network again from where it differs: what comes before is taken from the first time.

Who changes one layer after the other, and looks each time at what the network puts out, computes
the same beginning again and again. Here a first pass keeps what the modules in front of the change
put out, batch by batch; later passes run the user's own forward, in which those modules answer from
memory. In a plain `nn.Sequential` only the last of them has to: what the others give goes nowhere.

Whether that is the same network is not believed but tried, see `agrees`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

GIGABYTE = 10**9


class Replay(nn.Module):
    """A model whose first modules answer from memory, once it is given its batches in order."""

    def __init__(self, model: nn.Module, changed: Sequence[str], batches: Sequence[Tensor], *,
                 earlier: "Replay | None" = None, cap_bytes: int = GIGABYTE) -> None:
        """changed: modules whose parameters will change; what ran before all of them is kept.

        earlier: of the same model and batches; where it keeps less, it is gone on from.
        cap_bytes: of all that is kept; batches for which there is no room are computed from the
        start every time.
        """
        super().__init__()
        self.model = model
        self._answering, self._passing = _before(model, changed, batches[0][:2])
        self._kept: list[dict[str, list[Any]]] = []
        self._turn = 0
        if earlier is not None and not earlier._is_before(self):
            earlier = None
        for place, batch in enumerate(batches if self._answering else ()):
            with (_noting(model, self._answering, until=changed) as kept,
                  earlier._answers(place) if earlier else nullcontext()):
                model(batch)
            cap_bytes -= sum(t.numel() * t.element_size() for t in tree_leaves(kept)
                             if isinstance(t, Tensor))
            if cap_bytes < 0:
                break
            self._kept.append(kept)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The modules that answer from memory, or are passed by."""
        return (*self._answering, *self._passing)

    def from_the_start(self) -> None:
        """The next batch is the first one again."""
        self._turn = 0

    def forward(self, batch: Tensor) -> Any:
        """What the model puts out for its next batch, as it is now behind what is kept."""
        turn = self._turn
        self._turn += 1
        with self._answers(turn):
            return self.model(batch)

    def agrees(self, batch: Tensor) -> bool:
        """Whether replaying the first batch gives what computing it does, as the model is now."""
        with torch.inference_mode():
            whole = self.model(batch)
            self.from_the_start()
            again = self(batch)
        self.from_the_start()
        return torch.allclose(whole, again, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


    def _answers(self, turn: int) -> AbstractContextManager[None]:
        """While this lasts, the modules in front answer for a batch, if it is kept."""
        if turn >= len(self._kept):
            return nullcontext()
        return _answered(self.model, self._kept[turn], self._passing)

    def _is_before(self, later: "Replay") -> bool:
        """Whether all that it skips, the later one skips too, by itself or within a larger one."""
        return all(any(f"{name}.".startswith(f"{own}.") for own in later.skipped)
                   for name in self.skipped)


class _Enough(Exception):
    """The rest of a forward is of no interest."""


def _before(model: nn.Module, changed: Sequence[str], example: Tensor,
            ) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(modules whose output is to be kept, modules that need not run at all), for these changes.

    Both are the largest modules that are through before any changed one is entered.
    """
    entered: dict[str, int] = {}
    left: dict[str, int] = {}
    calls: dict[str, int] = {}
    clock = iter(range(10**9))

    def enter(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            entered.setdefault(name, next(clock))
            calls[name] = calls.get(name, 0) + 1
        return note

    def leave(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            left[name] = next(clock)
        return note

    names = {name: module for name, module in model.named_modules() if name}
    handles = [handle for name, module in names.items() for handle in
               (module.register_forward_pre_hook(enter(name)),
                module.register_forward_hook(leave(name)))]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    if any(name not in entered for name in changed):  # used by others as a mere value
        return (), ()
    first = min((entered[name] for name in changed), default=0)
    done = [name for name in names if name in left and left[name] < first]
    largest = [name for name in done if name.rpartition(".")[0] not in done]
    passing = {name for name in largest if _goes_nowhere(model, name, largest, calls)}
    return (tuple(n for n in largest if n not in passing), tuple(passing))


def _goes_nowhere(model: nn.Module, name: str, done: Sequence[str], calls: dict[str, int]) -> bool:
    """Whether its output is read by nobody but the next module, which is through as well."""
    parent, _, own = name.rpartition(".")
    chain = model.get_submodule(parent)
    if type(chain).forward is not nn.Sequential.forward or calls.get(parent, 1) != 1:
        return False
    children = list(chain._modules)
    following = children[children.index(own) + 1:][:1]
    return bool(following) and f"{parent}.{following[0]}".removeprefix(".") in done


@contextmanager
def _noting(model: nn.Module, names: Sequence[str], until: Sequence[str],
            ) -> Iterator[dict[str, list[Any]]]:
    """Name -> copies of what the module puts out, call by call: what follows may work in place.

    A forward inside the block goes no further than to the first of `until`.
    """
    kept: dict[str, list[Any]] = {name: [] for name in names}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: kept[name].append(_copy(output))

    def stop(*_: object) -> None:
        raise _Enough

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    handles += [model.get_submodule(name).register_forward_pre_hook(stop) for name in until]
    try:
        with torch.inference_mode(), suppress(_Enough):
            yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _answered(model: nn.Module, kept: dict[str, list[Any]], passing: Sequence[str],
              ) -> Iterator[None]:
    """While the block lasts, these modules do not compute."""
    answers = {name: _from(iter(outputs)) for name, outputs in kept.items()}
    answers |= dict.fromkeys(passing, _passed_by)
    own = {name: vars(model.get_submodule(name)).get("forward") for name in answers}
    try:
        for name, answer in answers.items():
            vars(model.get_submodule(name))["forward"] = answer
        yield
    finally:
        for name, forward in own.items():  # of the class, but for whom somebody gave its own
            vars(model.get_submodule(name)).pop("forward", None)
            if forward is not None:
                vars(model.get_submodule(name))["forward"] = forward


def _from(outputs: Iterator[Any]) -> Callable[..., Any]:
    return lambda *inputs, **named: _copy(next(outputs))


def _passed_by(value: Any) -> Any:
    return value


def _copy(output: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, output)
