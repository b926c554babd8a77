"""What the report of a study says, section by section, as a person would tell it."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from textwrap import shorten

from optuna.trial import FrozenTrial

from harness import page
from harness.analysis.costs import Sheet
from harness.console import count, percent, seconds
from harness.engine.cost import FLOPS_PER_MAC
from harness.page import Bar, Html
from harness.sweep import telling
from harness.sweep.bookkeeping import PARTS
from harness.sweep.ledger import ordinal_of
from harness.sweep.outcome import LayerKept, Outcome
from harness.sweep.results import AGAIN, Result
from harness.sweep.runs import named

EARLIER = "This study was finished by an earlier version, which did not keep that."

# Picture -> what it shows, in the order of the page.
TRADE_OFF: Mapping[str, str] = {
    "accuracy_vs_flops": "Accuracy of every fine-tuned network against its FLOPs.",
    "accuracy_vs_filters_removed": "Each trial's walk, step by step: accuracy against the filters "
                                   "that are gone.",
    "accuracy_vs_training_gflops": "Accuracy against all training that it took, the baseline's "
                                   "included.",
    "accuracy_vs_latency": "Accuracy against the measured time of one picture, on the machine that "
                           "made each network.",
}
BY_LAYER: Mapping[str, str] = {
    "params_removed_by_layer": "Parameters that are gone, layer by layer.",
    "params_removed_by_block": "Parameters that are gone, block by block.",
    "kept_channels": "Every original channel of every layer, and the step that removed it.",
    "l1_norms": "Mean absolute weight of the filters, before and after.",
    "first_filters": "Filters of the first convolution, before and after.",
    "feature_maps": "Mean activation of layers on a few pictures, before and after.",
    "channel_difference": "How differently the controls chose: 0 is the same channels as the "
                          "champion, 1 none in common.",
}
HARM: Mapping[str, str] = {
    "harm_by_class": "Every class before and after, on validation.",
    "calibration": "Whether the networks are as sure as they should be.",
    "changed_most": "The pictures whose true class lost most probability.",
}
SEARCH: Mapping[str, str] = {
    "search_cost": "The best so far, against the epochs paid.",
    "setting_importance": "Which of the searched settings mattered.",
}
KNOWN = {*TRADE_OFF, *BY_LAYER, *HARM, *SEARCH}
PART_NAMES = {"mlflow": "MLflow", "optuna": "Optuna", "store": "stage store",
              "pictures": "pictures and report"}
HIDDEN = {"machine.host"}  # a page is sent to people whom the machine's name does not concern


@dataclass(frozen=True)
class Left:
    """What a finished study left behind: its outcome, its trials as Optuna has them, its two files
    as text ('' if they were not kept), pictures and their numbers by file name."""

    outcome: Outcome
    trials: Sequence[FrozenTrial]
    results: Sequence[tuple[FrozenTrial, Result]]
    study: str
    run: str
    files: Mapping[str, bytes]

    def pictures(self, captions: Mapping[str, str]) -> list[Html]:
        """Those that were drawn."""
        return [page.picture(self.files[f"{name}.png"], caption, name=name,
                             csv=self.files.get(f"{name}.csv", b""))
                for name, caption in captions.items() if f"{name}.png" in self.files]

    @property
    def others(self) -> dict[str, str]:
        """Pictures that this page knows by their names alone."""
        stems = [name.removesuffix(".png") for name in self.files if name.endswith(".png")]
        return {stem: stem.replace("_", " ") for stem in stems if stem not in KNOWN}


def report_page(left: Left) -> str:
    """The whole file."""
    outcome = left.outcome
    lead = [page.text(f"Asked for: {outcome.question}.", "lead"),
            page.text(f"Found: {telling.answer(outcome)}", "lead"),
            page.text(f"{outcome.study_id}. Accuracy is {outcome.measure}; FLOPs are 2 x MACs of "
                      "one picture.", "small")]
    return page.page(f"Report: {outcome.study}", lead, [
        ("The answer", list(_answer(outcome))),
        ("The front against the controls", list(_front(left))),
        ("The champion, layer by layer", list(_layers(left))),
        ("Who is hurt", left.pictures(HARM)),
        ("What was never cut, and why", list(_frozen(left))),
        ("Cost and savings", list(_cost(left))),
        ("More pictures", left.pictures(left.others)),
        ("How to reproduce it", list(_again(left))),
        ("Environment", list(_environment(outcome))),
        ("Notes", [page.points(outcome.notes)] if outcome.notes else [])])


def _answer(outcome: Outcome) -> Iterator[Html]:
    best, whole = outcome.champion, outcome.baseline
    if best is None:
        yield page.text("No network that was tried fits what was asked for. The nearest stand in "
                        "the front below.")
        return
    yield page.table(["", "baseline", "champion", "against the baseline"], [
        [f"{outcome.measure} (validation)", percent(whole.accuracy), percent(best.accuracy),
         _change(best.accuracy, whole.accuracy)],
        [f"{outcome.measure} (test)", percent(whole.test_accuracy), percent(best.test_accuracy),
         _change(best.test_accuracy, whole.test_accuracy)],
        ["FLOPs per picture", count(FLOPS_PER_MAC * whole.macs), count(FLOPS_PER_MAC * best.macs),
         percent(best.share)],
        *([title, count(old), count(new), percent(new / old)] for title, old, new in (
            ("parameters", whole.params, best.params), ("filters", whole.filters, best.filters)))])
    yield page.text("How sure is that?")
    yield page.points([*outcome.verdict, *_doubts(outcome)])


def _doubts(outcome: Outcome) -> Iterator[str]:
    """What the numbers cannot tell."""
    yield (f"The champion was chosen on validation, among the networks of "
           f"{outcome.settings_finished} settings, so its accuracy there flatters it. The test "
           "split was read once, after the choice.")
    for versus in outcome.comparisons:
        if versus.name == AGAIN:
            spread = "" if isnan(versus.spread) else (
                f", standard deviation {100 * versus.spread:.2f} points")
            yield (f"Its settings, run again on {len(versus.accuracies)} new baselines, give "
                   f"{percent(versus.mean)} on average{spread}.")
    if outcome.val_examples and outcome.measure == "top-1 accuracy":
        yield (f"There are {outcome.val_examples} pictures for validation: one more or less is "
               f"{100 / outcome.val_examples:.2f} points.")


def _front(left: Left) -> Iterator[Html]:
    outcome = left.outcome
    rows = telling.shown(outcome, with_controls=True)
    yield _table(telling.networks(outcome, with_controls=True), "Networks", [
        n for n, row in enumerate(rows) if row.role == "champion"])
    versus = telling.against(outcome)
    if versus is not None:
        yield _table(Sheet(versus.title, versus.columns, versus.rows, [
            f"spread and advantage are in points of {outcome.measure} on validation; ± is the "
            "standard error of the mean difference",
            *([telling.CHOSEN_WITH_LUCK] if outcome.replicates else [])]),
            "The champion against its controls", [0])
    else:
        yield page.text("No control was run beside it: controls: [random, l1] would tell whether "
                        "the criterion is better than chance.")
    yield from left.pictures(TRADE_OFF)


def _layers(left: Left) -> Iterator[Html]:
    outcome = left.outcome
    if outcome.champion is None:
        return
    if not outcome.layers:
        yield page.text(f"Widths of the layers: {EARLIER}")
    else:
        yield page.table(
            ["layer", "filters", "kept", "", "parameters", "kept", "FLOPs per picture", "kept"],
            [[x.layer, *_widths(x), count(x.params), count(x.params_kept),
              count(FLOPS_PER_MAC * x.macs), count(FLOPS_PER_MAC * x.macs_kept)]
             for x in outcome.layers],
            notes=["layers that multiply; filters are those of convolutions. Norms have the width "
                   "of the layer before them"])
    yield from left.pictures(BY_LAYER)


def _widths(layer: LayerKept) -> list[object]:
    """Filters, those that are kept, and their share."""
    if not layer.filters:
        return [None, None, None]
    share = layer.filters_kept / layer.filters
    return [layer.filters, layer.filters_kept, Bar(share, f"{100 * share:.0f} %")]


def _frozen(left: Left) -> Iterator[Html]:
    outcome = left.outcome
    if outcome.frozen:
        yield page.table(["layer", "why"], list(outcome.frozen.items()))
        yield page.text("All other layers could give channels, down to the minimum that "
                        "prune.floors sets.")
    else:
        yield page.text("Nothing: every layer could give channels."
                        if outcome.environment else EARLIER)
    for trial, result in left.results:
        if outcome.champion and outcome.champion.name == f"trial {ordinal_of(trial)}":
            why, _, each = result.reason.partition(": ")
            yield page.text(f"The champion's trial ended because: {why}.")
            if each:
                yield page.folded("What held every layer then", page.points(each.split("; ")))


def _cost(left: Left) -> Iterator[Html]:
    outcome = left.outcome
    kept = outcome.bookkeeping
    yield page.text("Trials share the training that they have in common. "
                    f"{telling.effort(outcome)}")
    yield page.table(["what", "amount"], [
        ["settings that were finished", outcome.settings_finished],
        ["epochs of the baseline", outcome.baseline_epochs],
        ["epochs of retraining and fine-tuning, run", outcome.epochs_run],
        ["the same without sharing", outcome.epochs_naive],
        ["saved by sharing", f"{outcome.saved:.2f} x"],
        ["saved, had every trial a baseline of its own", f"{outcome.saved_with_baselines:.2f} x"],
        ["time of trials and controls", seconds(outcome.seconds)],
        ["time of all agents", seconds(kept.get("agents_s"))],
        ["bookkeeping, of the agents' time", percent(kept.get("bookkeeping_share"))],
        *([f"bookkeeping: {PART_NAMES[part]}", seconds(kept.get(f"bookkeeping_{part}_s"))]
          for part in PARTS)])
    yield from left.pictures(SEARCH)
    if left.trials:
        yield page.folded(f"All {len(left.trials)} trials", _trials(left))


def _trials(left: Left) -> Html:
    found = {ordinal_of(trial): result for trial, result in left.results}
    names = list(dict.fromkeys(chain.from_iterable(named(t.params) for t in left.trials)))
    macs = left.outcome.baseline.macs
    rows: list[list[object]] = []
    marked: list[int] = []
    for trial in left.trials:
        number, settings = ordinal_of(trial), named(trial.params)
        result, state = found.get(number), "failed"
        if result is not None:
            state = "stopped early" if result.stopped else "finished"
        if left.outcome.champion and left.outcome.champion.name == f"trial {number}":
            marked.append(len(rows))
        rows.append([number, *(settings.get(name) for name in names), state,
                     *([percent(result.last.accuracy), percent(result.last.macs / macs),
                        result.steps, _brief(result.reason)] if result else
                       [None, None, None, _brief(str(trial.user_attrs.get("reason", "")))])])
    return page.table(["trial", *names, "state", "accuracy", "FLOPs", "steps", "ended because"],
                      rows, marked=marked)


def _brief(reason: str) -> str:
    """Whole reasons stand in the runs: they name every layer."""
    return shorten(reason, 70, placeholder=" ...")


def _again(left: Left) -> Iterator[Html]:
    outcome = left.outcome
    if not (left.study and left.run):
        yield page.text(f"Settings of the study: {EARLIER}")
    else:
        study, run = f"{outcome.study}.study.yaml", f"{outcome.study}.config.yaml"
        yield page.text("Save the two files below. They have every setting, with profile and "
                        f"overrides worked in, so that this is {outcome.study_id} again:")
        yield page.code(shlex.join(["python", "-m", "harness", "study", study, "--config", run]))
        yield page.folded(f"{study}: the question, and what is searched",
                          page.file(study, left.study))
        yield page.folded(f"{run}: the run that is varied", page.file(run, left.run))
    if outcome.champion is not None:
        yield page.text(f"Where it was run, the trials are compared with: python -m harness ui; "
                        "the champion is written to a file with: python -m harness export --study "
                        f"{outcome.study_id}")
    if outcome.weights:
        yield page.text(f"Weights of the champion: sha256 {outcome.weights}. On the same kind of "
                        "processor, with the same versions and threads, they come out the same to "
                        "the bit.")


def _environment(outcome: Outcome) -> Iterator[Html]:
    if not outcome.environment:
        yield page.text(EARLIER)
        return
    yield page.table(["what", "value"], [
        [_plain(name), anonymous(value)] for name, value in sorted(outcome.environment.items())
        if name not in HIDDEN], notes=["of the process that ended the study"])


def anonymous(system: str) -> str:
    """A system without what its builder calls its kernel: Linux-6.1.0-ours-7-x86_64-with-glibc2.36
    as Linux-6.1.0-x86_64-with-glibc2.36."""
    return re.sub(r"^(Linux-[\d.]+)-.*?-?(?=-(x86_64|aarch64|armv7l|ppc64le|riscv64|s390x)\b)",
                  r"\1", system)


def _plain(name: str) -> str:
    """version.torch as 'torch', machine.cores as 'cores'."""
    kind, _, what = name.partition(".")
    return {"code": "sources that results depend on (hash)", "git": "commit"}.get(what, what) if (
        kind == "version") else what


def _table(sheet: Sheet, title: str, marked: Sequence[int]) -> Html:
    return page.table(sheet.columns, sheet.rows, title=title, notes=sheet.notes, marked=marked)


def _change(new: float | None, old: float | None) -> str | None:
    return None if new is None or old is None else f"{100 * (new - old):+.2f} points"
