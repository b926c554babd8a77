"""Channels that are gone cost nothing: an epoch of a network with a tenth of the MACs.

`python -m benchmarks.shrinking` times epochs of retraining, merged ranking and validation included,
of the main job's network whole and cut.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import main_job
from benchmarks.goal import Record, alone
from benchmarks.rounds import cpu, interleaved, medians
from harness import prune, trace
from harness import train as training
from harness.data import Split
from harness.engine.evidence import Watch
from harness.evaluate import evaluate
from harness.loading import load_data, network
from harness.translation import recipe_of

SHARE = 0.902  # of the MACs: a channel more or less, and still ten times fewer


def measure(size: str) -> Iterator[Record]:
    """Retrain epochs of a network cut to a tenth of its MACs, beside the whole one's."""
    rounds = 1 if size == "tiny" else 5 if size == "smoke" else 9
    config = main_job.config(size)
    data = load_data(config)
    train, val = (Split(split.inputs[::2], split.targets[::2]) for split in (data.train, data.val))
    whole = network(config, data).to(memory_format=torch.channels_last)
    example = data.val.inputs[:8]
    small = copy.deepcopy(whole)
    result = prune(small, example, target={"macs": SHARE}, criterion="random",
                   floors={"layer_min": 0.1}, certify_cut=False)
    recipe = recipe_of(config, "retrain")

    def epoch(model: nn.Module) -> float:
        copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
        graph = trace(whole, example)

        def validate(model: nn.Module) -> training.Score:
            found = evaluate(model, val)
            return training.Score(found.accuracy, found.loss)

        return cpu(lambda: training.train(copied, train, recipe, seed=0, validate=validate,
                                          observe=lambda: Watch(copied, graph)))

    found = medians(interleaved({"whole": lambda: epoch(whole), "small": lambda: epoch(small)},
                                rounds))
    fewer = result.before.macs / result.after.macs
    yield Record(
        10, f"a retrain epoch at {fewer:.1f}x fewer MACs, of the dense one's", "<=", 0.45,
        found["small"] / found["whole"], "",
        f"the main job's network and recipe, half of its pictures, merged ranking and validation "
        f"included; "
        f"{found['small']:.2f} s of {found['whole']:.2f} s; in turns, process CPU time, one "
        f"thread, medians of {rounds} rounds")


if __name__ == "__main__":
    alone(measure)
