"""Training while others take the cores, and two agents beside one.

`python -m benchmarks.crowded` lets workers train the main job's network for some seconds at a time,
in turns: as the product trains (one thread, threads that wait without spinning), and as torch does
by itself (a thread a core). Two busy loops of its own take the cores for half of the turns.
"""

# torch before harness: as in a script of one's own, its threads are as torch sets them.
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median

import torch

from benchmarks.burners import burning
from benchmarks.children import ROOT
from benchmarks.goal import Record, alone

# Worker -> (threads, environment). '' is torch's own number.
WORKERS: dict[str, tuple[str, dict[str, str]]] = {
    "ours": ("1", {"OMP_WAIT_POLICY": "PASSIVE"}),
    "another": ("1", {"OMP_WAIT_POLICY": "PASSIVE"}),
    "two threads": ("2", {"OMP_WAIT_POLICY": "PASSIVE"}),
    "default": ("", {})}
OWN = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")


def measure(size: str) -> Iterator[Record]:
    """Throughput beside busy loops, and of two workers."""
    rounds = 1 if size == "tiny" else 5
    seconds = 0.5 if size == "tiny" else 2.0 if size == "smoke" else 6.0
    with workers(size, WORKERS) as at_work:
        rates = _rates(at_work, rounds, seconds)
    how = (f"steps a second of the main job's network, turns of {seconds:g} s, wall time, "
           f"medians of {rounds} rounds")
    for name, is_asked in (("ours", True), ("default", False)):
        busy, idle = rates[f"{name}, crowded"], rates[name]
        record = Record(
            7, f"{'ours' if is_asked else 'default torch'} with two busy loops beside it, of idle",
            ">=", 40.0, 100 * busy / idle, "%", f"{busy:.2f} of {idle:.2f} {how}",
            "three processes share two cores: two thirds of one is the most there is")
        yield record if is_asked else record.told_only("what torch does by itself, to compare with")
    yield Record(
        7, "ours / default torch, both with two busy loops beside them", "", 0.0,
        rates["ours, crowded"] / rates["default, crowded"], "x", how)
    for other, words in (("ours", "one agent"), ("two threads", "one agent with two threads")):
        yield Record(
            7, f"two agents beside {words}", ">=", 1.15, rates["two agents"] / rates[other], "x",
            f"{rates['two agents']:.2f} and {rates[other]:.2f} {how}; an agent is a worker with "
            "one thread",
            f"a second thread makes one worker {rates['two threads'] / rates['ours']:.2f} times as "
            "fast by itself" if (os.cpu_count() or 1) > 1 else "there is but one core")


def _rates(at_work: Mapping[str, "Worker"], rounds: int, seconds: float) -> dict[str, float]:
    """Steps a second: of each worker alone, beside busy loops, and of two at once."""
    found: dict[str, list[float]] = {}

    def turn(name: str, *together: str) -> None:
        for one in together:
            at_work[one].go(seconds)
        found.setdefault(name, []).append(sum(at_work[one].rate() for one in together))

    for number in range(rounds):
        idle = ["ours", "default", "two threads"]
        for name in idle if number % 2 else idle[::-1]:
            turn(name, name)
        turn("two agents", "ours", "another")
        with burning(2):
            for name in ("ours", "default") if number % 2 else ("default", "ours"):
                turn(f"{name}, crowded", name)
    return {name: median(rates) for name, rates in found.items()}


class Worker:
    """A process that trains for so long when it is told, and then says how fast."""

    def __init__(self, size: str, threads: str, environment: Mapping[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in OWN}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.crowded", "--worker", size, threads], cwd=ROOT,
            env={**clean, **environment}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.rate()  # it is there, and warm

    def go(self, seconds: float) -> None:
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)

    def rate(self) -> float:
        """Steps a second of the last turn; waits for its end."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"a worker has died ({self._process.wait()})")
        return float(json.loads(said))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def workers(size: str, named: Mapping[str, tuple[str, Mapping[str, str]]],
            ) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        found = {}
        for name, (threads, environment) in named.items():
            found[name] = Worker(size, threads, environment)
            stack.callback(found[name].close)
        yield found


def _work(size: str, threads: str) -> None:
    """A worker: a line with seconds in, a line with steps a second out."""
    from benchmarks import main_job
    from harness.loading import load_data, network
    from harness.translation import recipe_of

    own = torch.get_num_threads()
    config = main_job.config(size)
    torch.set_num_threads(int(threads) if threads else own)
    data = load_data(config)
    model = network(config, data).to(memory_format=torch.channels_last).train()
    size_of_batch = recipe_of(config, "retrain").batch_size
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, targets = data.train.inputs[:size_of_batch], data.train.targets[:size_of_batch]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    def rate(seconds: float) -> float:
        start, steps = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds or not steps:
            step()
            steps += 1
        return steps / spent

    print(rate(0.1), flush=True)
    for line in sys.stdin:
        print(rate(float(line)), flush=True)


def main(argv: Sequence[str]) -> None:
    if argv[:1] == ["--worker"]:
        _work(*argv[1:])
    else:
        alone(measure, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
