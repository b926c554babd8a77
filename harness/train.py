"""The one loop, for training and for retraining: batches of tensors that lie on the device.

Shapes: N examples of a split, B of a batch, (C, H, W) of one input. Nothing is sent to the host
inside an epoch, and no batch waits for the device; the mean loss is read once, at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from harness.augment import vary
from harness.distillation import Lesson, Lessons, taught
from harness.errors import TrainingError
from harness.labels import IGNORE
from harness.losses import Mixture, Terms
from harness.schedules import Schedule

DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LATER = {"updates", "milestones", "gamma", "patience", "early_stop", "keep", "freeze", "terms",
         "lessons", "until"}
WATCHED, IN_A_ROW = 2, 3  # of the rule `gap`: the epoch compared with, from 0; and how often

PLAIN, ALONE = Terms(), Lessons()


class Examples(Protocol):
    """Inputs (N, C, H, W) and targets (N,) or (N, H, W), on the device."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


Found = TypeVar("Found")


class Team(Protocol):
    """Processes that train one network together, in step; `Solo` is a process by itself.

    size: how many. joined: a context that gives what is called in place of the model, so that
    gradients are means over the team. share: this process's part of a batch and its loss's weight
    in that mean. total: sums over the team. gathered: what a watch has seen becomes what all have.
    judged: a split judged together. part: from here on nothing is done together.
    """

    @property
    def size(self) -> int: ...
    @property
    def rank(self) -> int: ...
    def joined(self, model: nn.Module) -> AbstractContextManager[nn.Module]: ...
    def share(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]: ...
    def total(self, sums: Tensor) -> Tensor: ...
    def gathered(self, watch: Any) -> None: ...
    def judged(self, judge: Callable[[Any], Found], split: Examples) -> Found: ...
    def store(self, store: Any) -> Any: ...
    def device(self, name: torch.device) -> torch.device: ...
    def part(self) -> None: ...


class Solo:
    """Whoever has all to himself: nothing is shared, and nothing is changed."""

    size, rank = 1, 0

    def joined(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        return nullcontext(model)

    def share(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        return inputs, targets, 1.0

    def total(self, sums: Tensor) -> Tensor:
        return sums

    def gathered(self, watch: Any) -> None:
        pass

    def judged(self, judge: Callable[[Any], Found], split: Examples) -> Found:
        return judge(split)

    def store(self, store: Any) -> Any:
        return store

    def device(self, name: torch.device) -> torch.device:
        return name

    def part(self) -> None:
        pass


SOLO = Solo()


@dataclass(frozen=True)
class Recipe:
    """How to train; `epochs` is the whole of it, schedules never look beyond.

    updates: so many minibatches instead of epochs. milestones, gamma, patience: see `schedules`.
    early_stop: end after so many epochs without a lower validation loss; 0 is never. keep: the
    weights of the last epoch, or of the best, by validation loss. freeze: modules that stay as they
    are, statistics of their norms included. terms: what is added to the cross-entropy; lessons:
    what is learned from a teacher. until: 'epochs', or 'gap', ADaPT's adaptive time to prune: end
    once validation loss - training loss has been above what it was after the third epoch for three
    epochs in a row, after `epochs` at the latest.
    """

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 64
    augment: str | Sequence[str] = "none"
    label_smoothing: float = 0.0
    updates: int | None = None
    milestones: tuple[tuple[float, float], ...] = ()
    gamma: float = 0.2
    patience: int = 5
    early_stop: int = 0
    keep: str = "last"
    freeze: tuple[str, ...] = ()
    terms: Terms = PLAIN
    lessons: Lessons = ALONE
    until: str = "epochs"


@dataclass(frozen=True)
class Score:
    """What validation says after an epoch: accuracy in [0, 1], mean loss; top5 may be NaN."""

    accuracy: float
    loss: float
    top5: float = math.nan


@dataclass(frozen=True)
class Epoch:
    """One epoch's row: mean training loss, learning rate at its end, validation.

    train_accuracy: top-1 of the examples as they went by, or of their pixels, varied and in train
    mode.
    """

    train_loss: float
    lr: float
    val: Score
    train_accuracy: float = math.nan


def train(model: nn.Module, examples: Examples, recipe: Recipe, *, seed: int,
          validate: Callable[[nn.Module], Score], autocast: str = "none",
          observe: Callable[[], AbstractContextManager[object]] = nullcontext,
          on_epoch: Callable[[int, int], None] = lambda done, total: None,
          teacher: nn.Module | None = None, team: Team = SOLO) -> list[Epoch]:
    """Train in place with a new optimiser over all parameters that want gradients.

    observe: a context entered for the last epoch that is asked for (to gather evidence while it
    runs). on_epoch: told (epochs done, all epochs). teacher: needed for `recipe.lessons`. team: who
    trains it together; all are given the same. The model is left in eval mode; the last row is that
    of the weights it is left with.
    Raises TrainingError if the loss is no longer finite, in training or on validation.
    """
    with (_kept_still(model, recipe.freeze) as go,
          _lessons(model, teacher, recipe.lessons) as lesson, team.joined(model) as forward):
        course = _Course(model, examples, recipe, seed, autocast, lesson, go, forward, team)
        return course.run(validate, observe, on_epoch)


@dataclass
class _Course:
    """One training while it goes on. go: puts the network into train mode; forward: calls it."""

    model: nn.Module
    examples: Examples
    recipe: Recipe
    seed: int
    autocast: str
    lesson: Lesson | None
    go: Callable[[], object]
    forward: nn.Module
    team: Team

    def __post_init__(self) -> None:
        recipe = self.recipe
        self._device = next(self.model.parameters()).device
        self._generator = torch.Generator().manual_seed(self.seed)
        parts = len(_parts(torch.arange(len(self.examples.targets)), recipe.batch_size))
        self._per_epoch = max(1, parts)
        self._steps = recipe.epochs * parts if recipe.updates is None else recipe.updates
        self._optimizer = _optimizer(self.model, recipe)
        self._rate = Schedule(recipe.schedule, recipe.lr, self._steps, self._per_epoch,
                              recipe.milestones, recipe.gamma, recipe.patience)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._mixture = Mixture(recipe.terms, recipe.label_smoothing)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self.autocast == "fp16")

    def run(self, validate: Callable[[nn.Module], Score],
            observe: Callable[[], AbstractContextManager[object]],
            on_epoch: Callable[[int, int], None]) -> list[Epoch]:
        epochs = -(-self._steps // self._per_epoch)
        best, gap = _Best(self.recipe), _Gap()
        rows: list[Epoch] = []
        for epoch in range(epochs):
            with observe() if epoch == epochs - 1 else nullcontext() as watch:
                mean, accuracy = self._epoch(epoch)
            self.team.gathered(watch)
            val = validate(self.model.eval())
            for name, value in (("loss", mean), ("validation loss", val.loss)):
                if not math.isfinite(value):
                    raise TrainingError(f"the {name} is {value} after epoch {epoch + 1} of "
                                        f"{epochs} (learning rate {self.recipe.lr}). Lower the "
                                        "learning rate.")
            rows.append(Epoch(mean, float(self._schedule.get_last_lr()[0]), val, accuracy))
            self._rate.see(val.loss)
            on_epoch(epoch + 1, epochs)
            if best.is_over(self.model, rows) or (self.recipe.until == "gap"
                                                  and gap.is_open(rows)):
                break
        self.model.eval()
        return best.left(self.model, rows)

    def _epoch(self, epoch: int) -> tuple[float, float]:
        """(mean loss, accuracy) of an epoch's examples."""
        self.go()
        loss_of = self._mixture.at(epoch)
        sums = torch.zeros(3, device=self._device)
        total, hits, judged = sums.unbind()
        seen = 0
        left = self._steps - epoch * self._per_epoch
        for inputs, targets in islice(batches(self.examples, self.recipe, self._generator), left):
            seen += len(targets)
            inputs, targets, weight = self.team.share(inputs, targets)
            self._optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._device.type, DTYPES[self.autocast],
                                enabled=self.autocast != "none"):
                logits = self.forward(inputs)
                loss = loss_of(logits, targets)
                if self.lesson:
                    loss = loss + self.lesson(logits, inputs)
            self._scaler.scale(loss * weight).backward()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._schedule.step()
            total += loss.detach() * len(targets)
            hits += (logits.detach().argmax(1) == targets).sum()
            judged += (targets != IGNORE).sum()
        loss_sum, hit, all_judged = self.team.total(sums).tolist()
        return loss_sum / max(1, seen), hit / max(1, all_judged)


@contextmanager
def _kept_still(model: nn.Module, names: Sequence[str]) -> Iterator[Callable[[], object]]:
    """These modules stay as they are; gives what puts the others into train mode."""
    still = [model.get_submodule(name) for name in names]
    wanted = [(p, p.requires_grad) for module in still for p in module.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)

    def go() -> None:
        model.train()
        for module in still:
            module.eval()

    try:
        yield go
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)


@contextmanager
def _lessons(model: nn.Module, teacher: nn.Module | None, lessons: Lessons,
             ) -> Iterator[Lesson | None]:
    if not lessons.are_given:
        yield None
        return
    if teacher is None:
        raise TrainingError("there are lessons, and nobody to teach them.")
    with taught(model, teacher, lessons) as lesson:
        yield lesson


class _Gap:
    """Whether validation loss - training loss has been too wide for some epochs in a row."""

    def is_open(self, rows: Sequence[Epoch]) -> bool:
        """After an epoch."""
        gaps = [row.val.loss - row.train_loss for row in rows]
        later = gaps[WATCHED + 1:]
        return len(later) >= IN_A_ROW and all(gap > gaps[WATCHED] for gap in later[-IN_A_ROW:])


class _Best:
    """Whether to end early, and which epoch's weights to leave: by the validation loss."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._row = -1
        self._loss = math.inf
        self._state: dict[str, Tensor] = {}

    def is_over(self, model: nn.Module, rows: Sequence[Epoch]) -> bool:
        """After an epoch."""
        if rows[-1].val.loss < self._loss:
            self._row, self._loss = len(rows) - 1, rows[-1].val.loss
            if self._recipe.keep == "best":
                self._state = {name: t.clone() for name, t in model.state_dict().items()}
        waited = len(rows) - 1 - self._row
        return bool(self._recipe.early_stop) and waited >= self._recipe.early_stop

    def left(self, model: nn.Module, rows: list[Epoch]) -> list[Epoch]:
        """The rows up to the weights that stay; later epochs were tried for nothing."""
        if not self._state or self._row == len(rows) - 1:
            return rows
        model.load_state_dict(self._state)
        return rows[:self._row + 1]


def facts(recipe: Recipe) -> dict[str, Any]:
    """What stages are known by. What came later and has no effect is left out: keys stay."""
    usual = Recipe(epochs=0, lr=0.0)
    return {name: value for name, value in asdict(recipe).items()
            if name not in LATER or getattr(recipe, name) != getattr(usual, name)}


def batches(examples: Examples, recipe: Recipe, generator: torch.Generator,
            ) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled, augmented epoch.

    A last batch of one is left out: it has no statistics. If all are of one, all stay.
    """
    order = torch.randperm(len(examples.targets), generator=generator).to(examples.targets.device)
    for chosen in _parts(order, recipe.batch_size):
        # index_select copies whole pictures: half the time of inputs[chosen], the same values
        yield vary(recipe.augment, examples.inputs.index_select(0, chosen),
                   examples.targets.index_select(0, chosen), generator)


def _parts(order: Tensor, size: int) -> Sequence[Tensor]:
    """Which examples each batch of an epoch has; see `batches` for the last one."""
    parts: Sequence[Tensor] = order.split(size)
    is_short = len(parts[-1]) < 2 and min(len(order), size) != 1
    return parts[:-1] if is_short else parts


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum,
                           weight_decay=recipe.weight_decay)
