"""What a file says of itself, the same in every format.

format, opset            of the file; opset of ONNX alone
harness, torch           versions that wrote it
task, labels             classes of pictures or of pixels, in the order of the outputs
input_shape              (C, H, W) of a picture; any number of them at a time
input_mean, input_deviation   input = (value - mean) / deviation, a number a channel
value_range              from which to which number `value` goes, in the data set's own unit
input_range              the same of the inputs, as trained on
network, study, trial, control, role, step, run, stage, settings, version
                         where it comes from, as far as that is known
config, fingerprint      the run that it comes from, as YAML, and its fingerprint
model                    what `harness.models.build` makes the whole network from
macs, flops, params, filters   counted; FLOPs are 2 x MACs, of one picture
val_accuracy, test_accuracy    in [0, 1]; `measure` says of what
What is not known is not there.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from harness import __version__
from harness.config import RunConfig, fingerprint, to_yaml
from harness.data import Data
from harness.engine.cost import Cost


def record(config: RunConfig, data: Data, cost: Cost, *, model: Mapping[str, Any],
           lineage: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, as JSON holds it, but format and opset, which whoever writes the file adds.

    model: see `harness.loading.architecture`. lineage: network, study, ..., accuracies.
    """
    low, high = torch.aminmax(data.train.inputs)
    facts = {
        "harness": __version__, "torch": torch.__version__,
        "task": data.task, "labels": list(data.labels), "measure": data.measure,
        "input_shape": list(data.input_shape), "input_range": [float(low), float(high)],
        **_scaling(data), **lineage,
        "config": to_yaml(config), "fingerprint": fingerprint(config), "model": dict(model),
        "macs": cost.macs, "flops": cost.flops, "params": cost.params, "filters": cost.filters}
    known = {name: value for name, value in facts.items() if value is not None}
    plain: dict[str, Any] = json.loads(json.dumps(known))  # YAML takes no subclass of str
    return plain


def _scaling(data: Data) -> dict[str, list[float]]:
    """Nothing of a person's own data set that does not say how it was scaled."""
    if data.scaling is None:
        return {}
    return {"input_mean": list(data.scaling.mean), "input_deviation": list(data.scaling.deviation),
            "value_range": [data.scaling.low, data.scaling.high]}
