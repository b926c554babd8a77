"""Name an architecture by its structure, so that one and the same is traced once.

In the name go all that a trace may depend on: the classes of the modules with the code of their
methods (and of the functions and the constants that these use), plain attributes, the shapes and
types of tensors and which of them are one, the example's shapes, the versions of the libraries.
The values of weights do not. Where anything is found that cannot be named, there is no name.
"""

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping, Set
from enum import Enum

import torch
import torchvision
from torch import Tensor, nn

from harness.engine.graph import Example

_LIBRARIES = ("torch", "torchvision", "numpy", "math", "functools", "collections", "builtins")
# What nn.Module itself keeps: tensors and children are named by their own words, modes not at all.
_BOOKKEEPING = frozenset({"training", "_parameters", "_buffers", "_modules",
                          "_non_persistent_buffers_set", "_is_full_backward_hook", "_version",
                          "_backward_pre_hooks", "_backward_hooks", "_state_dict_hooks",
                          "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
                          "_load_state_dict_post_hooks"})


class _Nameless(Exception):
    """Something of which two might look alike and be different."""


def structure_of(model: nn.Module, example: Example) -> str | None:
    """A digest of the architecture at this input; None if it cannot be told."""
    digest = hashlib.sha256()
    try:
        for word in _words(model, example):
            digest.update(word.encode())
            digest.update(b"\0")
    except (_Nameless, RecursionError):
        return None
    return digest.hexdigest()


def _words(model: nn.Module, example: Example) -> Iterator[str]:
    say = _Description()
    yield f"torch {torch.__version__} torchvision {torchvision.__version__}"
    yield say.value(example)
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False),
                         *model.named_buffers(remove_duplicate=False)]:
        yield f"{name} {say.value(tensor)} is {first.setdefault(id(tensor), name)}"
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        yield f"{name} is {seen.setdefault(id(module), name)} {say.value(type(module))}"
        for key, value in sorted(vars(module).items()):
            if key not in _BOOKKEEPING:
                yield f"{key} {say.value(value)}"


class _Description:
    """Says values in words, classes and functions once."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def value(self, value: object) -> str:
        """Raises _Nameless for what may hide more than it shows."""
        if value is None or isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Tensor):
            return f"{tuple(value.shape)} {value.dtype}"
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, Mapping):
            pairs = [f"{self.value(k)}: {self.value(v)}" for k, v in value.items()]
            return f"{type(value).__name__} {{{', '.join(pairs)}}}"
        if isinstance(value, Set):
            return f"{{{', '.join(sorted(self.value(v) for v in value))}}}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__} [{', '.join(self.value(v) for v in value)}]"
        if isinstance(value, functools.partial):
            return f"partial {self.value([value.func, list(value.args), value.keywords])}"
        if isinstance(value, property):
            return f"property {self.value([value.fget, value.fset])}"
        if isinstance(value, staticmethod | classmethod):
            return self.value(value.__func__)
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return self._code_of(value)
        # A module held beside the tree, a bound method, an object: they may hide anything.
        if _is_library(value) and callable(value) and not isinstance(value, nn.Module):
            return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        raise _Nameless

    def _code_of(self, value: "type | types.FunctionType | types.BuiltinFunctionType") -> str:
        """A library's by name; a person's with its code and all that it uses, when first met."""
        name = f"{value.__module__}.{value.__qualname__}"
        if _is_library(value) or isinstance(value, types.BuiltinFunctionType):
            return name
        if value in self._said:
            return name
        self._said.add(value)
        if isinstance(value, type):
            own = [f"{key} {self.value(member)}" for key, member in sorted(vars(value).items())
                   if key not in _OF_EVERY_CLASS and not isinstance(member, _SLOTS)]
            return f"{name} ({', '.join(own)}) {self.value(list(value.__bases__))}"
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        used = {n: value.__globals__[n] for n in sorted(_names(value.__code__))
                if n in value.__globals__}
        return (f"{name} {_code(value.__code__)} "
                f"{self.value([value.__defaults__, value.__kwdefaults__, cells, used])}")


_PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device,
          torch.memory_format, slice)
_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_OF_EVERY_CLASS = frozenset({"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__",
                             "__annotations__", "__annotate__", "__parameters__",
                             "__orig_bases__", "__firstlineno__", "__static_attributes__"})


def _is_library(value: object) -> bool:
    return str(getattr(value, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in inner))


def _code(code: types.CodeType) -> str:
    consts = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {consts} {code.co_names}"
