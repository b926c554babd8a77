"""The stage store keeps what was put, whole, and forgets what is broken."""

import errno
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from harness.errors import StoreError
from harness.store import FolderStore, NoStore, Record, key_of, locked, write_whole


def record(value: float = 1.0) -> Record:
    return Record({"accuracy": value, "epochs": [{"lr": 0.1}]},
                  {"model/a": torch.full((3, 2), value), "activity/a": torch.arange(4)})


def test_what_was_put_is_got_back(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("k", record(0.25))
    got = FolderStore(tmp_path).get("k")
    assert got is not None
    assert got.facts == {"accuracy": 0.25, "epochs": [{"lr": 0.1}]}
    assert torch.equal(got.tensors["model/a"], torch.full((3, 2), 0.25))
    assert got.tensors["activity/a"].tolist() == [0, 1, 2, 3]


def test_a_prefix_loads_only_its_tensors(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("k", record())
    got = store.get("k", prefix="activity/")
    assert got is not None
    assert list(got.tensors) == ["activity/a"]


def test_a_stage_that_was_never_made_is_not_there(tmp_path: Path) -> None:
    assert FolderStore(tmp_path).get("nothing") is None
    assert NoStore().get("nothing") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_broken_file_is_not_trusted_and_goes(tmp_path: Path, damage: str) -> None:
    store = FolderStore(tmp_path)
    store.put("k", record())
    path = next(tmp_path.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 0xFF
    path.write_bytes({"truncate": bytes(data[:-5]), "flip": bytes(data), "empty": b"",
                      "text": b"not a stage"}[damage])
    assert store.get("k") is None
    assert not path.exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_what_was_read_is_nobody_elses(tmp_path: Path, damage: str) -> None:
    """The file may change, be cut short or go: a network that is at work stays what it was."""
    store = FolderStore(tmp_path)
    store.put("k", Record({}, {"w": torch.arange(5000.0)}))
    got = store.get("k")
    assert got is not None
    path = next(tmp_path.glob("*.safetensors"))
    if damage == "flip":
        with path.open("r+b") as file:  # in place: the file stays the same one
            file.seek(-4000, os.SEEK_END)
            file.write(b"\x01" * 100)
    elif damage == "truncate":
        os.truncate(path, 100)
    else:
        path.unlink()
    assert got.tensors["w"].tolist() == list(range(5000))


def test_no_byte_of_a_stage_changes_unseen(tmp_path: Path) -> None:
    """Neither of its weights nor of its facts, of shapes or of names; each is told."""
    told: list[str] = []
    store = FolderStore(tmp_path, say=told.append)
    store.put("k", record())
    path = next(tmp_path.glob("*.safetensors"))
    whole, seen = path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        if (found := store.get("k")) is None:
            seen += 1
        else:  # what means nothing: the order of two names
            assert found.facts == record().facts, f"byte {place}"
            assert all(torch.equal(found.tensors[n], t) for n, t in record().tensors.items())
    assert seen >= 0.95 * len(whole)
    assert len(told) == seen
    assert all("is broken (" in text and "made again" in text for text in told)


def test_a_file_that_cannot_be_read_is_not_taken_for_a_broken_one(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("k", record())
    path = next(tmp_path.glob("*.safetensors"))
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=f"cannot read {path}"):
        store.get("k")


def test_the_least_recently_used_stage_goes_first(tmp_path: Path) -> None:
    size = 8000
    store = FolderStore(tmp_path, cap_bytes=3 * size)
    big = Record({}, {"x": torch.zeros(1500)})  # 6 kB and a header
    for age, key in enumerate("abc"):
        store.put(key, big)
        os.utime(next(tmp_path.glob(f"{key}.*safetensors")), (1000 + age, 1000 + age))
    assert store.get("a") is not None  # used now: b is the oldest
    store.put("d", big)
    assert store.get("b") is None
    assert all(store.get(k) is not None for k in "acd")


def test_a_full_disk_leaves_nothing_behind_and_says_so(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full.*run the same command again"):
        write_whole(tmp_path / "stage", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be made at .*file"):
        FolderStore(tmp_path / "file" / "stages")


def test_a_key_depends_on_content_and_not_on_its_order() -> None:
    assert key_of({"a": 1, "b": [2, 3]}) == key_of({"b": [2, 3], "a": 1})
    assert key_of({"a": 1, "b": [2, 3]}) != key_of({"a": 1, "b": [3, 2]})


def _hold(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with locked(path):
        ready.set()
        os.kill(os.getpid(), 9)


def test_a_lock_is_exclusive_and_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path), pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(path, ready))
    process.start()
    process.join(30)
    assert process.exitcode == -9
    assert ready.is_set()
    with locked(path, wait=False):
        assert path.exists()


def test_stages_of_other_code_are_not_seen(tmp_path: Path) -> None:
    FolderStore(tmp_path, version="old").put("k", record())
    assert FolderStore(tmp_path, version="new").get("k") is None
    assert FolderStore(tmp_path, version="old").get("k") is not None


def test_the_store_counts_how_often_a_stage_was_made(tmp_path: Path) -> None:
    assert FolderStore(tmp_path).times_made() == {}
    for key in ("a", "b", "a"):
        FolderStore(tmp_path).put(key, record())
    assert FolderStore(tmp_path).times_made() == {"a": 2, "b": 1}


def test_a_stage_is_held_as_its_user_says(tmp_path: Path) -> None:
    held: list[str] = []

    @contextmanager
    def hold(key: str) -> Iterator[None]:
        held.append(key)
        yield
        held.append(f"{key} freed")

    with FolderStore(tmp_path, hold=hold).making("k"):
        assert held == ["k"]
    assert held == ["k", "k freed"]
    assert not (tmp_path / "k.lock").exists()
