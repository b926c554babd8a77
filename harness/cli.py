"""The command line: argv -> one function call; one verb a function.

`harness --help` must stay quick: torch, MLflow and Optuna are imported inside the verbs.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from harness.data_verb import data
from harness.errors import HarnessError, StudyError, described, is_a_persons

if TYPE_CHECKING:
    from harness.config import Study
    from harness.console import Console
    from harness.sweep.networks import Shelf
    from harness.sweep.outcome import Outcome
    from harness.sweep.place import Place

STOPPED, TERMINATED = 130, 143


def _given(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """An empty parameter means 'not given': `mlflow run` passes all that it knows."""
    return None if value == "" else value


def _count(_: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A whole number of at least 1, or nothing."""
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"'{value}' must be a whole number of at least 1.", param=param)
    return int(value)


def _ratios(_: click.Context, param: click.Parameter, value: str | None,
            ) -> tuple[float, ...] | None:
    """Numbers with commas between, or nothing."""
    try:
        return tuple(float(part) for part in value.split(",")) if value else None
    except ValueError:
        raise click.BadParameter(f"'{value}' must be numbers with commas between, as in 0.1,0.5.",
                                 param=param) from None


def _number(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A number, or nothing."""
    try:
        return float(value) if value else None
    except ValueError:
        raise click.BadParameter(f"'{value}' must be a number.", param=param) from None


def _lease(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds, at least one: an agent renews its lease several times within it."""
    try:
        found = float(value) if value else None
    except ValueError:
        found = 0.0
    if found is not None and not 1 <= found < float("inf"):
        raise click.BadParameter(f"'{value}' must be a number of seconds, at least 1.", param=param)
    return found


def _home(function: Any) -> Any:
    return click.option("--home", callback=_given, metavar="FOLDER",
                        help="Folder of studies, stages, exports. [HARNESS_HOME, ./runs]")(function)


def _set(function: Any) -> Any:
    return click.option("--set", "overrides", multiple=True, metavar="'A.B=V ...'",
                        help="Override settings of the run; may be repeated.")(function)


_dry_run = click.option("--dry-run", "is_dry", is_flag=True,
                        help="Say what would be done; train nothing, write nothing.")


def _of_study(function: Any) -> Any:
    """What names a study, and where it is kept."""
    options = [
        click.argument("name"),
        click.option("--profile", callback=_given, help="A form that it names, such as smoke."),
        click.option("--config", callback=_given,
                     help="Another run configuration: a name or a file."),
        click.option("--storage", callback=_given, metavar="URL",
                     help="Optuna storage: sqlite:///FILE, journal:///FILE in a folder that "
                          "machines share, postgresql+psycopg://... [sqlite in the home]"),
        click.option("--lease", callback=_lease, metavar="SECONDS",
                     help="Shared storages: an agent that is silent for so long is dead. [60]"),
        _set, _home]
    for option in reversed(options):
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="harness", prog_name="harness")
def cli() -> None:
    """Make convolutional networks smaller; sweep over how; compare in MLflow; export the best."""


cli.add_command(data)


@cli.command()
@_of_study
@click.option("--trials", callback=_count, help="How many different settings to finish.")
@click.option("--agents", callback=_count, metavar="N", help="Processes at work on it. [1]")
@_dry_run
@click.option("--pause", "order", flag_value="pause",
              help="Its agents, wherever they run, finish their step and wait.")
@click.option("--resume", "order", flag_value="go", help="They go on, and new ones may come.")
@click.option("--stop", "order", flag_value="stop", help="They finish their step and leave.")
def study(name: str, profile: str | None, trials: int | None, config: str | None,
          storage: str | None, overrides: Sequence[str], home: str | None, lease: float | None,
          agents: int | None, order: str | None, is_dry: bool) -> None:
    """Run a study, go on with it, or show what it found.

    NAME is a file, or the name of one in studies/.
    Example: harness study vgg16_budget --profile smoke
    """
    from harness.console import Console, StudyScreen
    from harness.sweep.conduct import command, conduct
    from harness.sweep.orders import Order

    console = Console()
    loaded = _load_study(name, profile, config, overrides, trials)
    place = _place(home, storage, lease)
    if is_dry:
        _forecast(console, loaded, place.home)
        return
    if order is not None:
        console.say(f"{command(loaded, place, Order(order))}: told to {order}")
        return
    if agents is not None and agents > 1:
        again = _words("--profile", profile, "--trials", trials, "--config", config, "--storage",
                       storage, "--home", home, "--lease", lease,
                       *(word for text in overrides for word in ("--set", text)))
        outcome, new = _with_agents(console, loaded, place, agents, [name, *again])
    else:
        with StudyScreen(console) as screen:
            outcome, new = conduct(loaded, place, lambda: _tracker(loaded.config.name, place.home),
                                   screen, order=Order.GO)
    if outcome is None:
        raise StudyError(f"the agents left before {name} was finished; the reasons stand above. "
                         "Nothing is lost: run the same command again to go on.")
    if not new:
        console.say(f"{outcome.study_id} is finished: {outcome.settings_finished} settings. "
                    "Ask for more with --trials.")
    _print_outcome(console, outcome, home)
    if outcome.champion is None and outcome.kind == "pareto":
        console.warn(f"no network was found that could be the champion: {outcome.question}. The "
                     "front stands above.")
    elif outcome.champion is None:
        raise StudyError(f"{outcome.study_id} has found no network to choose: it looks for "
                         f"{outcome.question}. Widen what it asks for (budget, constraints, "
                         "tolerance), lower prune.floors, or let prune.percentage go further.")


@cli.command()
@_of_study
@click.option("--trials", callback=_count, help="How many different settings to finish.")
@click.option("--max-trials", "most_trials", callback=_count, metavar="N",
              help="Leave after N trials (1 for job arrays).")
def agent(name: str, profile: str | None, trials: int | None, config: str | None,
          storage: str | None, overrides: Sequence[str], home: str | None, lease: float | None,
          most_trials: int | None) -> None:
    """Join a study with one more process, on this machine or on another that reaches its storage.

    It leaves when the study is finished or told to stop. Any number may join, and die.
    Example: harness agent vgg16_budget --storage postgresql+psycopg://me@host/studies
    """
    from harness.console import Console, StudyScreen
    from harness.errors import HandedBack
    from harness.sweep.conduct import conduct
    from harness.sweep.supervisor import leave_with_supervisor

    leave_with_supervisor()
    console = Console()
    loaded = _load_study(name, profile, config, overrides, trials)
    place = _place(home, storage, lease)
    try:
        with StudyScreen(console) as screen:
            outcome, _ = conduct(loaded, place, lambda: _tracker(loaded.config.name, place.home),
                                 screen, most_trials=most_trials)
    except HandedBack as left:
        console.say(f"this agent leaves: {left}")
        return
    console.say(f"{outcome.study_id} is finished: see harness study {name}" if outcome else
                f"this agent leaves after {most_trials} trials; the study goes on")


def _words(*given: object) -> list[str]:
    """Options and their values as they are typed, without those that were not given."""
    pairs = zip(given[::2], given[1::2])
    return [str(word) for pair in pairs if pair[1] is not None for word in pair]


def _with_agents(console: "Console", loaded: "Study", place: "Place", count: int,
                 words: Sequence[str]) -> "tuple[Outcome | None, bool]":
    """Supervise so many agents until the study is finished. words: what `harness agent` is given.

    Returns (outcome, was it new).
    """
    from harness.checking import check_pruning
    from harness.runtime import cards
    from harness.sweep.conclude import finished
    from harness.sweep.orders import Order, give
    from harness.sweep.storage import told
    from harness.sweep.supervisor import environments, supervise

    check_pruning(loaded)
    place.check_writable()
    with told(place.url):
        ledger = place.ledger_of(loaded)
        found = finished(ledger, loaded)
        if found is not None:
            return found, False
        give(ledger, Order.GO)
        supervise([sys.executable, "-m", "harness", "agent", *words], environments(count, cards()),
                  console.say)
        return finished(ledger, loaded), True


@cli.command()
@click.argument("config")
@_dry_run
@_set
@_home
def run(config: str, is_dry: bool, overrides: Sequence[str], home: str | None) -> None:
    """Run one trajectory: prune, retrain, ..., final fine-tune; tracked in MLflow.

    CONFIG is a file, or the name of one in configs/.
    Example: harness run vgg16_digits --set prune.percentage=70
    """
    from harness.console import Console, StudyScreen
    from harness.devices import together
    from harness.sweep.single import follow, run_one

    console = Console()
    loaded = _load_run(config, overrides)
    root = _home_of(home)
    if is_dry:
        _forecast(console, loaded, root)
        return
    with together(loaded.devices, loaded.device) as team:
        if team.rank:
            follow(loaded, team)
            return
        with StudyScreen(console) as screen:
            single = run_one(loaded, root, lambda: _tracker(loaded.name, root), screen, team)
    console.table(f"{loaded.name}: {single.reason}", single.columns, single.rows, single.notes)
    if single.ledger:
        told = single.ledger.table()
        console.table(f"the last step: {told.title}", told.columns, told.rows, told.notes)


@cli.command()
@click.argument("config")
@_set
@_home
def baseline(config: str, overrides: Sequence[str], home: str | None) -> None:
    """Train a configuration's baseline, or find it trained; say what it is.

    Example: harness baseline vgg16_digits
    """
    from harness.console import Console, StudyScreen, count, percent
    from harness.experiment import Experiment, stages

    console = Console()
    loaded = _load_run(config, overrides)
    with StudyScreen(console) as screen:
        experiment = Experiment(loaded, stages(_home_of(home), say=screen.message), screen)
        stage, whole = experiment.baseline, experiment.whole
    console.table(f"baseline of {loaded.name}", ["what", "value"], [
        [f"{experiment.data.measure} (validation)", percent(stage.accuracy)],
        ["MACs per picture", count(whole.macs)],
        ["FLOPs per picture (2 x MACs)", count(whole.flops)], ["parameters", count(whole.params)],
        ["filters", str(whole.filters)], ["stage", stage.key],
        ["made", "found in the store" if stage.reused else "just now"],
        *([["begun anew beside model.weights", experiment.new_weights_told]]
          if experiment.new_weights else [])])


@cli.command()
@click.argument("name")
@click.option("--pruned", callback=_given, metavar="FILE",
              help="A pruned network of this run, to judge beside the baseline.")
@click.option("--classes", callback=_given, metavar="A,B",
              help="Only these classes, or named sets of them.")
@click.option("--test", "with_test", is_flag=True, help="Read the test split too.")
@click.option("--profile", callback=_given, help="Of a study: a form that it names.")
@click.option("--config", callback=_given, help="Of a study: another run configuration.")
@click.option("--storage", callback=_given, metavar="URL", help="Of a study: where it is kept.")
@_set
@_home
def evaluate(name: str, pruned: str | None, classes: str | None, with_test: bool,
             profile: str | None, config: str | None, storage: str | None,
             overrides: Sequence[str], home: str | None) -> None:
    """Judge networks that are there already; nothing is trained.

    NAME is a study: every trial and control; or a run: its baseline, and a --pruned file (of one
    name for both it is the study; a path says which). Top-1, top-5, loss, mean IoU, by class too;
    all of it as CSV in the home.
    Example: harness evaluate adapt_subsets --classes 3,5,8
    """
    from harness.config import Study, check_file
    from harness.console import Console
    from harness.sweep import judging

    root, named = _home_of(home), classes.split(",") if classes else []
    if isinstance(check_file(_study_first(name), known=_known()), Study):
        loaded = _load_study(name, profile, config, overrides, None)
        found = judging.judge_study(loaded, _place(home, storage, None), named, with_test=with_test)
    else:
        found = judging.judge_run(_load_run(name, overrides), root, named, with_test=with_test,
                                  pruned=Path(pruned) if pruned else None)
    console = Console()
    for sheet in judging.tables(name, found, named):
        console.table(sheet.title, sheet.columns, sheet.rows, sheet.notes)
    file = root / "evaluations" / f"{Path(name).stem}{'-' + '+'.join(named) if named else ''}.csv"
    console.say(f"wrote {judging.write_csv(found, file)}")


@cli.command()
@click.argument("config")
@click.option("--pruned", callback=_given, metavar="FILE",
              help="A pruned network of this configuration, to count beside it.")
@click.option("--measure", is_flag=True, help="Measure latency and file size too.")
@click.option("--json", "as_json", is_flag=True, help="Print every number as JSON instead.")
@_set
def cost(config: str, pruned: str | None, measure: bool, as_json: bool,
         overrides: Sequence[str]) -> None:
    """Count a network layer by layer; say what can be cut, and what cannot, and why.

    Example: harness cost vgg16_digits --measure
    """
    from harness.accounting import accounts
    from harness.analysis import costs
    from harness.console import Console
    from harness.runtime import device_of, settle

    loaded = _load_run(config, overrides)
    found = accounts(loaded, Path(pruned) if pruned else None)
    latency = None
    facts: dict[str, object] = {}
    if measure:
        settle(loaded.threads)
        latency, facts = costs.measured(found.models, found.inputs, device_of(loaded.device))
    if as_json:
        click.echo(json.dumps({"networks": [costs.as_json(a) for a in found.accounts]}
                              | {"measured": facts}, indent=1))
        return
    tables = [sheet for account in found.accounts for sheet in costs.sheets(account)]
    tables += [costs.comparison(*found.accounts)] if pruned else []
    tables += [latency] if latency else []
    console = Console()
    for sheet in tables:
        console.table(sheet.title, sheet.columns, sheet.rows, sheet.notes)


@cli.command()
@click.argument("config", required=False)
@click.option("--sample", callback=_count, metavar="N",
              help="Channels that the oracle silences. [64]")
@click.option("--batches", callback=_count, metavar="N", help="Of the training split. [8]")
@_set
@_home
def criteria(config: str | None, sample: int | None, batches: int | None,
             overrides: Sequence[str], home: str | None) -> None:
    """List the criteria; with a CONFIG, compare them on its trained network.

    Rank correlation, agreement with the oracle, stability against the number of batches; JSON and
    CSV go into the home. Example: harness criteria vgg16_digits --sample 64
    """
    if config is None:
        _list_criteria()
        return
    from harness.analysis.criterion_lab import save, tables
    from harness.console import Console, StudyScreen
    from harness.experiment import Experiment, stages

    console = Console()
    loaded = _load_run(config, overrides)
    root = _home_of(home)
    with StudyScreen(console) as screen:
        experiment = Experiment(loaded, stages(root, say=screen.message), screen)
        found = experiment.compare_criteria(num_channels=sample or 64, num_batches=batches or 8)
    for table in tables(found):
        console.table(table.title, table.columns, table.rows, table.notes)
    for path in save(found, root / "criteria", loaded.name):
        console.say(f"wrote {path}")


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", callback=_given, metavar="FILE", help="Write a page, FILE.html, too.")
def compare(runs: Sequence[str], out: str | None) -> None:
    """Show runs of MLflow side by side: what came out, and which settings differ.

    RUNS are ids, or their beginnings, or STUDY/NAME, quoted.
    Example: harness compare "vgg16_budget/baseline" "vgg16_budget/trial 3"
    """
    from harness import tracking
    from harness.compare import page_of, side_by_side
    from harness.console import Console
    from harness.store import write_whole

    found, console = side_by_side(tracking.written(None, runs)), Console()
    console.table(found.title, found.columns, found.rows, found.notes)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(out), page_of(found).encode())
        console.say(f"wrote {out}")


@cli.command("import-adapt")
@click.argument("file")
@click.option("--out", callback=_given, metavar="FILE", help="[configs/NAME.yaml]")
@click.option("--by-priority", is_flag=True,
              help="Of several modes take the first, as ADaPT did, instead of refusing them.")
def import_adapt(file: str, out: str | None, by_priority: bool) -> None:
    """Make a run of ours from a configuration file of ADaPT's.

    It says which command its mode has become, what has no effect, and what is not understood.
    Example: harness import-adapt old.ini
    """
    from harness.adapt_file import translate
    from harness.config import to_yaml, usual_run
    from harness.console import Console
    from harness.errors import ConfigError

    old = Path(file)
    path = Path(out) if out else Path("configs") / f"{old.stem}.yaml"
    found = translate(old, name=path.stem, by_priority=by_priority)
    if path.exists():
        raise ConfigError(f"{path} is there already. Move it away, or give --out.")
    run = usual_run({"name": path.stem, **found.settings}, known=_known())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(run), encoding="utf-8")
    console = Console()
    for note in found.notes:
        console.say(f"note: {note}")
    console.say(f"wrote {path}; now: {found.command}")


@cli.command()
@click.argument("config")
@_set
@_home
def sparsify(config: str, overrides: Sequence[str], home: str | None) -> None:
    """Make the smallest weights zero, fine-tune with the zeros kept; tracked in MLflow.

    How many: sparsify.amount, sparsify.layers, sparsify.scope.
    Example: harness sparsify vgg16_digits --set "sparsify.amount=0.8 finetune.epochs=2"
    """
    from harness.console import Console, StudyScreen
    from harness.sparse_run import run_sparse

    console = Console()
    loaded = _load_run(config, overrides)
    root = _home_of(home)
    with StudyScreen(console) as screen:
        done = run_sparse(loaded, root, lambda: _tracker(loaded.name, root), screen)
    for table in done.sheets:
        console.table(table.title, table.columns, table.rows, table.notes)
    console.say(f"wrote {done.file}")


@cli.command()
@click.argument("config")
@click.option("--ratios", callback=_ratios, metavar="R,R,...",
              help="Shares that are zero, or masked. [0.1,0.2,...,0.9]")
@click.option("--only", callback=_given, metavar="KIND", help="unstructured or structured. [both]")
@click.option("--rule", callback=_given, metavar="RULE",
              help="Which channels go at a ratio: count, or quantile as in seed 003. [count]")
@click.option("--flops", callback=_number, metavar="SHARE",
              help="Suggest prune.ratios that leave this share of the FLOPs.")
@_set
@_home
def sensitivity(config: str, ratios: tuple[float, ...] | None, only: str | None, rule: str | None,
                flops: float | None, overrides: Sequence[str], home: str | None) -> None:
    """Measure what each layer's weights and channels are worth alone, on validation.

    Lines, heat map, CSV and JSON go into the home and MLflow; what was measured before on the same
    weights is not measured again. Example: harness sensitivity vgg16_digits --flops 0.5
    """
    from harness.analysis.sensitivity import KINDS, RATIOS
    from harness.console import Console, StudyScreen
    from harness.sensitivity_run import run_sensitivity

    console = Console()
    loaded = _load_run(config, overrides)
    root = _home_of(home)
    with StudyScreen(console) as screen:
        done = run_sensitivity(loaded, root, lambda: _tracker(loaded.name, root), screen,
                               ratios=ratios or RATIOS, kinds=[only] if only else KINDS,
                               rule=rule or "count", flops=flops)
    for table in done.sheets:
        console.table(table.title, table.columns, table.rows, table.notes)
    for path in done.files:
        console.say(f"wrote {path}")


@cli.command()
@click.argument("config")
@click.option("--percent", "percentages", type=click.FloatRange(0, 100, min_open=True),
              multiple=True, metavar="P", help="May be repeated. [5, 10, ..., 95]")
@_set
@_home
def channels(config: str, percentages: Sequence[float], overrides: Sequence[str],
             home: str | None) -> None:
    """List, as JSON, the channels that each percentage would take from the baseline; cut nothing.

    By the configuration's criterion and floors, in one cut, without fine-tuning: original numbers
    by layer, and the exact percentages. Example: harness channels vgg16_digits --percent 50
    """
    from harness.console import Console
    from harness.experiment import Experiment, stages

    loaded = _load_run(config, overrides)
    warn = Console().warn
    experiment = Experiment(loaded, stages(_home_of(home), say=warn))
    click.echo(json.dumps(experiment.channels_gone(percentages or range(5, 100, 5)), indent=1))


@cli.command()
@click.argument("files", nargs=-1)
def check(files: Sequence[str]) -> None:
    """Validate configurations and studies, against their networks too; all mistakes at once.

    Without FILES: everything in configs/ and studies/. Example: harness check studies/mine.yaml
    """
    from harness.checking import check_pruning
    from harness.config import check_file, every_file
    from harness.console import Console
    from harness.errors import ConfigError

    console = Console()
    names = list(files) or every_file()
    mistakes = []
    for name in names:
        try:
            check_pruning(check_file(name, known=_known()))
        except ConfigError as error:
            mistakes.append(str(error))
        else:
            console.say(f"{name}: good")
    if mistakes:
        raise ConfigError("\n".join(mistakes))


@cli.command()
@_of_study
def status(name: str, profile: str | None, config: str | None, storage: str | None,
           overrides: Sequence[str], home: str | None, lease: float | None) -> None:
    """Show how far a study is, and who is at work on it. Example: harness status vgg16_budget"""
    from harness.console import Console
    from harness.sweep.progress import progress

    loaded = _load_study(name, profile, config, overrides, None)
    state = progress(loaded, _place(home, storage, lease))
    Console().table(state.title, state.columns, state.rows, state.notes)


@cli.command()
@click.argument("name", metavar="STUDY")
@click.option("--storage", callback=_given, metavar="URL", help="Where it is kept.")
@_home
def report(name: str, storage: str | None, home: str | None) -> None:
    """Write what a finished study found as one page that opens from disk; print its path.

    STUDY is a study's name (the latest of it), or its id. Nothing is trained.
    Example: harness report vgg16_budget
    """
    from harness.console import Console
    from harness.sweep.report import report_study
    from harness.tracking import MlflowTracker

    console, place = Console(), _place(home, storage, None)
    path, told = report_study(name, place, lambda run_id: MlflowTracker.of_run(None, run_id))
    for note in told:
        console.warn(note)
    click.echo(path)


@cli.command()
@click.option("--study", "name", callback=_given, help="Its champion: a study's name, or its id.")
@click.option("--network", callback=_given, metavar="NETWORK",
              help="Or another network: study:STUDY:7, study:STUDY:7:3 (after step 3), run:ID, "
                   "run:ID:50 (a milestone), run:ID:step-3, model:NAME@champion, model:NAME/2, "
                   "baseline:CONFIG, file:PATH.")
@click.option("--format", "format_", callback=_given,
              help="pt2, onnx, state, mlflow, or all of them. [as --out ends, else pt2]")
@click.option("--out", callback=_given, metavar="PATH",
              help="A file; with --format all a folder. [exports/STUDY.SUFFIX in the home]")
@click.option("--fold-batchnorm", "fold", is_flag=True,
              help="Fold batch norms into the convolutions before them; measured.")
@click.option("--int8", is_flag=True,
              help="An 8-bit file beside the ONNX one too; its loss of accuracy is measured.")
@click.option("--round-to", callback=_count, metavar="N",
              help="Of a trial: widths rounded up to multiples of N (8, 16), retrained; exported "
                   "if that is faster.")
@click.option("--storage", callback=_given, metavar="URL", help="Of a study's trials.")
@_home
def export(name: str | None, network: str | None, format_: str | None, out: str | None,
           fold: bool, int8: bool, round_to: int | None, storage: str | None,
           home: str | None) -> None:
    """Write a study's champion, or any network, to a file; load it again elsewhere and compare it.

    A file that does not compute the same is deleted, and the command ends with 1.
    Example: harness export --study vgg16_budget --format onnx --out champion.onnx
    """
    from harness.console import Console
    from harness.errors import ExportError
    from harness.sweep.exporting import export_network
    from harness.sweep.networks import Reference, references

    if (name is None) == (network is None):
        raise click.UsageError("give one of --study and --network.")
    console = Console()
    (ref,) = references([network]) if network else [Reference("study", str(name))]
    shipped = export_network(ref, _shelf(_home_of(home), home, storage, ()), format_,
                             Path(out) if out else None, fold=fold, int8=int8, round_to=round_to)
    for sheet in shipped.sheets:
        console.table(sheet.title, sheet.columns, sheet.rows, sheet.notes)
    if shipped.failures:
        raise ExportError("\n".join(shipped.failures))


@cli.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.option("--picture", "numbers", type=int, multiple=True, metavar="N",
              help="Show this picture of the split; may be repeated. [the first four]")
@click.option("--of", "count", callback=_count, metavar="N",
              help="Compare the maps on so many pictures. [64]")
@click.option("--target", callback=_given, metavar="CLASS",
              help="Maps of this class, by name or number. [each network's own prediction]")
@click.option("--data", callback=_given, metavar="CONFIG",
              help="Whose data set to look at. [that of the first network that names one]")
@click.option("--use-test-split", "use_test", is_flag=True,
              help="Look at the test split instead of validation: for a report, not for a choice.")
@click.option("--out", callback=_given, metavar="FOLDER", help="[pictures in the home]")
@click.option("--storage", callback=_given, metavar="URL", help="Of a study's trials.")
@_set
@_home
def gradcam(networks: Sequence[str], numbers: Sequence[int], count: int | None, target: str | None,
            data: str | None, use_test: bool, out: str | None, storage: str | None,
            overrides: Sequence[str], home: str | None) -> None:
    """Show where networks look (Grad-CAM), side by side, and how alike that is.

    NETWORK is baseline:CONFIG, study:STUDY (its champion), study:STUDY:7 (a trial),
    study:STUDY:random (a control), run:ID (of MLflow) or file:PATH. --set is for CONFIG.
    Example: harness gradcam baseline:vgg16_digits study:vgg16_budget
    """
    from harness.console import Console, StudyScreen
    from harness.sweep.looking import Asked, compare_views, table_of
    from harness.sweep.networks import references

    asked = Asked(references(list(networks)), numbers, of=count or 64, target=target,
                  use_test=use_test)
    root = _home_of(home)
    console = Console()
    data_of = _load_run(data, overrides) if data else None
    with StudyScreen(console) as screen:
        looked = compare_views(asked, _shelf(root, home, storage, overrides), screen,
                               Path(out) if out else root / "pictures", data_of=data_of)
    for title, columns, rows in table_of(looked):
        console.table(title, columns, rows)
    for path in looked.files:
        console.say(f"wrote {path}")


@cli.command()
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--model", required=True, metavar="NETWORK",
              help="A file that `export` wrote (.pt2, .onnx, .safetensors), or a network as "
                   "gradcam names them: study:STUDY, run:ID, baseline:CONFIG, ...")
@click.option("--out", callback=_given, metavar="FOLDER", help="Of masks. [beside the pictures]")
@click.option("--json", "as_json", is_flag=True, help="Print every class's share as JSON instead.")
@click.option("--storage", callback=_given, metavar="URL", help="Of a study's trials.")
@_home
def predict(pictures: Sequence[str], model: str, out: str | None, as_json: bool,
            storage: str | None, home: str | None) -> None:
    """Say what a trained network sees in pictures, png or jpg, of any size, grey or in colour.

    They are brought to size and scaled as those that it was trained on. A network of pixels writes
    a mask for each. Example: harness predict --model champion.pt2 digit.png
    """
    from harness.console import Console
    from harness.sweep import predicting

    found = predicting.predict(model, [Path(name) for name in pictures],
                               lambda: _shelf(_home_of(home), home, storage, ()),
                               Path(out) if out else None)
    if as_json:
        click.echo(json.dumps([each.as_json() for each in found], indent=1))
        return
    columns, rows = predicting.table(found)
    Console().table(f"seen by {model}", columns, rows)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@_home
def ui(port: int, home: str | None) -> None:
    """Start MLflow's pages, light, on 127.0.0.1, and print the links of the studies.

    Example: harness ui --port 5001
    """
    from harness import tracking
    from harness.console import Console
    from harness.sweep.champion import outcomes

    console = Console()
    root = _home_of(home)
    found = outcomes(root)
    console.say("starting MLflow's pages (about ten seconds) ...")
    with tracking.serve(None, root, port) as server:
        for outcome in found:
            console.say(f"{outcome.study_id}: {server.url}/{outcome.view}")
        console.say(f"all experiments: {server.url}")
        console.say("Ctrl-C ends it.")
        server.wait()


@cli.command()
@click.argument("name", metavar="[STUDY]", required=False)
@click.option("--port", default=8080, show_default=True)
@click.option("--storage", callback=_given, metavar="URL", help="Where the studies are kept.")
@_home
def dashboard(name: str | None, port: int, storage: str | None, home: str | None) -> None:
    """Start Optuna's dashboard on the studies' storage, on 127.0.0.1, with notes and pictures.

    STUDY is a study's name or its id; without it all get their notes. Needs the extra dashboard.
    Example: harness dashboard vgg16_budget
    """
    from harness.console import Console
    from harness.sweep.dashboard import dashboard as served

    console = Console()
    with served(_place(home, storage, None), port, name) as pages:
        for study_id in pages.studies:
            console.say(f"{study_id}: {pages.of(study_id)}")
        console.say("Ctrl-C ends it.")
        pages.wait()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb; a user's mistake is a sentence and an exit code, never a traceback."""
    # Before torch loads: a thread that spins while it waits collapses when another process runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ended: list[int] = []

    def terminate(number: int, _: object) -> None:
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # once is enough: what it does must end
        ended.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup has asked to go on
        signal.signal(signal.SIGHUP, terminate)
    try:
        with _launched():
            cli.main(args=None if argv is None else list(argv), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HarnessError as error:
        from harness.console import Console

        Console().error(f"{type(error).__name__}: {error}")
        sys.exit(1)
    except OSError as error:
        from harness.console import Console

        Console().error(f"{error.strerror or error}: {error.filename or 'the machine said so'}")
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        from harness.console import Console

        Console().warn("stopped. Nothing is lost: run the same command again to go on.")
        sys.exit(TERMINATED if ended else STOPPED)
    except Exception as error:
        if not is_a_persons(error):
            raise
        from harness.console import Console

        Console().error(described(error))
        sys.exit(1)
    sys.exit(0)


@contextmanager
def _launched() -> Iterator[None]:
    """The run of the `mlflow run` that has started us, if one has, knows of it first of all."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        yield
        return
    from harness.sweep.supervisor import SUPERVISOR
    from harness.tracking import end_lost_launchers, launched

    if SUPERVISOR not in os.environ:
        with launched(run_id):
            yield
        return
    try:
        yield
    finally:
        end_lost_launchers()  # an agent: its supervisor may have been killed with `mlflow run`


def _list_criteria() -> None:
    from harness.console import Console
    from harness.engine.criteria import CRITERIA

    rows = [[name, " ".join(sorted(c.wants)) or "weights", c.normalize,
             " ".join(f"{option}={usual}" for option, usual in c.options.items()) or None,
             (c.score.__doc__ or "").splitlines()[0]] for name, c in CRITERIA.items()]
    Console().table("criteria", ["name", "needs", "normalized by", "options", "what"], rows, [
        "a person's own: package.module:function; prune.flops_penalty goes on top of any."])


def _study_first(name: str) -> str:
    """The file of the study of this name, where there is a run of the same name too."""
    from harness.config import find
    from harness.errors import ConfigError

    try:
        return str(find("studies", name))
    except ConfigError:
        return name


def _forecast(console: "Console", asked: Any, home: Path) -> None:
    from harness.sweep.forecast import forecast

    found = forecast(asked, home)
    console.table(found.title, found.columns, found.rows, found.notes)


def _home_of(home: str | None) -> Path:
    return Path(home or os.environ.get("HARNESS_HOME") or "runs").expanduser()


def _place(home: str | None, storage: str | None, lease: float | None) -> "Place":
    from harness.sweep.leases import LEASE_S
    from harness.sweep.place import Place

    return Place.at(_home_of(home), storage, lease or LEASE_S)


def _shelf(root: Path, home: str | None, storage: str | None, overrides: Sequence[str]) -> "Shelf":
    """Where networks are looked for by name."""
    from harness.sweep.networks import Shelf

    return Shelf(root, lambda: _tracker("gradcam", root), lambda name: _load_run(name, overrides),
                 _place(home, storage, None))


def _known() -> Any:
    from harness.checking import known_names
    from harness.config import Known

    return Known(**known_names())


def _load_run(name: str, overrides: Sequence[str]) -> Any:
    from harness.config import load_run

    return load_run(name, overrides=overrides, known=_known())


def _load_study(name: str, profile: str | None, config: str | None, overrides: Sequence[str],
                trials: int | None) -> Any:
    from harness.config import load_study

    return load_study(name, profile=profile, config=config, overrides=overrides, known=_known(),
                      trials=trials)


def _tracker(experiment: str, home: Path) -> Any:
    from harness.tracking import MlflowTracker, end_lost_launchers

    tracker = MlflowTracker.open(None, experiment, home)
    end_lost_launchers()
    return tracker


def _print_outcome(console: "Console", outcome: "Outcome", home: str | None) -> None:
    from harness.console import percent
    from harness.sweep import telling

    at = f" --home {home}" if home else ""
    best, found = outcome.champion, telling.networks(outcome)
    notes = [
        f"The champion is {outcome.question}." if best else f"Looked for: {outcome.question}.",
        *found.notes, telling.effort(outcome),
        f"bookkeeping (MLflow, Optuna, stage store, pictures) took "
        f"{percent(outcome.bookkeeping['bookkeeping_share'])} of the agents' time so far.",
        *(f"never cut: {group} ({why})" for group, why in outcome.frozen.items()), *outcome.notes]
    if best is not None:
        notes.append(f"champion's weights: sha256 {outcome.weights[:16]}")
    notes.append(f"compare the trials:  python -m harness ui{at}")
    notes.append(f"all of it as a page: python -m harness report {outcome.study_id}{at}")
    if best is not None:
        notes.append("export the champion: python -m harness export --study "
                     f"{outcome.study_id}{at} --format onnx --out champion.onnx")
    console.table(found.title, found.columns, found.rows, notes)
    versus = telling.against(outcome)
    if versus is not None:
        console.table(versus.title, versus.columns, versus.rows, versus.notes)
