"""The Grad-CAM comparison of named networks: fetched, looked through, drawn, kept in MLflow."""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from importlib.util import find_spec
from math import isnan
from pathlib import Path

from harness.analysis.gradcam import Similarity, Unseen, View, alike, look, similarities
from harness.analysis.gradcam_figure import comparison
from harness.analysis.ink import PRINT_DPI, save, table
from harness.config import RunConfig
from harness.console import Screen, percent
from harness.data import Data
from harness.errors import ConfigError, HarnessError, unknown
from harness.journal import ending
from harness.loading import load_data
from harness.runtime import device_of, settle
from harness.store import write_whole
from harness.sweep.networks import Reference, Shelf
from harness.tracking import Point


@dataclass(frozen=True)
class Asked:
    """What to look at. numbers: of the pictures to show, in the split; without them the first
    `shown`. of: how many pictures the maps are compared on. target: a class, by name or number;
    None is each network's own prediction. use_test: look at the test split, not at validation.
    """

    networks: Sequence[Reference]
    numbers: Sequence[int] = ()
    shown: int = 4
    of: int = 64
    target: str | None = None
    use_test: bool = False


@dataclass(frozen=True)
class Looked:
    """What was seen, and the files that show it."""

    views: Sequence[View | Unseen]
    summary: Sequence[Similarity]
    files: Sequence[Path]


def compare_views(asked: Asked, shelf: Shelf, screen: Screen, folder: Path, *,
                  data_of: RunConfig | None = None) -> Looked:
    """Draw the networks' maps side by side, and write down how alike they are.

    data_of: a configuration whose data set is looked at; by default that of the first network that
    has one. A network that is not to be had is shown with its reason.
    Raises ConfigError, before any network is loaded, if none says of what data it is, and for
    pictures or classes that the data set does not have.
    """
    if find_spec("captum") is None:
        raise ConfigError("Grad-CAM needs captum, which is missing: pip install 'harness[see]'")
    configs, reasons = _configs(asked.networks, shelf)
    settings = data_of or next(iter(configs.values()), None)
    if settings is None:
        raise ConfigError("none of these networks can be had:\n" + "\n".join(
            f"{ref}: {why}" for ref, why in reasons.items()))
    settle(settings.threads)
    device, data = device_of(settings.device), load_data(settings)
    target = _class_of(asked.target, data)
    split = data.read_test() if asked.use_test else data.val
    shown = _shown(asked, len(split))
    rows = list(dict.fromkeys([*shown, *range(min(asked.of, len(split)))]))
    inputs, targets = split.inputs[rows], split.targets[rows]
    views: list[View | Unseen] = []
    for name, ref in _names(asked.networks).items():
        screen.message(f"looking through {name}")
        try:
            if ref not in configs and not (data_of and ref.kind == "file"):
                raise ConfigError(reasons[ref])
            module = shelf.network(ref, configs.get(ref, settings), data).module.to(device)
        except HarnessError as error:
            views.append(Unseen(name, str(error)))
        else:
            views.append(look(name, module, inputs.to(device), targets.to(device), target=target))
    found = alike([view for view in views if isinstance(view, View)], rows)
    summary = similarities(found)
    picture = comparison(inputs, targets, rows, len(shown), data.labels, views, found, summary,
                         split="test" if asked.use_test else "validation")
    files = save([picture], folder, dpi=PRINT_DPI)
    files.append(folder / "grad_cam_similarity.csv")
    write_whole(files[-1], table([f.name for f in fields(Similarity)], map(astuple, summary)))
    _keep(views, summary, files, shelf, settings)
    return Looked(views, summary, files)


def table_of(looked: Looked) -> list[tuple[str, list[str], list[list[str | None]]]]:
    """(title, columns, rows) of what a person is told."""
    networks: list[list[str | None]] = []
    for view in looked.views:
        seen = ([str(view.layer), percent(float(view.is_right.float().mean()))]
                if isinstance(view, View) else [None, view.reason])
        networks.append([view.network, *seen])
    tables = [("networks", ["network", "layer and map", "right"], networks)]
    if looked.summary:
        tables.append(("how alike their maps are: rank correlation, mean ± standard deviation", [
            "network", "and", "pictures", "all", "of the same class", "cosine"], [
            [pair.network, pair.other, str(pair.pictures),
             f"{pair.spearman:.2f} ± {pair.spearman_spread:.2f}",
             f"{pair.agreeing:.2f} ({pair.same_class})",
             f"{pair.cosine:.2f} ± {pair.cosine_spread:.2f}"] for pair in looked.summary]))
    return tables


def _configs(networks: Sequence[Reference], shelf: Shelf,
             ) -> tuple[dict[Reference, RunConfig], dict[Reference, str]]:
    """(network -> its run, network -> why that cannot be told)."""
    configs: dict[Reference, RunConfig] = {}
    reasons: dict[Reference, str] = {}
    for ref in networks:
        try:
            configs[ref] = shelf.config(ref)
        except HarnessError as error:
            reasons[ref] = str(error)
    return configs, reasons


def _names(networks: Sequence[Reference]) -> dict[str, Reference]:
    """By the names that people use; by the whole ones where these would be the same."""
    short = [ref.short for ref in networks]
    return {ref.short if short.count(ref.short) == 1 else str(ref): ref for ref in networks}


def _class_of(target: str | None, data: Data) -> int | None:
    """Raises ConfigError for what is neither the name nor the number of a class."""
    if target is None:
        return None
    if target in data.labels:
        return data.labels.index(target)
    if target.isdecimal() and int(target) < data.num_classes:
        return int(target)
    raise ConfigError(f"--target: {unknown('class', target, data.labels)}")


def _shown(asked: Asked, count: int) -> list[int]:
    """Raises ConfigError for pictures that the split does not have."""
    wrong = [str(n) for n in asked.numbers if not 0 <= n < count]
    if wrong:
        raise ConfigError(f"--picture: the split has pictures 0 to {count - 1}, no "
                          f"{', '.join(wrong)}.")
    return list(dict.fromkeys(asked.numbers)) or list(range(min(asked.shown, count)))


def _keep(views: Sequence[View | Unseen], summary: Sequence[Similarity], files: Sequence[Path],
          shelf: Shelf, config: RunConfig) -> None:
    """A run of its own in MLflow: the networks, the layers, the similarity, the files."""
    tracker = shelf.tracker
    shown = {f"network.{place}": view.network for place, view in enumerate(views, start=1)}
    run_id = tracker.open_run(name="Grad-CAM comparison", role="gradcam", study=config.name,
                              params=shown)
    with ending(tracker, run_id):
        tracker.set_tags(run_id, {
            f"network.{place}": f"layer {view.layer}" if isinstance(view, View) else view.reason
            for place, view in enumerate(views, start=1)})
        names = [view.network for view in views]
        now = int(1000 * time.time())
        for pair in summary:
            both = f"{names.index(pair.network) + 1}_{names.index(pair.other) + 1}"
            tracker.log_points(run_id, [
                Point(f"{what}_{both}", value, 0, now) for what, value in (
                    ("spearman", pair.spearman), ("spearman_spread", pair.spearman_spread),
                    ("cosine", pair.cosine), ("cosine_spread", pair.cosine_spread))
                if not isnan(value)])
        tracker.log_files(run_id, files, "pictures")
