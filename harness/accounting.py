"""Networks counted without training anything: the configured one, and a pruned one beside it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

from torch import Tensor, nn

from harness.analysis.costs import Account, Workload, account
from harness.checkpoint import load_pruned
from harness.config import RunConfig
from harness.engine.cost import Cost
from harness.engine.pruner import ignoring
from harness.engine.tracing import trace
from harness.loading import load_data, network


def describe(config: RunConfig) -> tuple[Cost, tuple[str, ...], Mapping[str, str]]:
    """(counts, groups that can be cut, group -> why it cannot), without training anything."""
    found, = accounts(config).accounts
    return found.cost, tuple(found.groups), found.frozen


@dataclass(frozen=True)
class Accounts:
    """Networks by name, the whole one first, each counted; `inputs`: a minibatch of pictures."""

    models: Mapping[str, nn.Module]
    accounts: tuple[Account, ...]
    inputs: Tensor


def accounts(config: RunConfig, pruned: FilePath | None = None) -> Accounts:
    """Count the configured network without training anything, and a pruned one of it from a file.

    Raises: ModelError for a file that is no pruned network, or one of another network.
    """
    data = load_data(config)
    models = {config.name: network(config, data)}
    if pruned is not None:
        models[pruned.name] = load_pruned(copy.deepcopy(models[config.name]), pruned)
    phases = {name: getattr(config, name).epochs for name in ("baseline", "retrain", "finetune")}
    load = Workload(len(data.train), config.baseline.batch_size, phases)
    example = data.val.inputs[:2]
    counted = tuple(
        account(name, model, ignoring(trace(model, example), config.prune.ignore, model), example,
                load) for name, model in models.items())
    return Accounts(models, counted, data.val.inputs[: load.batch_size])
