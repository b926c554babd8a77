"""One network with zeros among its weights: baseline, zeros, fine-tune that keeps them; tracked.

What is written down, besides what every run has (see `journal`): sparsity, sparsity.LAYER (shares
in [0, 1]), size_mb_dense, _csr, _coo, _gzip, latency_ms_dense and latency_ms_zeros (measured side
by side); weight_histograms.png and .csv, sparsity.json; and in the home sparse/NAME.safetensors.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save
from torch import nn

from harness.analysis import weight_histograms
from harness.analysis.costs import Sheet
from harness.analysis.sparse_sizes import Sizes, sizes
from harness.checking import check_pruning
from harness.checkpoint import state_of
from harness.config import RunConfig
from harness.console import Screen, percent
from harness.engine.inventory import sparsity
from harness.engine.sparsity import Zeros, weights_of, zeros_of
from harness.errors import ConfigError
from harness.evaluate import Latency, latencies
from harness.experiment import Experiment, Sparse
from harness.journal import Journal
from harness.store import write_whole
from harness.tracked import tracked
from harness.tracking import Tracker
from harness.trajectories import Stage, Step

NOT_FAST = ("zeros are not fast: a dense layer multiplies by them like by any other number, and "
            "FLOPs, parameters and filters are those of the whole network. To be faster, cut "
            "channels: harness run.")


@dataclass(frozen=True)
class SparseRun:
    """What came out, as tables. file: the network, as a state dict that model.weights takes."""

    sheets: tuple[Sheet, ...]
    file: Path


def run_sparse(config: RunConfig, home: Path, open_tracker: Callable[[], Tracker], screen: Screen,
               ) -> SparseRun:
    """Zeros as `sparsify` says, then the configured `finetune`, if it has epochs; zeros stay.

    The test split is read for the baseline and the result. Raises ConfigError, before anything is
    opened, for names that the network does not have, or if nothing is asked for.
    """
    check_pruning(config)
    if not (config.sparsify.amount or any(config.sparsify.layers.values())):
        raise ConfigError(f"{config.name}: nothing is to become zero. Set sparsify.amount=0.5, a "
                          "share of every layer's weights, or shares by module in "
                          "sparsify.layers.")
    with tracked(config, "sparse", home, open_tracker, screen) as run:
        tracker, run_id, experiment = run.tracker, run.run_id, run.experiment
        found = _found(experiment)
        _curves(Journal(tracker, run_id, experiment.whole), found)
        tracker.log_json(run_id, found.as_json(), "sparsity.json")
        tracker.log_text(run_id, weight_histograms.as_rows(found.bins), "weight_histograms.csv")
        picture = weight_histograms.picture(found.bins)
        tracker.log_figure(run_id, picture, "weight_histograms.png")
        tracker.log_model(run_id, found.after, experiment.data.val.inputs[:2], name="sparse",
                          metadata=experiment.record(experiment.baseline.plan, {"run": run_id}))
        folder = home / "sparse"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{config.name}.safetensors"
        write_whole(file, save(state_of(found.after)))
        write_whole(folder / f"{config.name}_weights.csv",
                    weight_histograms.as_rows(found.bins).encode())
        picture.savefig(folder / f"{config.name}_weights.png")
    return SparseRun((_accuracies(config.name, found), _layers(found),
                      _sizes(found.took, found.times)), file)


@dataclass(frozen=True)
class _Found:
    """All that is told of a sparse network; took, times: of the whole and of the one with zeros.

    tests: accuracy of both on the test split.
    """

    baseline: Stage
    sparse: Sparse
    scope: str
    after: nn.Module
    zeros: tuple[Zeros, ...]
    share: float
    took: Mapping[str, Sizes]
    times: Mapping[str, Latency]
    tests: tuple[float, float]
    bins: list[weight_histograms.Histogram]

    def as_json(self) -> dict[str, object]:
        """Shares and accuracies in [0, 1]."""
        return {
            "sparsity": self.share, "asked": dict(self.sparse.shares), "scope": self.scope,
            "layers": [asdict(z) | {"share": z.share} for z in self.zeros],
            "bytes": {name: asdict(size) for name, size in self.took.items()},
            "latency_ms": {name: asdict(time) for name, time in self.times.items()},
            "accuracy": {"whole": self.baseline.accuracy, "cut": self.sparse.cut.accuracy,
                         "after": self.sparse.final.accuracy},
            "test_accuracy": dict(zip(("whole", "after"), self.tests)), "note": NOT_FAST}


def _found(experiment: Experiment) -> _Found:
    sparse = experiment.sparsified()
    whole, after = (experiment.model(s) for s in (experiment.baseline, sparse.final))
    weights = {name: w for name, w in weights_of(whole).items() if name in sparse.shares}
    return _Found(
        experiment.baseline, sparse, experiment.config.sparsify.scope, after, zeros_of(after),
        sparsity(after), {"whole": sizes(whole), "zeros": sizes(after)},
        latencies({"whole": whole, "zeros": after}, experiment.data.val.inputs[:1]),
        (experiment.test_accuracy(experiment.baseline), experiment.test_accuracy(sparse.final)),
        weight_histograms.histograms(weights, dict(weights_of(after))))


def _curves(journal: Journal, found: _Found) -> None:
    """Step 0 is the whole network, step 1 that with zeros: its counts are the whole network's."""
    first, final, cost = found.baseline, found.sparse.final, journal.whole
    journal.step(Step(0, 0.0, first.accuracy, first.accuracy, cost, {}, first))
    journal.step(Step(1, 0.0, found.sparse.cut.accuracy, final.accuracy, cost, {}, final))
    journal.final(final, cost, test_accuracy=found.tests[1])
    made = int(final.facts["made_ms"])
    journal.summary({"sparsity": found.share,
                     **{f"sparsity.{z.layer}": z.share for z in found.zeros},
                     **{f"size_mb_{kind}": mb for kind, mb in found.took["zeros"].as_mb().items()}},
                    made)
    journal.latest({"latency_ms_dense": found.times["whole"].median_ms,
                    "latency_ms_zeros": found.times["zeros"].median_ms},
                   int(1000 * time.time()))  # measured now, whenever the network was made


def _accuracies(name: str, found: _Found) -> Sheet:
    sparse = found.sparse
    rows = [("whole", percent(found.baseline.accuracy), percent(found.tests[0])),
            ("with zeros, not retrained", percent(sparse.cut.accuracy),
             percent(found.tests[1]) if sparse.final is sparse.cut else None)]
    if sparse.final is not sparse.cut:
        rows.append(("behind the fine-tune, zeros kept", percent(sparse.final.accuracy),
                     percent(found.tests[1])))
    return Sheet(f"{name}: {percent(found.share)} of the weights are zero",
                 ("", "validation", "test"), tuple(rows))


def _layers(found: _Found) -> Sheet:
    asked, notes = found.sparse.shares, ["biases and norms stay as they are."]
    if found.scope == "global":
        notes.append(f"asked for: {percent(max(asked.values()))} of all layers together.")
        asked = {}
    rows = [(z.layer, z.weights, z.zeros, percent(z.share), percent(asked.get(z.layer)))
            for z in found.zeros]
    return Sheet("zeros by layer", ("layer", "weights", "zeros", "share", "asked"), tuple(rows),
                 tuple(notes))


def _sizes(took: Mapping[str, Sizes], times: Mapping[str, Latency]) -> Sheet:
    kinds = {"dense": "dense file", "csr": "sparse file (CSR)", "coo": "sparse file (COO)",
             "gzip": "dense file, gzip"}
    rows = [(text, *(f"{size.as_mb()[kind]:.3f} MB" for size in took.values()))
            for kind, text in kinds.items()]
    rows.append(("latency of one picture, median",
                 *(f"{time.median_ms:.2f} ms" for time in times.values())))
    return Sheet("size and speed", ("", "whole", "with zeros"), tuple(rows), (NOT_FAST,))
