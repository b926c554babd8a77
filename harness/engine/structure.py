"""Name an architecture by its structure, so that one and the same is traced once.

In the name go all that a trace may depend on: the classes of the modules with the code of their
methods (and of the functions and the constants that these use), plain attributes, the shapes and
types of tensors and which of them are one, the example's shapes, the versions of the libraries.
The values of weights do not, nor those of other tensors that a trace puts on the meta device; of
tensors that it does not (in a function's globals or closure), every number does. Where anything is
found that cannot be named, there is no name.
"""

import dis
import functools
import hashlib
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from enum import Enum

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

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
    yield say.value(tree_map_only(Tensor, _form, example))
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False),
                         *model.named_buffers(remove_duplicate=False)]:
        yield f"{name} {_form(tensor)} is {first.setdefault(id(tensor), name)}"
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        yield f"{name} is {seen.setdefault(id(module), name)} {say.value(type(module))}"
        for key, value in sorted(vars(module).items()):
            if key not in _BOOKKEEPING:
                yield f"{key} {_form(value) if isinstance(value, Tensor) else say.value(value)}"


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


class _Description:
    """Says values in words, classes and functions once."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def value(self, value: object) -> str:
        """Raises _Nameless for what may hide more than it shows."""
        if value is None or (isinstance(value, _PLAIN) and _is_library(type(value))):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Enum):
            methods = [m for c in type(value).__mro__ for m in _persons_own(c).values()]
            return f"{type(value).__qualname__}.{value.name} {self.value([value.value, methods])}"
        if isinstance(value, Tensor):
            return f"{_form(value)} {_numbers(value)}"
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, Mapping):
            pairs = [f"{self.value(k)}: {self.value(v)}" for k, v in value.items()]
            return f"{self._kind(value)} {{{', '.join(pairs)}}}"
        if isinstance(value, Set):
            words = sorted(self.value(v) for v in value)
            return f"{self._kind(value)} {{{', '.join(words)}}}"
        if isinstance(value, list | tuple):
            return f"{self._kind(value)} [{', '.join(self.value(v) for v in value)}]"
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

    def _kind(self, value: object) -> str:
        """The class of a container; a person's own class may keep more than what is in it."""
        if _is_anothers(type(value)):
            return type(value).__name__
        if not hasattr(value, "__dict__"):
            raise _Nameless
        return f"{self.value(type(value))} {self.value(vars(value))}"

    def _code_of(self, value: "type | types.FunctionType | types.BuiltinFunctionType") -> str:
        """A library's by name; a person's with its code and all that it uses, when first met."""
        name = f"{value.__module__}.{value.__qualname__}"
        if value is os.getenv:
            return self.value(os.environ)
        if isinstance(value, types.BuiltinFunctionType) or value in self._said:
            return name
        self._said.add(value)
        if isinstance(value, type):
            members = _persons_own(value) if _is_library(value) else vars(value)
            own = [f"{key} {self.value(member)}" for key, member in sorted(members.items())
                   if key not in _OF_EVERY_CLASS and not isinstance(member, _SLOTS)]
            return f"{name} ({', '.join(own)}) {self.value(list(value.__bases__))}"
        if _is_library(value):
            return name
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        names = _names(value.__code__)
        used = {n: value.__globals__[n] for n in sorted(names) if n in value.__globals__}
        return (f"{name} {_code(value.__code__)} "
                f"{self.value([value.__defaults__, value.__kwdefaults__, cells, used])} "
                f"{self._in_modules(used.values(), names)}")

    def _in_modules(self, used: Iterable[object], names: Set[str]) -> str:
        """What the names of a function may mean in the modules that it uses.

        Of a library's module it is only what may be another next time: data, and what a person has
        put there.
        """
        found = []
        for module in used:
            if not isinstance(module, types.ModuleType) or (module, names) in self._said:
                continue
            self._said.add((module, names))
            inside = {n: vars(module)[n] for n in sorted(names) if n in vars(module)}
            if _is_anothers(module):
                inside = {n: v for n, v in inside.items() if isinstance(v, types.ModuleType)
                          or (isinstance(v, _MADE) and not _is_anothers(v))
                          or isinstance(v, Mapping | Set | list) or v is os.getenv}
            found.append(f"{module.__name__} {self.value(inside)} "
                         f"{self._in_modules(inside.values(), names)}")
        return " ".join(found)


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format,
          slice)
_MADE = (types.FunctionType, type)
# What these give, no look at the code can tell.
_OPAQUE = frozenset({"globals", "locals", "vars", "eval", "exec", "compile", "__import__", "open"})
_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_OF_EVERY_CLASS = frozenset({"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__",
                             "__annotations__", "__annotate__", "__parameters__",
                             "__orig_bases__", "__firstlineno__", "__static_attributes__"})


def _is_library(value: object) -> bool:
    """Whether its code is a library's, not only its name: a decorator may have passed that on."""
    return {_top(name) for name in _homes(value)} <= set(_LIBRARIES)


def _is_anothers(value: object) -> bool:
    """Whether it is a library's or Python's own."""
    return {_top(name) for name in _homes(value)} <= {*_LIBRARIES, *sys.stdlib_module_names}


def _persons_own(library: type) -> Mapping[str, object]:
    """The methods that a person has put into a class of a library."""
    return {name: member for name, member in vars(library).items()
            if isinstance(member, types.FunctionType) and not _is_anothers(member)}


def _homes(value: object) -> list[str]:
    """Names of the modules that a function, a class or another thing comes from."""
    if isinstance(value, types.ModuleType):
        return [value.__name__]
    homes = [str(getattr(value, "__module__", None) or "")]
    if isinstance(value, types.FunctionType):
        homes.append(str(value.__globals__.get("__name__", "")))
    return homes


def _top(name: str) -> str:
    return name.partition(".")[0]


def _names(code: types.CodeType) -> frozenset[str]:
    """All names that it uses. Raises _Nameless where it may use more than it names."""
    for step in dis.get_instructions(code):
        named = step.argval
        if step.opname == "LOAD_GLOBAL" and named in _OPAQUE:
            raise _Nameless
        if step.opname == "IMPORT_NAME" and _top(named) not in {*_LIBRARIES,
                                                                *sys.stdlib_module_names}:
            raise _Nameless
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(code.co_names).union(*(_names(c) for c in inner))


def _numbers(tensor: Tensor) -> str:
    """A digest of what a tensor holds."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        raise _Nameless
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _code(code: types.CodeType) -> str:
    consts = [_constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {consts} {code.co_names}"


def _constant(value: object) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # `x in {"a", "b"}`: its order is another in every process
        return f"frozenset {sorted(map(repr, value))}"
    return repr(value)
