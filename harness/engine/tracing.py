"""Trace a network: on the meta device, where nothing is computed or allocated."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.engine.graph import Example, Graph
from harness.engine.rehearsal import (
    freeze_sizes_in_forward,
    meta_copy,
    meta_inputs,
    where_raised,
)
from harness.engine.structure import structure_of
from harness.engine.tracer import Tracer
from harness.errors import GraphError


def trace(model: nn.Module, example: Example) -> Graph:
    """Find the channels of any module that live and die together, and what cannot be cut, and why.

    Where training runs other layers than evaluation (auxiliary heads), its graph is traced too.
    Then a cut of every group is rehearsed, so that sizes which the forward holds are known at once.
    The model itself is not touched. `example`: one input or a tuple of them, the first dimension
    being the batch. An architecture that was traced before, here, is not traced again.
    Raises GraphError if torch.export cannot trace the model.
    """
    _check(model, example)
    with _TRACING:
        return _known_or_traced(model, example)


def _known_or_traced(model: nn.Module, example: Example) -> Graph:
    key = structure_of(model, example)
    if key is None:
        return _traced(model, example)
    if key not in _KNOWN:
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
        _KNOWN[key] = _traced(model, example)
    return _KNOWN[key]


_TRACING = threading.RLock()  # torch.export is not for several threads at a time
_KNOWN: dict[str, Graph] = {}  # by structure; a graph holds no weights
_MOST_KNOWN = 16


def _check(model: nn.Module, example: Example) -> None:
    """Raises GraphError for what is no network yet, or nothing to run it on."""
    if not isinstance(model, nn.Module):
        raise GraphError(f"the model must be a torch.nn.Module, not a {type(model).__name__}.")
    lazy = [name for name, p in [*model.named_parameters(), *model.named_buffers()]
            if is_lazy(p)]
    if lazy:
        raise GraphError(f"{', '.join(lazy[:4])} have no size yet: run one forward of the lazy "
                         "modules first.")
    if any(isinstance(a, Tensor) and a.dim() and not len(a) for a in tree_leaves(example)):
        raise GraphError("the example is empty: its first dimension is the batch, give one or "
                         "more.")


def _traced(model: nn.Module, example: Example) -> Graph:
    blank, inputs = meta_copy(model), meta_inputs(example)
    tracer = Tracer(model, batch=_batch(inputs))
    notes = []
    for training in (False, True):
        if training and _trains_the_same(blank, inputs):
            break
        try:
            program = _export(blank.train(training), inputs)
        except Exception as error:  # torch.export raises a zoo of types
            if not training:
                raise GraphError(f"torch.export cannot trace {type(model).__name__}: "
                                 f"{_why(error, blank)}") from error
            notes.append(f"the train-mode graph could not be traced: {_why(error, blank)}")
            continue
        tracer.walk(program, counted=not training)
    return freeze_sizes_in_forward(tracer.graph(tuple(notes)), model, example)


def _why(error: Exception, model: nn.Module) -> str:
    """What torch.export says, in a line; and what it means where the forward looks at values."""
    if not isinstance(error, GuardOnDataDependentSymNode):
        return _first_line(error)
    where = where_raised(error, model)
    module = model.get_submodule(where)
    what = f"the forward of {where or 'the network'} ({type(module).__name__})"
    remedy = "choose by sizes or by settings instead"
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        remedy = ("PyTorch asks whether the mask is a causal one: call it with is_causal=True or "
                  "False (a decoder with tgt_is_causal, nn.Transformer with both, src_ and tgt_)")
    return (f"{what} goes by the values in a tensor, and a graph has none; {remedy}. "
            f"({_first_line(error)})")


def _export(blank: nn.Module, inputs: tuple[object, ...]) -> torch.export.ExportedProgram:
    """Tensors that the forward itself makes belong on the meta device too; that costs time."""
    with _quiet(), _undecomposed():
        try:
            return torch.export.export(blank, inputs, strict=False)
        except Exception:
            with torch.device("meta"):
                return torch.export.export(blank, inputs, strict=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """No words on the forward's own ways, which are the user's; what export fails at is raised."""
    loggers = [log for name in _TALKATIVE if not (log := logging.getLogger(name)).disabled]
    for log in loggers:
        log.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log in loggers:
            log.disabled = False


@contextmanager
def _undecomposed() -> Iterator[None]:
    """Where algorithms must be deterministic, PyTorch writes some operators out for the backward
    pass (an upsampling as many an indexing). A graph is never run, and is to name the operator."""
    was_on, warns = (torch.are_deterministic_algorithms_enabled(),
                     torch.is_deterministic_algorithms_warn_only_enabled())
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warns)


_TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


def _trains_the_same(blank: nn.Module, inputs: tuple[object, ...]) -> bool:
    """Whether training puts the same parameters to the same uses, and puts out the same shapes.

    Also noted is where values of several channels meet; dropout and stochastic depth do not.
    """
    try:
        return _uses(blank.eval(), inputs) == _uses(blank.train(), inputs)
    except Exception:  # whatever a forward raises on meta; the export will tell
        return False


def _uses(blank: nn.Module, inputs: tuple[object, ...]) -> tuple[object, object]:
    with torch.no_grad(), torch.device("meta"), _Uses(blank) as uses:
        out = blank(*inputs)
    return uses.seen, [tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor)]


class _Uses(TorchDispatchMode):
    """Notes operators that take a parameter, and those in which channels may meet, with shapes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, tuple[object, ...]]] = []
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._noise: dict[int, object] = {}  # kept, so that no other object gets its id

    def __torch_dispatch__(self, func: Callable[..., object], types: object,
                           args: tuple[object, ...] = (),
                           kwargs: dict[str, object] | None = None) -> object:
        tensors = [a for a in tree_leaves(args) if isinstance(a, Tensor)
                   and id(a) not in self._noise]
        taken = tuple(self._names.get(id(t)) or tuple(t.shape) for t in tensors)
        if any(isinstance(t, str) for t in taken) or _meet([t.shape for t in tensors]):
            self.seen.append((str(func), taken))
        out = func(*args, **(kwargs or {}))
        if any(word in str(func) for word in ("bernoulli", "rand", "empty")):
            self._noise[id(out)] = out
        return out


def _meet(shapes: list[torch.Size]) -> bool:
    """Whether two of the shapes are wide along one dimension, examples apart."""
    aligned = [dict(zip(range(-1, -len(shape) - 1, -1), reversed(shape))) for shape in shapes]
    wide = [{d for d, size in each.items() if size > 1 and d > -len(each)} for each in aligned]
    return any(a & b for n, a in enumerate(wide) for b in wide[:n])


def _batch(inputs: tuple[object, ...]) -> int:
    sizes = [a.shape[0] for a in tree_leaves(inputs) if isinstance(a, Tensor) and a.dim() > 0]
    return int(sizes[0]) if sizes else 1


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
