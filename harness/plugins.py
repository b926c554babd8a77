"""A person's own functions, named `package.module:function`, and what they may be called with.

Networks, data sets and criteria are named alike: by a row of our table, or by such a reference.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from harness.errors import ConfigError, UnknownName, unknown

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_PYTHONS = sys.stdlib_module_names | {"builtins"}
_LOADERS = {"torch.hub", "torch.serialization", "torch.utils.cpp_extension"}
_REFERENCE = re.compile(f"{_DOTTED}:{_DOTTED}")


def is_reference(name: str) -> bool:
    """Whether a name has the form package.module:function; nothing is imported."""
    return _REFERENCE.fullmatch(name) is not None


def load_object(reference: str, kind: str) -> Callable[..., Any]:
    """The function (or class) that `package.module:function` names.

    The current folder is searched first, and stays on the path, as with `python -m`.
    kind: what the function stands for, in the words of a message: 'model', 'data set'.

    Raises: UnknownName if the module or the function does not exist; ConfigError if the reference
    is malformed, the module fails while it is imported, or what is named cannot be called.
    """
    if not is_reference(reference):
        raise ConfigError(f"{kind} '{reference}' must look like package.module:function.")
    path, _, attributes = reference.partition(":")
    _refuse_pythons(path, reference, kind)
    found: Any = _module(path, f"{kind} '{reference}'")
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            near = get_close_matches(attribute, dir(found), n=3, cutoff=0.5)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise UnknownName(f"{kind} '{reference}': there is no '{attribute}' in it.{hint}")
        found = getattr(found, attribute)
    if inspect.isroutine(found) or inspect.isclass(found):  # torch:os.system is os.system
        _refuse_pythons(getattr(found, "__module__", None) or path, reference, kind)
    if not callable(found):
        raise ConfigError(f"{kind} '{reference}' is of type {type(found).__name__}, "
                          f"not a function.")
    return found  # type: ignore[no-any-return]


def arguments_for(function: Callable[..., Any], facts: Mapping[str, Any],
                  options: Mapping[str, Any], what: str, *, rest: Collection[str] = (),
                  ) -> dict[str, Any]:
    """The keywords to call a function with: the facts that it names, and all options.

    A fact that the signature does not name is left out, but goes to its **rest if it has one and
    the fact is listed in `rest`; an option is never left out.

    Raises: ConfigError if an option is none of the function's, or one that it needs is not given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} has no signature that Python can read: {error}.") from error
    named = [p.name for p in signature.parameters.values()
             if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    _refuse_unknown(options, [n for n in named if n not in facts], facts, takes_rest, what)
    taken = {*named, *rest} if takes_rest else set(named)
    arguments = {name: value for name, value in facts.items() if name in taken} | dict(options)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{what} cannot be called with its options: {error}.") from error
    return arguments


def _refuse_pythons(path: str, reference: str, kind: str) -> None:
    """A configuration may come with a file of somebody else's: os:system is nobody's network."""
    if path.partition(".")[0] in _PYTHONS or path in _LOADERS:
        raise ConfigError(f"{kind} '{reference}': {path} has no {kind}, and could do anything. "
                          "Name a function of yours, as in mylab.nets:small.")


def _module(path: str, what: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise ConfigError(f"{what}: importing {path} failed: {error}.") from error
        raise UnknownName(f"{what}: there is no module '{error.name}', neither in the current "
                          f"folder nor installed.") from error
    except (Exception, SystemExit) as error:  # a person's module may do anything when imported
        raise ConfigError(f"{what}: importing {path} failed: "
                          f"{type(error).__name__}: {error}.") from error


def _refuse_unknown(options: Iterable[str], known: list[str], facts: Mapping[str, Any],
                    takes_rest: bool, what: str) -> None:
    for option in options:
        if option in facts:
            raise ConfigError(f"{what}: '{option}' is a setting of its own, not an option.")
        if option not in known and not takes_rest:
            raise ConfigError(unknown(f"option of {what}", option, known))
