"""Stages by content: a key names what a stage was made of, so nothing is ever made twice.

One file a stage, `<key>.safetensors`: tensors, and in its header the stage's record as JSON, with
checksums of both. Files appear whole (written aside, then renamed). A stage that is being
made is locked by its process (the kernel frees the lock when the process dies). The folder is kept
under a size cap, least recently used first; a stage that is gone is made again, identically.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from harness.errors import StoreError
from harness.tensorfile import read_tensors

GIGABYTE = 10**9
Hold = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Record:
    """What a stage leaves behind: plain facts, and tensors on the CPU."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Store(Protocol):
    """Where stages are looked for before they are made."""

    def get(self, key: str, prefix: str = "") -> Record | None: ...
    def put(self, key: str, record: Record) -> None: ...
    def making(self, key: str) -> AbstractContextManager[None]: ...


def key_of(content: Mapping[str, Any]) -> str:
    """Key of a stage: hash of everything that its result depends on, its parent's key included."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_key(key: object) -> bool:
    """Whether it may be a stage's: a key from elsewhere, such as MLflow, is part of no other path.
    """
    return isinstance(key, str) and re.fullmatch(r"\w[\w-]{0,99}", key, re.ASCII) is not None


class NoStore:
    """Forgets everything: results must be the same with it."""

    def get(self, key: str, prefix: str = "") -> Record | None:
        return None

    def put(self, key: str, record: Record) -> None:
        pass

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        yield


class Shelf:
    """A part of a store, under a name: the same keys, and so the same seeds, with results of their
    own, such as those that equal others' within rounding and not to the bit."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.root = getattr(store, "root", None)

    def get(self, key: str, prefix: str = "") -> Record | None:
        return self._store.get(f"{key}-{self._name}", prefix)

    def put(self, key: str, record: Record) -> None:
        self._store.put(f"{key}-{self._name}", record)

    def making(self, key: str) -> AbstractContextManager[None]:
        return self._store.making(f"{key}-{self._name}")


class FolderStore:
    """Stages in a folder, safe for several processes.

    hold: how a stage is locked while it is made; by default by a file's lock, as is right for the
    processes of one machine. version: of the code that makes stages; those of another version are
    not seen. It is no part of the key, so that seeds, which come from keys, stay the same when code
    is only rearranged. say: told of every broken file.
    Raises StoreError if the folder cannot be made or a stage cannot be written (disk full).
    """

    def __init__(self, root: Path, *, version: str = "any", cap_bytes: int = 10 * GIGABYTE,
                 hold: Hold | None = None, say: Callable[[str], None] = lambda text: None,
                 ) -> None:
        self.root, self._version, self._cap, self._say = root, version, cap_bytes, say
        self._hold = hold or self._hold_file
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the stage store cannot be made at {root}: {error.strerror}. "
                             "Choose another folder with --home.") from error

    def get(self, key: str, prefix: str = "") -> Record | None:
        """A stage's facts, and those of its tensors whose names begin with `prefix`.

        None if it is not there. A file that is broken is removed, told, and said to be not there.
        """
        path = self._path(key)
        try:
            header, tensors = read_tensors(path, prefix)
            facts, sums = header["facts"], json.loads(header["sums"])
            wanted = {n for n in sums if n.startswith(prefix)}
            wrong = [n for n in sorted(wanted | tensors.keys())
                     if n not in wanted or n not in tensors or _checksum(tensors[n]) != sums[n]]
            if wrong or _digest(facts.encode()) != header["facts_sum"]:
                raise ValueError(f"the checksum of {', '.join(wrong[:3]) or 'its facts'} is wrong")
            with suppress(FileNotFoundError):
                os.utime(path)  # used now: the last to be evicted
            return Record(json.loads(facts), tensors)
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError) as error:
            self._say(f"the stage {path.name} is broken ({str(error) or 'empty'}); it is not "
                      "trusted, and is made again")
            with suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}. Mend that, and run "
                             "the same command again.") from error

    def put(self, key: str, record: Record) -> None:
        """Write a stage whole or not at all, then make room under the cap."""
        tensors = {n: t.detach().to("cpu").contiguous() for n, t in record.tensors.items()}
        facts = json.dumps(record.facts)
        header = {"facts": facts, "facts_sum": _digest(facts.encode()),
                  "sums": json.dumps({n: _checksum(t) for n, t in tensors.items()})}
        write_whole(self._path(key), save(tensors, metadata=header))
        self._note_made(key)
        self._make_room(keep=self._path(key))

    def _note_made(self, key: str) -> None:
        path = self.root / "made.log"
        try:
            with path.open("a") as book:  # one short line: written in one piece
                book.write(f"{key}\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def times_made(self) -> Counter[str]:
        """Key -> how often it was made here, by whom ever; more than once if it was lost."""
        try:
            return Counter((self.root / "made.log").read_text().split())
        except FileNotFoundError:
            return Counter()

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Hold the stage's lock; a second process waits here, then finds the stage made."""
        with self._hold(key):
            yield

    @contextmanager
    def _hold_file(self, key: str) -> Iterator[None]:
        path = self._path(key).with_name(f"{key}.lock")
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path))
            except OSError as error:
                raise cannot_write(path, error) from error
            yield

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise StoreError(f"{key[:80]!r} is no key of a stage: a key is letters and digits.")
        return self.root / f"{key}.{self._version}.safetensors"

    def _make_room(self, keep: Path) -> None:
        files = []
        for path in self.root.glob("*.safetensors"):
            with suppress(OSError):  # another process may have removed it
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._cap:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def write_whole(path: Path, data: bytes) -> None:
    """A file that is there is whole: write aside, flush to the disk, rename.

    Raises StoreError, and leaves nothing behind, if the disk is full or cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StoreError:
    what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    return StoreError(f"cannot write {path}: {what}. Nothing is lost: make room (or choose another "
                      "folder with --home) and run the same command again.")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Own a file's lock while the block lasts; the kernel frees it if the process dies.

    Raises BlockingIOError at once if it is taken and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _checksum(tensor: Tensor) -> str:
    """Of what a tensor is: its type, its shape, its bits."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return _digest(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + data)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
