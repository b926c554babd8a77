"""Data sets that torchvision fetches: where they lie, and what went wrong when fetching them."""

import os
from collections.abc import Callable
from pathlib import Path

from harness.errors import DataError


def data_home(root: str | None = None) -> Path:
    """The folder of an option; else `harness` in the user's cache, XDG_CACHE_HOME or ~/.cache."""
    if root is not None:
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def fetched(fetch: Callable[[], object], name: str, root: Path, source: str) -> None:
    """Let torchvision download; raises DataError that says how to do without.

    source: the address of what is fetched.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch()
    except Exception as error:  # a network, a disk and an archive fail in their own ways each
        raise DataError(f"data set {name} could not be downloaded into {root}: {error}. Fetch "
                        f"{source} in another way and unpack it there.") from error


def missing(name: str, problems: str, root: Path) -> DataError:
    """What to say when files are not there."""
    return DataError(f"data set {name}: {problems}. Download it with data.options.download=true, "
                     f"or say with data.options.root where it is, if not in {root}.")
