"""Every test: one thread, a fixed seed, no network, its own folders."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from rows import Guard

pytest.register_assert_rewrite("sweep.desk")
# A study of seconds need not draw for seconds. Not in tiny.py: that is the source of its network,
# and an edited network is another one, with other weights to begin with.
tiny.run = partial(tiny.run, pictures=False)


def pytest_configure(config: pytest.Config) -> None:
    """A run of all tests fails if it leaves a row of docs/coverage.md without a proof."""
    config.pluginmanager.register(Guard())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What kills and restarts processes for minutes runs when it is asked for."""
    if "FAULTS" not in os.environ:
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="FAULTS=1 runs it"))


@pytest.fixture(autouse=True)
def _settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of one test is seen by the next, nor by the folder that pytest was started in."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("HARNESS_HOME", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
