"""What one NVIDIA card does: the rate of training, waiting, small trials together, real latency.

`python -m benchmarks.gpu` takes under eight minutes on a card; without one it says so and ends.
Each measurement takes the device: tests run it on the processor, where its figures mean nothing.
"""

import copy
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import nn

from benchmarks import main_job
from benchmarks.children import ROOT
from benchmarks.goal import Record, alone, not_run
from benchmarks.rounds import interleaved, medians
from harness import prune, trace
from harness import train as training
from harness.data.splits import Split
from harness.engine.work import gradients, work
from harness.loading import load_data, network
from harness.models.vgg import vgg16_bn
from harness.runtime import settle
from harness.translation import recipe_of

CARD = torch.device("cuda:0")
TOGETHER = 8
ROUND_TO = 32
SIDE = 32  # of CIFAR's pictures


def measure(size: str) -> Iterator[Record]:
    """All of goal 13, on the first card."""
    if not torch.cuda.is_available():
        yield not_run(13, "on a GPU", "no NVIDIA card on this machine")
        return
    settle(1)
    yield from on(CARD, size)


def on(device: torch.device, size: str) -> Iterator[Record]:
    """The same on any device. Matrices, not convolutions, are the peak: that is what is asked."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    is_tiny = size == "tiny"
    rounds = 1 if is_tiny else 7
    yield rate(device, name, rounds, batch=8 if is_tiny else 1024, steps=1 if is_tiny else 20,
               width=0.125 if is_tiny else 1.0, side=64 if is_tiny else 8192)
    yield waits(device, name, size)
    yield from worth(device, name, rounds, [4] if is_tiny else [512, 32],
                     width=0.5 if is_tiny else 1.0)
    yield trials(device, name, size, rounds=1 if is_tiny else 3, seconds=0.1 if is_tiny else 10.0,
                 together=2 if is_tiny else TOGETHER)


def rate(device: torch.device, name: str, rounds: int, *, batch: int, steps: int, width: float,
         side: int) -> Record:
    """FLOPs of training a second, by those of a product of two square matrices in bf16."""
    model = vgg16_bn(num_classes=10, in_channels=3, width=width, input_size=SIDE)
    example = torch.randn(2, 3, SIDE, SIDE)
    flops = work(trace(model, example), gradients(model, example)).training_flops * batch * steps
    model = model.to(device, memory_format=torch.channels_last)
    pictures = torch.randn(batch * steps, 3, SIDE, SIDE, device=device).contiguous(
        memory_format=torch.channels_last)
    examples = Split(pictures, torch.arange(batch * steps, device=device) % 10)
    recipe = training.Recipe(1, 0.01, weight_decay=5e-4, batch_size=batch, augment="shift")
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = medians(interleaved({
        "training": lambda: clocked(device, lambda: _fit(model, examples, recipe, "bf16")),
        "matmul": lambda: clocked(device, lambda: [matrix @ matrix for _ in range(steps)])},
        rounds, warm=0 if rounds == 1 else 2))
    training_rate = flops / seconds["training"]
    peak = 2 * side**3 * steps / seconds["matmul"]
    return Record(
        13, "VGG-16 training, of the matmul rate", ">=", 25.0, 100 * training_rate / peak, "%",
        f"{name}: {training_rate / 1e12:.3g} of {peak / 1e12:.3g} TFLOP/s "
        f"({batch * steps / seconds['training']:.0f} pictures a second); our loop, shifted "
        f"pictures, batch {batch}, bf16 autocast, channels_last, against {side} x {side} bf16 "
        f"matrices; FLOPs counted exactly; in turns, medians of {rounds} rounds",
        "batch norms, ReLU and casting are bound by memory, and are no FLOPs")


def waits(device: torch.device, name: str, size: str) -> Record:
    """Calls that wait for the card: those of an epoch of 16 batches beyond one of 4."""
    config = main_job.config("tiny" if size == "tiny" else "smoke")
    data = load_data(config)
    model = network(config, data).to(device, memory_format=torch.channels_last)
    recipe = recipe_of(config, "retrain")
    found = []
    for batches in (4, 16):
        count = min(len(data.train.targets), batches * recipe.batch_size)
        examples = Split(data.train.inputs[:count], data.train.targets[:count]).to(device)
        _fit(model, examples, recipe)  # what is done once, such as choosing algorithms
        found.append(_waits(device, lambda: _fit(model, examples, recipe)))  # noqa: B023
    short, long = found
    return Record(13, "waiting for the device, by each batch of an epoch", "<=", 0.0,
                  max(0, long - short) / 12, "calls",
                  f"{name}: an epoch of 4 batches has {short}, one of 16 has {long}, as "
                  "torch.cuda.set_sync_debug_mode tells; the main job's network, data and recipe",
                  "something in a batch is read by the host, or copied and waited for")


def _waits(device: torch.device, do: Callable[[], object]) -> int:
    if device.type != "cuda":
        do()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            do()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in told)


def worth(device: torch.device, name: str, rounds: int, batches: Sequence[int], *, width: float,
          ) -> Iterator[Record]:
    """Realised by ideal speed-up with half of the filters gone and widths rounded."""
    whole = vgg16_bn(num_classes=10, in_channels=3, width=width, input_size=SIDE).eval()
    small = copy.deepcopy(whole)
    result = prune(small, torch.randn(2, 3, SIDE, SIDE), target={"filters": 0.5},
                   criterion="random", round_to=ROUND_TO, floors={"layer_min": 0.05},
                   certify_cut=False)
    ideal = result.before.macs / result.after.macs
    models = {key: model.eval().to(device, torch.bfloat16, memory_format=torch.channels_last)
              for key, model in (("whole", whole), ("small", small))}
    for batch in batches:
        pictures = torch.randn(batch, 3, SIDE, SIDE, device=device, dtype=torch.bfloat16).to(
            memory_format=torch.channels_last)
        seconds = medians(interleaved({
            key: lambda model=model, x=pictures: clocked(device, lambda: _forwards(model, x))
            for key, model in models.items()}, rounds))
        faster = seconds["whole"] / seconds["small"]
        found = Record(
            13, f"realised / ideal speed-up at 50 % of the filters, batch {batch}", ">=", 0.7,
            faster / ideal, "",
            f"{name}: {ideal:.2f}x fewer MACs, {faster:.2f}x faster; widths rounded to {ROUND_TO}, "
            f"bf16, channels_last; in turns, medians of {rounds} rounds",
            "norms and activations shrink less than MACs do, and narrow layers fill a card less")
        yield found if batch == batches[0] else found.told_only(
            "a small batch is bound by launching kernels, of which there are as many")


def trials(device: torch.device, name: str, size: str, *, rounds: int, seconds: float,
           together: int) -> Record:
    """Steps a second of so many processes that train a small network, by those of one."""
    found: dict[int, list[float]] = {1: [], together: []}
    for turn in range(rounds):
        for count in list(found)[::1 if turn % 2 else -1]:
            found[count].append(_together(device, size, seconds, count))
    one, all_of_them = median(found[1]), median(found[together])
    return Record(
        13, f"{together} small trials together beside one", ">=", 4.0, all_of_them / one, "x",
        f"{name}: {all_of_them:.0f} and {one:.0f} steps a second of the main job's network in "
        f"processes as agents are, turns of {seconds:g} s, medians of {rounds} rounds",
        "each process needs a core to launch kernels from, and the card takes turns between them")


def _together(device: torch.device, size: str, seconds: float, count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", str(device), size, str(seconds)]
    workers = [subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for worker in workers:  # all are warm before any is clocked
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin is not None
            print(file=worker.stdin, flush=True)
        said = [worker.communicate()[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"a worker has died: {[worker.returncode for worker in workers]}")
    return sum(map(float, said))


def _work(name: str, size: str, seconds: float) -> None:
    """A worker: says that it is warm, waits for a line, trains, and says how fast."""
    device = torch.device(name)
    config = main_job.config(size, {"model.width": 0.125})
    data = load_data(config).to(device)
    model = network(config, data).to(device, memory_format=torch.channels_last)
    recipe = recipe_of(config, "retrain")
    examples = Split(data.train.inputs[:512], data.train.targets[:512])
    _fit(model, examples, recipe)
    print("warm", flush=True)
    sys.stdin.readline()
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        _fit(model, examples, recipe)
        steps += -(-len(examples.targets) // recipe.batch_size)
    print(steps / spent, flush=True)


def _fit(model: nn.Module, examples: Split, recipe: training.Recipe, autocast: str = "none",
         ) -> None:
    """An epoch of the product's own loop; reading its loss at the end waits for the device."""
    training.train(model, examples, recipe, seed=0, autocast=autocast,
                   validate=lambda _: training.Score(0.0, 0.0))


def _forwards(model: nn.Module, pictures: torch.Tensor) -> None:
    with torch.inference_mode():
        for _ in range(20):
            model(pictures)


def clocked(device: torch.device, do: Callable[[], object]) -> float:
    """Seconds by the clock until the device has done it."""
    _settled(device)
    start = time.perf_counter()
    do()
    _settled(device)
    return time.perf_counter() - start


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str]) -> None:
    if argv[:1] == ["--worker"]:
        _work(argv[1], argv[2], float(argv[3]))
    else:
        alone(measure, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
