"""The configured data and network, as they are before anything is trained."""

import copy
import sys
from typing import Any

import torch
from torch import nn

from harness.config import RunConfig
from harness.data import Data, load
from harness.errors import ModelError
from harness.models import build
from harness.models.weights import digest_of, take_over
from harness.plugins import is_reference, load_object
from harness.runtime import seed_of, seeded


def load_data(config: RunConfig) -> Data:
    """The configured data set, on the CPU."""
    return load(config.data.name, size=config.data.size, val=config.data.val,
                test=config.data.test, seed=config.data.seed, options=config.data.options)


def network(config: RunConfig, data: Data) -> nn.Module:
    """The configured network, whole, on the CPU; its first weights are seeded or from a file."""
    return started(config, data)[0]


def started(config: RunConfig, data: Data) -> tuple[nn.Module, tuple[str, ...]]:
    """(the configured network, its tensors that `model.weights` did not have, if it is given)."""
    with seeded(seed_of(f"weights/{config.seed}/{config.replicate}")):
        model = build(**architecture(config, data))
    left: tuple[str, ...] = ()
    if config.model.weights:
        left = take_over(model, config.model.weights, config.model.name,
                         partly=config.model.partly)
    _check_fit(model, config, data)
    return model, left


def architecture(config: RunConfig, data: Data) -> dict[str, Any]:
    """What `harness.models.build` makes the whole network from; JSON."""
    channels, *sides = data.input_shape
    return {"name": config.model.name, "num_classes": data.num_classes, "in_channels": channels,
            "width": config.model.width, "input_size": min(sides),
            "options": dict(config.model.options)}


def _check_fit(model: nn.Module, config: RunConfig, data: Data) -> None:
    """Raises ModelError, before anything is trained, if outputs are no scores of the classes."""
    wanted = (2, *data.output_shape)
    try:
        with torch.no_grad():
            given = copy.deepcopy(model).eval()(data.val.inputs[:2])
    except Exception as error:  # whatever a person's own forward raises
        raise ModelError(f"model.name: {config.model.name} does not run on pictures of shape "
                         f"{data.input_shape} of {config.data.name}: {error}") from error
    found = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
    if found != wanted:
        raise ModelError(f"model.name: {config.model.name} gives {found} for two pictures; "
                         f"{config.data.name} has {data.num_classes} classes, one for every "
                         f"{'pixel' if data.task == 'pixels' else 'picture'}, and needs {wanted}.")


def model_facts(config: RunConfig) -> dict[str, Any]:
    """What a baseline is known by of its network. What came later is left out if it is unused."""
    facts = config.model.model_dump()
    return facts if facts["partly"] else {k: v for k, v in facts.items() if k != "partly"}


def digest_of_source(name: str) -> str | None:
    """Of the file of a person's own network: edited, it is another network. None for ours."""
    if not is_reference(name):
        return None
    load_object(name, "model")
    return digest_of(getattr(sys.modules[name.partition(":")[0]], "__file__", None), name)
