"""One trial on several devices, through Lightning Fabric: a process for each, all in step.

Every process makes the same trial from the same settings. Each trains its share of every batch;
gradients, statistics of batch norms, evidence and accuracies are those of all shares. The first
alone has a store, a tracker and a screen: what it finds in its store the others are given. They
look for stages by the same keys, and a key holds every channel that stays: so processes that have
come to different decisions are noticed at once, before any of them trains.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.errors import ConfigError, HarnessError, TrainingError
from harness.runtime import device_of
from harness.store import Record, Store
from harness.train import SOLO, Examples, Solo

Found = TypeVar("Found")


@contextmanager
def together(devices: int, device: str) -> Iterator["Solo | Team"]:
    """The team that this process is of; the others are started by the first, with its own words.

    Where processes were started by others (torchrun, SLURM) they are joined. What fails fails in
    all, and is told by the first.
    Raises ConfigError if Fabric is not installed or there are too few devices.
    """
    if devices == 1:
        yield SOLO
        return
    team = Team(_launched(devices, device))
    try:
        yield team
    except HarnessError:
        if team.leads:
            raise
    finally:
        distributed.destroy_process_group()


def _launched(devices: int, device: str) -> Any:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise ConfigError(f"devices: {devices} train together through Lightning Fabric: "
                          "pip install 'harness[devices]'.") from error
    kind = device_of(device).type
    if kind == "cuda" and torch.cuda.device_count() < devices:
        raise ConfigError(f"devices: {devices} are asked for, and this machine has "
                          f"{torch.cuda.device_count()}.")
    fabric: Any = Fabric(accelerator=kind, devices=devices,
                         strategy=DDPStrategy(broadcast_buffers=False))
    fabric.launch()
    return fabric


class Team:
    """The processes that `harness.train.Team` speaks of, each on its device."""

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self.size, self.rank = int(fabric.world_size), int(fabric.global_rank)
        self._is_together = True

    @property
    def leads(self) -> bool:
        """Whether this is the one that stores, logs and tells."""
        return self.rank == 0

    def part(self) -> None:
        """The trial is over: from here on each has its own to itself."""
        self._is_together = False

    def device(self, name: torch.device) -> torch.device:
        return torch.device(self._fabric.device)

    @contextmanager
    def joined(self, model: nn.Module) -> Iterator[nn.Module]:
        with _same_norms(model):
            yield self._fabric.setup_module(model)

    def share(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """Raises TrainingError for a batch that is too small to be shared."""
        start, end = self._part_of(len(targets))
        if len(targets) < self.size:
            raise TrainingError(f"a batch of {len(targets)} cannot be shared among {self.size} "
                                "devices: choose another batch_size.")
        return inputs[start:end], targets[start:end], (end - start) * self.size / len(targets)

    def _part_of(self, total: int) -> tuple[int, int]:
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def total(self, sums: Tensor) -> Tensor:
        if self._is_together:
            distributed.all_reduce(sums)
        return sums

    def gathered(self, watch: Any) -> None:
        if watch is None:
            return
        mine = type(watch.gathered).from_tensors(watch.gathered.tensors())  # on the CPU
        first, *others = self._of_all(mine)
        watch.gathered = first.joined(others)

    def judged(self, judge: Callable[[Any], Found], split: Examples) -> Found:
        """Means over parts of a split; where pixels have classes each judges the whole of it."""
        if not self._is_together:
            return judge(split)
        total = len(split.targets)
        start, end = self._part_of(total)
        if split.targets.dim() > 1 or total < self.size:
            return self._of_all(judge(split))[0]
        found: Any = judge(_Part(split.inputs[start:end], split.targets[start:end]))
        means = torch.tensor(list(vars(found).values()), dtype=torch.float64, device=self.device(
            split.targets.device))
        together = self.total(means * (end - start)) / total
        means_of_all: Found = type(found)(*together.tolist())
        return means_of_all

    def store(self, store: Store) -> Store:
        return _Shared(self, store)

    def agreed(self, key: str) -> None:
        """Raises TrainingError, in all, if they are not about to make or find the same stage."""
        keys = self._of_all(key)
        if len(set(keys)) > 1:
            raise TrainingError("the devices have come to different decisions: they ask for the "
                                f"stages {', '.join(keys)}. Nothing of it is kept. Run again with "
                                "devices: 1, and tell us.")

    def told(self, what: Found) -> Found:
        """What the first has, in all."""
        return self._of_all(what if self.leads else None)[0]  # type: ignore[return-value]

    def _of_all(self, mine: Found) -> Sequence[Found]:
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, mine)
        return found


@dataclass(frozen=True)
class _Part:
    inputs: Tensor
    targets: Tensor


class _Shared:
    """The first's store, for all of a team."""

    def __init__(self, team: Team, store: Store) -> None:
        self._team, self._store = team, store
        self.root = getattr(store, "root", None)

    def get(self, key: str, prefix: str = "") -> Record | None:
        team = self._team
        if not team._is_together:
            return self._store.get(key, prefix)
        team.agreed(key)
        return team.told(self._store.get(key, prefix) if team.leads else None)

    def put(self, key: str, record: Record) -> None:
        if self._team.leads:
            self._store.put(key, record)

    def making(self, key: str) -> AbstractContextManager[None]:
        return self._store.making(key) if self._team.leads else nullcontext()


@contextmanager
def _same_norms(model: nn.Module) -> Iterator[None]:
    """Batch norms see the batch of all while they train, on any device.

    torch's own SyncBatchNorm is for cards alone.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalized, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalized(norm: Any, values: Tensor) -> Tensor:
    """A batch norm's forward with mean and variance over all shares; as it is in eval mode."""
    if not (norm.training or norm.running_mean is None):
        return type(norm).forward(norm, values)  # type: ignore[no-any-return]
    dims = [d for d in range(values.dim()) if d != 1]
    x = values.float()
    count = _Sum.apply(x.new_tensor(float(x.numel() // x.shape[1])))
    mean = _Sum.apply(x.sum(dims)) / count
    shape = [1, -1, *[1] * (x.dim() - 2)]
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dims)) / count
    if norm.training and norm.running_mean is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            step = (norm.momentum if norm.momentum is not None
                    else 1 / float(norm.num_batches_tracked))
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), step)
            unbiased = variance * count / (count - 1)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), step)
    scaled = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    found: Tensor = scaled.to(values.dtype)
    return found


class _Sum(torch.autograd.Function):
    """A sum over the team; what flows back is the sum of what all want."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        found: Tensor = mine.clone()
        distributed.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found: Tensor = gradients[0].clone()
        distributed.all_reduce(found)
        return found
