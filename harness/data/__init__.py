"""Data sets by name: a row of DATASETS, or a person's own `package.module:function`.

Every one is a function of size, val, test and seed (and its own options) that returns Data;
`from_tensors` makes Data of any pictures in memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

from harness.data.cifar import cifar10, cifar100
from harness.data.digits import digits
from harness.data.folder import folder
from harness.data.masks import masks
from harness.data.pets import pets
from harness.data.scenes import scenes
from harness.data.splits import Data, Size, Split, from_tensors, sides, stratified
from harness.errors import DataError, HarnessError, UnknownName, unknown
from harness.plugins import arguments_for, is_reference, load_object

__all__ = ["DATASETS", "Data", "Split", "called", "from_tensors", "load", "sides", "stratified"]

DATASETS: Mapping[str, Callable[..., Data]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "digits": digits,
    "folder": folder,
    "masks": masks,
    "pets": pets,
    "scenes": scenes,
}


def called(name: str, facts: Mapping[str, Any], options: Mapping[str, Any],
           ) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that reads a data set, and what it is called with; nothing is read.

    facts: size, val, test and seed; options: what this data set takes besides.

    Raises: UnknownName, ConfigError (options, references) or DataError.
    """
    if name not in DATASETS and not is_reference(name):
        raise UnknownName(f"{unknown('data set', name, DATASETS)} "
                          f"Or your own: package.module:function.")
    source = DATASETS[name] if name in DATASETS else load_object(name, "data set")
    arguments = arguments_for(source, facts, options, f"data set {name}")
    if missing := [fact for fact in facts if fact not in arguments]:
        raise DataError(f"data set {name} must take size, val, test and seed; it does not take "
                        f"{', '.join(missing)}.")
    return source, arguments


def load(name: str, *, size: Size, val: float = 0.2, test: float = 0.2, seed: int = 0,
         options: Mapping[str, Any] | None = None) -> Data:
    """Read a data set, on the CPU.

    size: side of the pictures in pixels, or (height, width), as the data set is given it;
    val, test: shares of the whole, split by `seed`; options: what this data set takes besides.

    Raises: UnknownName, ConfigError (options, references) or DataError.
    """
    source, arguments = called(name, {"size": size, "val": val, "test": test, "seed": seed},
                               options or {})
    try:
        data = source(**arguments)
    except HarnessError:
        raise
    except Exception as error:  # a person's function may raise anything
        raise DataError(f"data set {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(data, Data):
        raise DataError(f"data set {name} returned a {type(data).__name__}, not harness.data.Data. "
                        f"harness.data.from_tensors makes one.")
    return data
