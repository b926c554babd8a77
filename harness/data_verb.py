"""The verb `data`: what a data set is; and folders of pictures made of a download."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.config import RunConfig


class _Sets(click.Group):
    """A word that is no command of the group is the NAME of a data set, to be shown."""

    def resolve_command(self, ctx: click.Context, args: list[str],
                        ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Sets)
def data() -> None:
    """Say what a data set is; make one of a download.

    `harness data NAME` is short for `harness data show NAME`.
    Example: harness data scenes --set data.size=64
    """


@data.command()
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="'A.B=V ...'",
              help="Settings, such as data.options.root; may be repeated.")
def show(name: str, overrides: Sequence[str]) -> None:
    """Counts by split and class, size, fingerprint, and what one should know.

    NAME is a data set, package.module:function, or a configuration that names one.
    Example: harness data folder --set "data.options.root=pictures data.size=64"
    """
    from harness.console import Console
    from harness.data.overview import overview
    from harness.loading import load_data

    config = _configured(name, overrides)
    found = load_data(config)
    view = overview(found)
    what = "pictures" if found.task == "classes" else "pixels"
    rows = [[label, *(counts[place] for counts in view.counts.values())]
            for place, label in enumerate(found.labels)]
    if any(view.uncounted.values()):
        rows.append(["(counts for nothing)", *view.uncounted.values()])
    rows.append(["all pictures", *view.examples.values()])
    channels, height, width = found.input_shape
    console = Console()
    console.table(f"{found.name}: {what} by class", ["class", *view.counts], rows, [
        f"{channels} channel{'s' * (channels > 1)}, {height} x {width} pixels; a class for every "
        f"{'picture' if found.task == 'classes' else 'pixel'}, {found.num_classes} of them",
        f"fingerprint {found.fingerprint}"])
    for warning in view.warnings:
        console.warn(warning)


@data.command("dogs-vs-cats")
@click.option("--source", required=True, metavar="FILE_OR_FOLDER",
              help="Kaggle's download: the zip, or a folder with cat.0.jpg, dog.0.jpg, ...")
@click.option("--train", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Pictures of each class to train on.")
@click.option("--test", type=click.IntRange(min=1), default=400, show_default=True,
              help="Pictures of each class for the test.")
@click.option("--seed", type=click.IntRange(min=0),
              help="Choose at random, by this seed. [by number]")
@click.option("--out", metavar="FOLDER", help="[dogs_vs_cats in the cache]")
def dogs_vs_cats(source: str, train: int, test: int, seed: int | None, out: str | None) -> None:
    """Make a folder of pictures by class of Kaggle's Dogs vs. Cats; data set `folder` reads it.

    Example: harness data dogs-vs-cats --source dogs-vs-cats.zip --out pets
    """
    from harness.console import Console
    from harness.data.dogs_vs_cats import make
    from harness.data.downloads import data_home

    folder = Path(out).expanduser() if out else data_home() / "dogs_vs_cats"
    made = make(Path(source).expanduser(), folder, train=train, test=test, seed=seed)
    console = Console()
    rows = [[label, *(len(of_class[label]) for of_class in made.names.values())]
            for label in made.names["train"]]
    console.table(f"pictures in {made.folder}", ["class", *made.names], rows, [
        "none is in both parts. Use them with --set",
        f'"data.name=folder data.options.root={made.folder}"'])
    for line in made.left_out:
        console.warn(f"left out: {line}")


def _configured(name: str, overrides: Sequence[str]) -> "RunConfig":
    """The run of this name, or the usual one on the data set of this name."""
    from harness.checking import known_names
    from harness.config import Known, find, load_run, usual_run
    from harness.errors import ConfigError, UnknownName, unknown
    from harness.plugins import is_reference

    tables: Any = known_names()
    known = Known(**tables)
    if name in known.data or is_reference(name):
        return usual_run({"data.name": name}, overrides=overrides, known=known)
    try:
        find("configs", name)
    except ConfigError as error:
        raise UnknownName(f"{unknown('data set', name, known.data)} Or your own: "
                          f"package.module:function. Nor is it a configuration: {error}") from error
    return load_run(name, overrides=overrides, known=known)
