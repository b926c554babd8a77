"""ADaPT's configuration files, read as runs of ours: the old keys have new homes (docs/adapt.md).

Keys are looked for in any section, whatever their case. Nothing is dropped in silence: what has no
effect here is told, what is not understood too, and modes that contradict each other are refused,
where ADaPT took the first of its list and passed over the rest (`by_priority` does so still).
"""

import configparser
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError

# In the order in which ADaPT's first true key wins; what it does here.
MODES: Mapping[str, str] = {
    "get_gops": "harness cost {run} --json",
    "unpruned_test_acc": "harness evaluate {run} --test --classes {classes}",
    "pruned_test_acc": "harness evaluate adapt_subsets --config {run} --test --classes {classes}",
    "no_finetune_channels_pruned": "harness channels {run}",
    "prune_filters": "harness run {run}",
    "binary_search": "harness study vgg16_search --config {run}",
}
NETWORKS = {"alexnet": "alexnet", "resnet": "resnet20", "resnet20": "resnet20",
            "mobilenet": "mobilenet_v2", "mobilenetv2": "mobilenet_v2", "squeezenet": "squeezenet"}
WITHOUT_EFFECT: Mapping[str, str] = {
    "logs": "runs are found in MLflow, by network, classes and percentage",
    "trained_on": "adapt.train_on says what a run is trained on, and every run keeps its own",
    "this_layer_up": "ADaPT's own modes did not use it",
    "iterative_pruning_increment": "ADaPT's own modes did not use it; prune.step is ours",
    "batch_lim": "was for timing; harness cost --measure measures",
    "inference_gops": "harness cost tells both, for inference and for training",
}
YES, NO = ("true", "1", "yes"), ("false", "0", "no", "none", "")


@dataclass(frozen=True)
class Translated:
    """settings: by key of a run; command: what to type then; notes: what to know."""

    settings: Mapping[str, Any]
    command: str
    notes: tuple[str, ...]


@dataclass
class _Old:
    """The file's keys in small letters; those that nobody asked for are told at the end."""

    given: Mapping[str, str]
    asked: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def text(self, key: str, usual: str = "") -> str:
        self.asked.add(key)
        return self.given.get(key, usual).strip()

    def flag(self, key: str, *, usual: bool = False) -> bool:
        text = self.text(key).lower()
        if key in self.given and text not in YES + NO:
            self.wrong.append(f"{key}: {text!r} must be True or False")
        return text in YES if key in self.given and text else usual

    def number(self, key: str, kind: Callable[[str], Any], usual: Any) -> Any:
        text = self.text(key)
        if not text or text.lower() == "none":
            return usual
        try:
            return kind(text)
        except ValueError:
            self.wrong.append(f"{key}: {text!r} must be a number")
            return usual


def translate(path: Path, *, name: str = "", by_priority: bool = False) -> Translated:
    """The run that a file of ADaPT's asks for; name: what it will be called, if not as the file.

    Raises ConfigError with all its mistakes.
    """
    name = name or path.stem
    old = _read(path)
    notes: list[str] = []
    mode = _mode(old, by_priority, notes)
    settings = {**_data(old), **_training(old), **_pruning(old, notes)}
    for key, why in WITHOUT_EFFECT.items():
        if old.text(key):
            notes.append(f"{key} has no effect: {why}")
    left = sorted(old.given.keys() - old.asked)
    notes += [f"{key} is not understood, and was left out" for key in left]
    if old.wrong:
        raise ConfigError("\n".join([f"{len(old.wrong)} mistakes in {path}",
                                     *(f"  {text}." for text in old.wrong)]))
    classes = ",".join(settings["adapt.classes"])
    command = MODES[mode].format(run=name, classes=classes) if mode else (
        f"harness baseline {name}")
    return Translated(settings, command.removesuffix(" --classes "), tuple(notes))


def _read(path: Path) -> _Old:
    parser = configparser.ConfigParser(inline_comment_prefixes=("#", ";"), interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration of ADaPT's: {error}.",
                          ) from error
    return _Old({key: value for section in parser.values() for key, value in section.items()})


def _mode(old: _Old, by_priority: bool, notes: list[str]) -> str | None:
    """The one mode that is on; of several the first, if that is how they are to be taken."""
    is_on = [mode for mode in MODES if old.flag(mode)]
    if old.flag("prune_weights"):
        if "prune_filters" in is_on:
            old.wrong.append("Prune_Filters and Prune_Weights are both True: filters are cut by "
                             "harness run, weights by harness sparsify. Leave one")
        else:
            notes.append("Prune_Weights: single weights go with harness sparsify")
    if len(is_on) > 1 and not by_priority:
        old.wrong.append(f"{' and '.join(is_on)} are all True, and each is a command of its own. "
                         f"Leave one (ADaPT took {is_on[0]}: --by-priority does)")
    elif len(is_on) > 1:
        notes.append(f"{is_on[0]} wins over {', '.join(is_on[1:])}, as in ADaPT")
    return is_on[0] if is_on else None


def _data(old: _Old) -> dict[str, Any]:
    network = old.text("architecture") or old.text("arch", "resnet20")
    if network.lower() not in NETWORKS:
        old.wrong.append(f"architecture: {network!r} must be one of {', '.join(NETWORKS)}")
    dataset = old.text("dataset", "cifar100").lower()
    if dataset not in ("cifar10", "cifar100"):
        old.wrong.append(f"dataset: {dataset!r} must be cifar10 or cifar100")
    named, listed = old.text("sub_name"), old.text("sub_classes")
    classes = [name for name in listed.replace("[", " ").replace("]", " ").replace(
        "'", " ").replace('"', " ").replace(",", " ").split()] or ([named] if named else [])
    found: dict[str, Any] = {
        "data.name": dataset, "data.options": {"outputs": "all", "download": True},
        "model.name": NETWORKS.get(network.lower(), "resnet20"),
        "adapt.classes": [] if classes == ["entire_dataset"] else classes}
    if old.text("pretrained"):
        found["model.weights"] = old.text("pretrained")
        found["baseline.epochs"] = 0
    share = old.number("train_val_split", float, 0.8)
    found["data.val"] = round(1 - share, 6)
    seed = old.number("manual_seed", int, 0)
    found["seed"] = max(0, seed)
    return found


def _training(old: _Old) -> dict[str, Any]:
    found: dict[str, Any] = {
        "momentum": old.number("momentum", float, 0.9),
        "batch_size": old.number("train_batch", int, 128),
        "weight_decay": old.number("weight_decay", float, 5e-4)}
    pairs = old.text("lr_schedule").split()
    if len(pairs) % 2:
        old.wrong.append("lr_schedule: must be pairs of an epoch and a rate")
    elif pairs:
        try:
            steps = [[float(a), float(b)] for a, b in zip(pairs[::2], pairs[1::2])]
        except ValueError:
            old.wrong.append(f"lr_schedule: {' '.join(pairs)!r} must be numbers")
        else:
            found |= {"schedule": "milestones", "milestones": steps,
                      "gamma": old.number("gamma", float, 0.2),
                      "lr": next((rate for _, rate in steps if rate > 0), 0.01)}
    old.text("gamma")
    return {f"finetune.{key}": value for key, value in found.items()}


def _pruning(old: _Old, notes: list[str]) -> dict[str, Any]:
    finetunes, retrains = old.flag("finetune"), old.flag("retrain")
    if finetunes and retrains:
        old.wrong.append("Finetune and Retrain are both True: train on from the pruned weights "
                         "(finetune.weights: pruned), or from new ones (new). Leave one")
    metric = old.text("metric", "weights").lower()
    if metric not in ("weights", "filters"):
        old.wrong.append(f"metric: {metric!r} must be weights (the L1 norm); for activations take "
                         "prune.criterion: mean_activation")
    if metric == "filters":
        notes.append("Metric: filters pruned nothing in ADaPT; the L1 norm of weights is taken")
    before = max(0, old.number("prune_after", int, 0))
    budget = old.number("finetune_budget", int, 0)
    is_static = old.flag("static", usual=True)
    if budget:
        notes.append(f"Finetune_Budget {budget} is taken as epochs after pruning, as the README of "
                     f"ADaPT says; its code ended after {budget} epochs in all: then take "
                     f"finetune.epochs: {max(0, budget - before)}")
    found: dict[str, Any] = {
        "prune.criterion": "l1", "prune.criterion_options": {"scale": "fan_in"},
        "prune.normalize": "none", "prune.ranking": "pass", "prune.step": {"params": 0.999},
        "prune.percentage": old.number("pruning_perc", float, 50.0),
        "prune.percentage_of": "params", "retrain.epochs": 0,
        "prune.floors.min_channels_alone": 2, "prune.floors.group_rule": "monotone",
        "adapt.epochs": before if finetunes else 0,
        "finetune.epochs": budget if finetunes or retrains else 0}
    if finetunes and not is_static:
        found |= {"adapt.until": "gap", "adapt.epochs": 15}
    if retrains:
        found["finetune.weights"] = "new"
    return found
