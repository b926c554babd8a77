"""A sweep as one writes it first: everything anew for every trial, and nothing of our engine.

`python -m benchmarks.naive_sweep FOLDER` reads FOLDER/asked.json, {run: the configuration, trials:
[[settings, criterion], ...]}, and writes FOLDER/found.json. Network, pictures and their shifting
are ours; the rest is plain torch, MLflow and Optuna with their default SQLite stores. A trial
trains a baseline, ranks the filters in a pass of its own (Molchanov 2017), removes them one by one
with new layers for each, retrains, and is fine-tuned at its percentage. One thread, as ours.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from harness.augment import vary
from harness.config import RunConfig, apply
from harness.loading import load_data, network

Loader = DataLoader[tuple[Tensor, ...]]


@dataclass
class Spent:
    """What all trials took. counting_s: of `flops` alone, which a sweep would not count."""

    epochs: int = 0
    flops: int = 0
    counting_s: float = 0.0
    accuracies: list[float] = field(default_factory=list)
    widths: list[list[int]] = field(default_factory=list)


def main(folder: Path) -> None:
    """All trials that are asked for, tracked; how much was spent."""
    torch.set_num_threads(1)
    asked = json.loads((folder / "asked.json").read_text())
    config = RunConfig.model_validate(asked["run"])
    spent = sweep(config, asked["trials"], folder)
    (folder / "found.json").write_text(json.dumps(vars(spent)))


def sweep(config: RunConfig, trials: Sequence[tuple[Mapping[str, Any], str]], folder: Path,
          ) -> Spent:
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("naive")
    study = optuna.create_study(storage=f"sqlite:///{folder / 'optuna.db'}", direction="maximize")
    spent = Spent()
    space = {key: list(dict.fromkeys(settings[key] for settings, _ in trials))
             for key in trials[0][0]}
    for number, (settings, criterion) in enumerate(trials):
        study.enqueue_trial(dict(settings))
        asked = study.ask()
        run = apply(config, {key: asked.suggest_categorical(key, space[key]) for key in settings})
        with mlflow.start_run(run_name=f"trial {number}"):
            for key, value in settings.items():
                mlflow.log_param(key, value)
            study.tell(asked, _trial(run, criterion, number, spent))
    return spent


def _trial(config: RunConfig, criterion: str, number: int, spent: Spent) -> float:
    torch.manual_seed(number)
    data = load_data(config)
    size = config.baseline.batch_size
    loader: Loader = DataLoader(TensorDataset(data.train.inputs, data.train.targets), shuffle=True,
                                batch_size=size, drop_last=len(data.train) % size == 1)
    judged: Loader = DataLoader(TensorDataset(data.val.inputs, data.val.targets), batch_size=256)
    model = network(config, data)
    whole = [layer.out_channels for _, layer in _convolutions(model)]
    _fit(model, loader, judged, config.baseline, spent)
    left = sum(whole) - int(config.prune.percentage / 100 * sum(whole))
    least = [max(1, round(float(config.prune.floors.layer_min) * width)) for width in whole]  # type: ignore[arg-type]
    step = 0
    while (now := _filters(model)) > left:
        step += 1
        scores = _scores(model, loader, criterion)
        wanted = min(config.prune.filters_per_step, now - left)
        doomed = _lowest(scores, wanted, least)
        if not doomed:
            break
        for layer, index in doomed:
            remove(model, layer, index)
        mlflow.log_metric("accuracy_cut", _accuracy(model, judged)[0], step=step)
        accuracy = _fit(model, loader, judged, config.retrain, spent)
        for name, value in (("accuracy", accuracy), ("filters", _filters(model)),
                            ("params", sum(p.numel() for p in model.parameters()))):
            mlflow.log_metric(name, value, step=step)
    accuracy = _fit(model, loader, judged, config.finetune, spent)
    mlflow.log_metric("final_accuracy", accuracy)
    spent.accuracies.append(accuracy)
    spent.widths.append([layer.out_channels for _, layer in _convolutions(model)])
    return accuracy


def _fit(model: nn.Module, loader: Loader, judged: Loader, section: Any, spent: Spent) -> float:
    """Train for the section's epochs; the accuracy on validation behind the last."""
    accuracy = 0.0
    optimizer = torch.optim.SGD(model.parameters(), section.lr, section.momentum,
                                weight_decay=section.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, section.lr, total_steps=max(1, section.epochs * len(loader)))
    generator = torch.Generator().manual_seed(0)
    for epoch in range(section.epochs):
        model.train()
        total, seen = 0.0, 0
        for inputs, targets in loader:
            inputs, targets = vary(section.augment, inputs, targets, generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            total, seen = total + loss.item() * len(targets), seen + len(targets)
        accuracy, val_loss = _accuracy(model, judged)
        for name, value in (("train_loss", total / max(1, seen)), ("val_loss", val_loss),
                            ("val_accuracy", accuracy), ("lr", schedule.get_last_lr()[0])):
            mlflow.log_metric(name, value, step=epoch)
        spent.epochs += 1
        start = time.perf_counter()
        spent.flops += seen * training_flops(model, inputs[:1])
        spent.counting_s += time.perf_counter() - start
    return accuracy


def training_flops(model: nn.Module, picture: Tensor) -> int:
    """Of one picture, forward and backward, 2 a multiplication; the model is as before."""
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(picture).sum().backward()
    model.zero_grad()
    return int(counter.get_total_flops())


def _accuracy(model: nn.Module, judged: Iterable[Sequence[Tensor]]) -> tuple[float, float]:
    model.eval()
    hits, loss, seen = 0, 0.0, 0
    with torch.no_grad():
        for inputs, targets in judged:
            logits = model(inputs)
            hits += int((logits.argmax(1) == targets).sum())
            loss += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            seen += len(targets)
    return hits / seen, loss / seen


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def _filters(model: nn.Module) -> int:
    return sum(layer.out_channels for _, layer in _convolutions(model))


def _scores(model: nn.Module, loader: Loader, criterion: str) -> list[tuple[str, Tensor]]:
    """(layer, (filters,)) to keep what is highest; made comparable by each layer's norm."""
    layers = _convolutions(model)
    if criterion == "random":
        return [(name, torch.rand(layer.out_channels)) for name, layer in layers]
    if criterion == "l1":
        norms = [(name, layer.weight.detach().abs().mean((1, 2, 3))) for name, layer in layers]
        return [(name, norm / norm.mean()) for name, norm in norms]
    found = _taylor(model, loader, layers)
    return [(name, found[name] / (found[name].norm() + 1e-12)) for name, _ in layers]


def _taylor(model: nn.Module, loader: Loader, layers: Sequence[tuple[str, nn.Conv2d]],
            ) -> dict[str, Tensor]:
    """A pass over all training pictures, forward and back: |mean of activation x gradient|."""
    sums = {name: torch.zeros(layer.out_channels) for name, layer in layers}
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            output.retain_grad()
            kept[name] = output
        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
    model.eval()
    for inputs, targets in loader:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for name, output in kept.items():
            assert output.grad is not None
            sums[name] += (output * output.grad).detach().mean((2, 3)).abs().sum(0)
    for handle in handles:
        handle.remove()
    return sums


def _lowest(scores: Sequence[tuple[str, Tensor]], wanted: int, least: Sequence[int],
            ) -> list[tuple[str, int]]:
    """(layer, filter) of the lowest, the last filter of a layer first: other numbers stay right."""
    room = {name: len(score) - floor for (name, score), floor in zip(scores, least, strict=True)}
    order = sorted((float(value), name, index) for name, score in scores
                   for index, value in enumerate(score))
    chosen: list[tuple[str, int]] = []
    for _, name, index in order:
        if len(chosen) < wanted and room[name] > 0:
            chosen.append((name, index))
            room[name] -= 1
    return sorted(chosen, key=lambda pair: (pair[0], -pair[1]))


def remove(model: nn.Module, layer: str, index: int) -> None:
    """One filter: new layers for its convolution, its batch norm and whoever reads it."""
    modules = [(name, m) for name, m in model.named_modules()
               if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    place = [name for name, _ in modules].index(layer)
    old = modules[place][1]
    assert isinstance(old, nn.Conv2d)
    stay = [i for i in range(old.out_channels) if i != index]
    model.set_submodule(layer, _convolution(old, old.in_channels, len(stay), old.weight[stay],
                                            None if old.bias is None else old.bias[stay]))
    name, after = modules[place + 1]
    if isinstance(after, nn.BatchNorm2d):
        norm = nn.BatchNorm2d(len(stay), after.eps, after.momentum)
        norm.load_state_dict({key: value[stay] if value.dim() else value
                              for key, value in after.state_dict().items()})
        model.set_submodule(name, norm)
        name, after = modules[place + 2]
    if isinstance(after, nn.Conv2d):
        model.set_submodule(name, _convolution(after, len(stay), after.out_channels,
                                               after.weight[:, stay], after.bias))
        return
    assert isinstance(after, nn.Linear)
    each = after.in_features // old.out_channels
    columns = [i for i in range(after.in_features) if i // each != index]
    linear = nn.Linear(len(columns), after.out_features)
    linear.weight.data, linear.bias.data = after.weight.data[:, columns], after.bias.data
    model.set_submodule(name, linear)


def _convolution(old: nn.Conv2d, inputs: int, outputs: int, weight: Tensor, bias: Tensor | None,
                 ) -> nn.Conv2d:
    new = nn.Conv2d(inputs, outputs, old.kernel_size, old.stride, old.padding,  # type: ignore[arg-type]
                    bias=bias is not None)
    new.weight.data = weight.detach().clone()
    if bias is not None and new.bias is not None:
        new.bias.data = bias.detach().clone()
    return new


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main(Path(sys.argv[1]))
