"""One trial by two processes over gloo, beside the same trial by one."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from team import SETTINGS
from tiny import run, study, write
from torch import nn

from harness.checking import check_pruning
from harness.devices import Team
from harness.engine.evidence import Gathered, Watch
from harness.engine.tracing import trace
from harness.errors import ConfigError, TrainingError
from harness.experiment import Experiment, Trial
from harness.store import FolderStore, NoStore, Record, Shelf

HERE = Path(__file__).parent


@dataclass
class Two:
    """What two processes saw of a trial, by rank; and the same trial by one."""

    seen: list[dict[str, Any]]
    found: list[dict[str, Any]]
    alone: Trial


def _environment() -> dict[str, str]:
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("team")
    done = subprocess.run([sys.executable, "team.py", str(folder)], cwd=HERE, timeout=300,
                          env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    config = run(**SETTINGS | {"devices": 1})
    return Two([json.loads((folder / f"rank-{n}.json").read_text()) for n in (0, 1)],
               [torch.load(folder / f"rank-{n}.pt") for n in (0, 1)],
               Experiment(config, NoStore()).trial(config))


def test_two_processes_take_the_decisions_of_one(two: Two) -> None:
    assert two.seen[0]["keys"] == two.seen[1]["keys"]
    kept = [[facts["kept"] for facts in found["facts"]] for found in two.found]
    assert kept[0] == kept[1] == [step.stage.facts["kept"] for step in two.alone.steps]
    assert len(kept[0]) > 2


def test_their_weights_are_the_same_bits_and_those_of_one_within_rounding(two: Two) -> None:
    for first, second, alone in zip(two.found[0]["tensors"], two.found[1]["tensors"],
                                    two.alone.steps, strict=True):
        assert first.keys() == alone.stage.tensors.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
            torch.testing.assert_close(tensor, alone.stage.tensors[name], rtol=1e-3, atol=1e-4)


def test_their_accuracies_losses_and_evidence_are_those_of_one(two: Two) -> None:
    for rank in (0, 1):
        for facts, gathered, alone in zip(two.found[rank]["facts"], two.found[rank]["gathered"],
                                          two.alone.steps, strict=True):
            assert facts["accuracy"] == pytest.approx(alone.accuracy, abs=1e-6)
            assert [row["train_loss"] for row in facts["epochs"]] == pytest.approx(
                [row.train_loss for row in alone.stage.epochs], rel=1e-3)
            wanted = alone.stage.gathered.tensors()
            assert gathered.keys() == wanted.keys()
            for name, tensor in gathered.items():
                scale = float(wanted[name].abs().double().max())
                torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0.01 * scale)


def test_the_first_alone_stores_and_the_other_is_given_what_it_finds(two: Two) -> None:
    assert two.seen[0]["stored"] > 3
    assert two.seen[1]["stored"] == 0
    assert all(two.seen[0]["reused"])
    assert two.seen[1]["reused"] == two.seen[0]["reused"]


def test_different_decisions_are_noticed_by_both_before_anything_is_trained(two: Two) -> None:
    for seen in two.seen:
        assert "different decisions" in seen["told"]


def test_evidence_of_two_halves_of_a_batch_is_that_of_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(3, 2)).eval()
    generator = torch.Generator().manual_seed(0)
    pictures, targets = torch.randn(4, 1, 5, 5, generator=generator), torch.tensor([0, 1, 1, 0])
    graph = trace(model, pictures)

    def gathered(part: slice) -> Gathered:
        with Watch(model, graph, ("activity", "activations", "maps", "pooled")) as watch:
            nn.functional.cross_entropy(model(pictures[part]), targets[part]).backward()
        return watch.gathered

    whole = gathered(slice(0, 4)).tensors()
    joined = gathered(slice(0, 2)).joined([gathered(slice(2, 4))]).tensors()
    assert joined.keys() == whole.keys()
    for name, tensor in joined.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)


def test_a_batch_is_shared_whole_and_each_share_weighs_what_it_holds() -> None:
    def team(rank: int) -> Team:
        return Team(SimpleNamespace(world_size=3, global_rank=rank))

    inputs, targets = torch.arange(7.0).view(7, 1), torch.arange(7)
    shares = [team(rank).share(inputs, targets) for rank in range(3)]
    assert torch.cat([share[1] for share in shares]).tolist() == targets.tolist()
    # A mean over three of weight x mean over a share is the mean over the batch.
    assert sum(float(own.mean()) * weight for own, _, weight in shares) / 3 == pytest.approx(3)
    with pytest.raises(TrainingError, match="a batch of 2 cannot be shared among 3"):
        team(0).share(inputs[:2], targets[:2])


def test_stages_of_several_devices_are_kept_apart_under_the_same_keys(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    shelf = Shelf(store, "2-devices")
    shelf.put("a", Record({"x": 1}, {}))
    assert store.get("a") is None
    found = shelf.get("a")
    assert found is not None
    assert found.facts == {"x": 1}
    assert Experiment(run(), NoStore()).key == Experiment(run(devices=2), NoStore()).key


def test_a_study_for_several_devices_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="--agents"):
        check_pruning(study(base=run(devices=2)))


def test_whoever_would_train_alone_what_several_should_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 are asked for, and 1 would train"):
        _ = Experiment(run(devices=2), NoStore()).trained


@pytest.mark.parametrize(("changes", "words"), [
    ({"device": "cuda:1"}, "not one card"),
    ({"prune__percentage_of": "latency"}, "latency of its own")])
def test_settings_that_several_devices_cannot_share_are_refused(
        changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(devices=2, **changes)


@pytest.mark.slow
def test_harness_run_on_two_devices_writes_one_run(tmp_path: Path) -> None:
    write(study(base=run(**SETTINGS, pictures=False)), tmp_path)
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "configs/tiny.yaml", "--home", str(home)],
        cwd=tmp_path, timeout=300, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as book:
        assert book.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    assert done.stdout.count("test accuracy, read once") == 1
