"""Batches of tensors, against torch's DataLoader without workers; no network reads them.

`python -m benchmarks.data_path` goes over an epoch of digits both ways, and tells what an epoch's
batches, varied as the main job varies them, cost beside the epoch that they feed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import main_job
from benchmarks.goal import Record, alone
from benchmarks.rounds import cpu, interleaved, medians
from harness import train as training
from harness.config import apply
from harness.loading import load_data, network
from harness.translation import recipe_of

CLOCK = "process CPU time, one thread"


def measure(size: str) -> Iterator[Record]:
    """An epoch's batches: ours, a DataLoader's, and beside the training."""
    rounds = 2 if size == "tiny" else 9
    config = main_job.config(size)
    recipe = recipe_of(config, "retrain")
    plain = replace(recipe, augment="none")
    for side in (32, 8):
        data = load_data(apply(config, {"data.size": side})).train
        loader = DataLoader(TensorDataset(data.inputs, data.targets), plain.batch_size,
                            shuffle=True, num_workers=0)
        found = medians(interleaved({
            "ours": lambda: cpu(lambda: _exhaust(training.batches(
                data, plain, torch.Generator().manual_seed(0)))),  # noqa: B023
            "loader": lambda: cpu(lambda: _exhaust(loader))}, rounds))  # noqa: B023
        yield Record(
            6, f"batches beside a DataLoader without workers, {side} x {side}", ">=", 10.0,
            found["loader"] / found["ours"], "x cheaper",
            f"{len(data.targets)} digits in shuffled batches of {plain.batch_size}, not varied, "
            f"no network; {1e3 * found['ours']:.2f} ms and {1e3 * found['loader']:.1f} ms an "
            f"epoch; in turns, {CLOCK}, medians of {rounds} rounds",
            "copying the pictures is most of our time" if side == 32 else "")
    data = load_data(config)
    model = network(config, data).to(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], float]] = {
        "batches": lambda: cpu(lambda: _exhaust(training.batches(
            data.train, recipe, torch.Generator().manual_seed(0)))),
        "epoch": lambda: cpu(lambda: training.train(
            model, data.train, recipe, seed=0, validate=lambda _: training.Score(0.0, 0.0)))}
    rounds = min(5, rounds)
    found = medians(interleaved(ways, rounds))
    yield Record(
        6, "batches, of the epoch that they feed", "<=", 1.0,
        100 * found["batches"] / found["epoch"], "%",
        f"the main job's network and data, shifted as it shifts them; "
        f"{1e3 * found['batches']:.1f} ms of {found['epoch']:.2f} s; in turns, {CLOCK}, medians "
        f"of {rounds} rounds")


def _exhaust(batches: Iterable[object]) -> None:
    deque(batches, maxlen=0)


if __name__ == "__main__":
    alone(measure)
