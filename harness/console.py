"""What a person sees: messages, tables, and the screen of a running study.   [door to rich]

Messages and progress go to stderr, tables of results to stdout: `harness ... > table.txt` keeps
the results alone. On a terminal a study is one picture, redrawn by a thread a few times a second;
the calls from a training loop only leave numbers behind for it. Piped, it is plain lines.

Shares (accuracy, FLOPs) lie in [0, 1] and are shown as percent; the percentage of removed filters
and its target are already in percent, as `prune.percentage` is.
"""

import errno
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

import rich.box
import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

FRAMES_PER_SECOND = 2  # a frame of a large terminal takes 7 ms from the training
WIDEST_CELL = 12  # of a searched setting; a longer value is cut in the live table only
NARROWEST_REASON = 16
UNBOUNDED = 10_000  # columns of a file: nothing in it is ever wrapped
NOTHING = "-"
NUMBER = re.compile(r"[-+]?\d[\d.,:/]*(e[-+]?\d+)?( ?[%A-Za-z]{1,6})?")


def percent(share: float | None) -> str:
    """A share in [0, 1] as '98.61 %'; '-' where there is none."""
    return NOTHING if share is None or math.isnan(share) else f"{100 * share:.2f} %"


def count(number: float) -> str:
    """A count in three digits: 12_345_678 is '12.3 M', 999 is '999'."""
    suffixes = iter("kMGTPE")
    suffix = ""
    # 999.5 would be shown as 1000, 9.995 as 10.00: the limits are those of what is shown.
    while abs(number) >= 999.5:
        number /= 1000
        suffix = next(suffixes)
    if not suffix:
        return f"{number:.0f}"
    decimals = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{decimals}f} {suffix}"


def seconds(duration: float | None) -> str:
    """A duration in seconds as '1:23' or '1:02:03'; '-:--' where it is not known."""
    if duration is None or not math.isfinite(duration):
        return "-:--"
    minutes, rest = divmod(max(0, round(duration)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Stream(rich.console.Console):
    """One that is written to for as long as somebody reads it; then it is silent.

    Whoever ends the reader (`| head`) or closes the terminal does not end hours of work: rich would
    end the process, in whatever thread and in the middle of whatever it is.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What is left in its buffer is flushed when the process ends, and would fail then.
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal says that was closed
                raise
            self.on_broken_pipe()


class Console:
    """Messages on stderr, tables on stdout; no text is read as markup, coloured or wrapped."""

    def __init__(self, *, out: TextIO | None = None, err: TextIO | None = None) -> None:
        out_is_terminal = (out or sys.stdout).isatty()
        err_is_terminal = (err or sys.stderr).isatty()
        # Decided here, not by rich: FORCE_COLOR in the environment must not draw into a file.
        self._out = _Stream(
            file=out,
            force_terminal=out_is_terminal,
            width=None if out_is_terminal else UNBOUNDED,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._err = _Stream(
            file=err,
            stderr=True,
            force_terminal=err_is_terminal,
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._has_table = False

    @property
    def is_live(self) -> bool:
        """Whether stderr is a terminal on which a picture can be redrawn."""
        return self._err.is_terminal and not self._err.is_dumb_terminal

    def say(self, text: str) -> None:
        self._message(text)

    def warn(self, text: str) -> None:
        self._message(text, prefix="warning: ", style="bold yellow")

    def error(self, text: str) -> None:
        """Say what went wrong, line by line as it was written, without a traceback."""
        self._message(text, prefix="error: ", style="bold red")

    def rule(self, title: str = "") -> None:
        """A line across, with a title, between two parts of the messages."""
        self._err.print(Rule(title, align="left", style="dim"))

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        notes: Sequence[str] = (),
    ) -> None:
        """Print results on stdout; columns of numbers stand right, None is '-', notes below.

        Raises: ValueError if a row has not one cell a column.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"{title}: {len(row)} cells for {len(columns)} columns: {row}")
        table = _results(columns, rows, self._out.width)
        if self._has_table or self._out.is_terminal:
            self._out.print()
        self._has_table = True
        if title:
            self._out.print(Text(title, style="bold"))
        self._out.print(table, crop=False)
        for note in notes:
            self._out.print(Text(_wrap(note, self._out.width)), soft_wrap=True)

    def _message(self, text: str, *, prefix: str = "", style: str = "") -> None:
        whole = prefix + text
        if self._err.is_terminal:
            whole = "\n".join(_wrap(line, self._err.width) for line in whole.split("\n"))
        said = Text(whole)
        said.stylize(style, 0, len(prefix))
        self._err.print(said, soft_wrap=True)


def _wrap(line: str, width: int) -> str:
    """A line broken between words only: a broken link could neither be clicked nor copied."""
    if len(line) <= width:
        return line
    lines = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


@dataclass(frozen=True)
class TrialLine:
    """One trial as a person reads it: a row of the live table, or a line of a file.

    role: trial | control. state: finished | stopped | failed | duplicate | running.
    accuracy, flops_share: in [0, 1], the latter of the baseline; None before they are known.
    reused: how many of the trial's `stages` came from the store.
    steps: pruning steps; None takes the last number that `step` told during this trial.
    """

    number: int
    role: str
    settings: Mapping[str, object]
    state: str
    accuracy: float | None
    flops_share: float | None
    reused: int
    stages: int
    seconds: float
    reason: str | None = None
    steps: int | None = None


class Screen(Protocol):
    """What a running study tells; every method may be called from inside a training loop."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def study(self, name: str, finished: int, planned: int) -> None:
        """How many different settings are finished, of how many asked for."""

    def baseline(self, text: str) -> None:
        """What is known of the baseline; a later text takes the place of an earlier one."""

    def trial(
        self, number: int, settings: Mapping[str, object], target: float, *, role: str = "trial"
    ) -> None:
        """A trial begins; target is the percentage of filters it shall remove."""

    def step(self, number: int, text: str, percentage: float) -> None:
        """Step `number` now does `text` (cut, evaluate, retrain ...); percentage removed so far."""

    def epoch(self, done: int, total: int, text: str = "") -> None:
        """How many epochs or batches of the work under way are done."""

    def trial_done(self, line: TrialLine) -> None:
        """A trial ended, in this session or in an earlier one; the same number replaces its row."""

    def message(self, text: str) -> None:
        """A line that stays, above the picture."""

    def close(self) -> None:
        """Leave the table of trials behind and give the terminal back; may be called twice."""


class QuietScreen:
    """A screen that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def study(self, name: str, finished: int, planned: int) -> None:
        pass

    def baseline(self, text: str) -> None:
        pass

    def trial(
        self, number: int, settings: Mapping[str, object], target: float, *, role: str = "trial"
    ) -> None:
        pass

    def step(self, number: int, text: str, percentage: float) -> None:
        pass

    def epoch(self, done: int, total: int, text: str = "") -> None:
        pass

    def trial_done(self, line: TrialLine) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class StudyScreen:
    """A study on a terminal or in a file; use it as a context, so that Ctrl-C closes it.

    On a terminal: the trials as a table that follows them, and bars for study, trial, step and
    epoch. Else: a line for the study, for each text of the baseline, each step and each trial.
    """

    def __init__(self, console: Console) -> None:
        self._progress = _Progress()
        self._view: _View = (
            _Picture(console, self._progress) if console.is_live else _Lines(console)
        )

    def __enter__(self) -> Self:
        self._view.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def study(self, name: str, finished: int, planned: int) -> None:
        is_new = name != self._progress.study.name
        self._progress.study = _Study(name, finished, planned)
        if is_new:
            self._view.note(f"study {name}: {finished} of {planned} settings finished")

    def baseline(self, text: str) -> None:
        self._progress.baseline = text
        self._progress.begin_work()
        self._view.note(f"baseline: {text}")

    def trial(
        self, number: int, settings: Mapping[str, object], target: float, *, role: str = "trial"
    ) -> None:
        line = TrialLine(number, role, dict(settings), "running", None, None, 0, 0, 0.0)
        self._progress.begin_work()
        self._progress.step = None
        self._progress.trial = _Trial(line, target, time.monotonic())

    def step(self, number: int, text: str, percentage: float) -> None:
        previous = self._progress.step
        is_same = previous is not None and previous.number == number
        if not is_same:
            self._note_step()
        began = previous.began if previous is not None and is_same else time.monotonic()
        self._progress.begin_work()
        self._progress.step = _Step(number, text, percentage, began)

    def epoch(self, done: int, total: int, text: str = "") -> None:
        previous = self._progress.epoch
        if previous is not None and done < previous[0]:
            self._progress.epoch_began = time.monotonic()
        self._progress.epoch = (done, total, text)

    def trial_done(self, line: TrialLine) -> None:
        trial, step = self._progress.trial, self._progress.step
        # By number alone: a control may have been begun without its role.
        if trial is not None and trial.line.number == line.number:
            self._note_step()
            if line.steps is None and step is not None:
                line = replace(line, steps=step.number)
            self._progress.trial = self._progress.step = None
            self._progress.begin_work()
        self._progress.remember(line)
        self._view.trial_done(line)

    def message(self, text: str) -> None:
        self._view.message(text)

    def close(self) -> None:
        self._view.close()

    def _note_step(self) -> None:
        """Tell of a step when it is left: only then is it known how far it came."""
        trial, step = self._progress.trial, self._progress.step
        if trial is not None and step is not None:
            duration = seconds(time.monotonic() - step.began)
            self._view.note(
                f"{trial.line.role} {trial.line.number}, step {step.number}: "
                f"{step.percentage:.1f} of {trial.target:g} % filters removed, {duration}"
            )


@dataclass(frozen=True)
class _Study:
    name: str
    finished: int
    planned: int


@dataclass(frozen=True)
class _Trial:
    line: TrialLine
    target: float
    began: float


@dataclass(frozen=True)
class _Step:
    number: int
    text: str
    percentage: float
    began: float


class _Progress:
    """Where a study stands.

    The loop replaces whole values and never changes one: the drawing thread needs no lock.
    """

    def __init__(self) -> None:
        self.study = _Study("", 0, 0)
        self.baseline = ""
        self.trials: tuple[TrialLine, ...] = ()
        self.trial: _Trial | None = None
        self.step: _Step | None = None
        # (done, total, text): a bare tuple, because it is made thousands of times.
        self.epoch: tuple[int, int, str] | None = None
        self.epoch_began = time.monotonic()

    def begin_work(self) -> None:
        """What the epochs counted is over; the next are counted, and timed, from here."""
        self.epoch = None
        self.epoch_began = time.monotonic()

    def remember(self, line: TrialLine) -> None:
        keys = [_key(known) for known in self.trials]
        if _key(line) in keys:
            place = keys.index(_key(line))
            self.trials = (*self.trials[:place], line, *self.trials[place + 1 :])
        else:
            self.trials = (*self.trials, line)


def _key(line: TrialLine) -> tuple[str, int]:
    return line.role, line.number


class _View(Protocol):
    def open(self) -> None: ...
    def note(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def trial_done(self, line: TrialLine) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """A study in a file: lines, none of them twice in a row, none of a trial twice."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""
        self._told: dict[tuple[str, int], str] = {}

    def open(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.message(" ".join(text.split()))

    def message(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._console.say(text)

    def trial_done(self, line: TrialLine) -> None:
        text = _sentence(line)
        if line.state != "running" and self._told.get(_key(line)) != text:
            self._told[_key(line)] = text
            self.note(text)

    def close(self) -> None:
        pass


def _sentence(line: TrialLine) -> str:
    settings = ", ".join(f"{name} {_setting(value)}" for name, value in line.settings.items())
    parts = [f"{line.role} {line.number} {line.state}: {settings}"]
    if line.accuracy is not None:
        parts.append(f"accuracy {percent(line.accuracy)}")
    if line.flops_share is not None:
        parts.append(f"FLOPs {percent(line.flops_share)}")
    if line.steps is not None:
        parts.append(f"{line.steps} steps" if line.steps != 1 else "1 step")
    parts.append(f"{line.reused} of {line.stages} stages reused")
    parts.append(seconds(line.seconds))
    if line.reason:
        parts.append(line.reason)
    return " | ".join(parts)


def _setting(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Picture:
    """A study on a terminal: drawn by rich's thread from `progress`, never by the loop."""

    def __init__(self, console: Console, progress: _Progress) -> None:
        self._console = console
        self._progress = progress
        self._is_closing = False
        self._live = Live(
            console=console._err,
            get_renderable=self._draw,
            refresh_per_second=FRAMES_PER_SECOND,
            # A stray print then appears above the picture; what goes to a file must still go there.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def open(self) -> None:
        self._live.start()
        # Rich hides the cursor; a process that is killed could not bring it back.
        self._console._err.show_cursor(True)

    def note(self, text: str) -> None:
        pass  # the picture shows it

    def message(self, text: str) -> None:
        self._console.say(text)

    def trial_done(self, line: TrialLine) -> None:
        if line.state == "failed":
            self.message(f"{line.role} {line.number} failed: {line.reason or 'no reason given'}")

    def close(self) -> None:
        self._is_closing = True
        self._live.stop()

    def _draw(self) -> rich.console.RenderableType:
        size = self._console._err.size
        if self._is_closing:
            return rich.console.Group(*_picture_left(self._progress, size.width))
        # One line stays free: a picture as high as the terminal would scroll at every frame.
        return rich.console.Group(*_picture(self._progress, size.width, size.height - 1))


def _picture(progress: _Progress, width: int, height: int) -> Iterator[rich.console.RenderableType]:
    """The study now: baseline, the last trials that fit, bars; (width, height) in characters."""
    now = time.monotonic()
    bars = _bars(progress, width, now)
    lines = _lines_now(progress, "running", now)
    head = list(_head(progress))
    yield from head
    if lines:
        yield from _trials(lines, width, height - len(head) - 1 - bars.row_count)
        yield Text()
    yield bars


def _picture_left(progress: _Progress, width: int) -> Iterator[rich.console.RenderableType]:
    """What stays in the terminal when the study is closed: every trial, no bars."""
    lines = _lines_now(progress, "unfinished", time.monotonic())
    yield from _head(progress)
    if lines:
        yield from _trials(lines, width, UNBOUNDED)


def _lines_now(progress: _Progress, state: str, now: float) -> tuple[TrialLine, ...]:
    """All trials that ended, then the one under way in the given state."""
    trial, step = progress.trial, progress.step
    if trial is None:
        return progress.trials
    steps = step.number if step else None
    under_way = replace(trial.line, state=state, steps=steps, seconds=now - trial.began)
    ended = (line for line in progress.trials if _key(line) != _key(under_way))
    return (*ended, under_way)


def _head(progress: _Progress) -> Iterator[Text]:
    if progress.baseline:
        yield _one_line(f"baseline: {progress.baseline}")


def _one_line(text: str, style: str = "") -> Text:
    return Text(" ".join(text.split()), style=style, no_wrap=True, overflow="ellipsis")


STATE_STYLES = {
    "finished": "green",
    "running": "bold cyan",
    "unfinished": "yellow",
    "stopped": "yellow",
    "failed": "bold red",
    "duplicate": "dim",
}


@dataclass(frozen=True)
class _Column:
    """One column of a table, measured by us: rich would squeeze it letter by letter.

    head: the title's words, one line each when it is narrow.
    """

    head: str
    cells: tuple[str, ...]
    is_setting: bool = False
    is_left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, (*self.head.split(), *self.cells)), default=0)

    @property
    def least(self) -> int:
        """The width where its texts are broken between words, and its numbers are whole."""
        parts = [word for cell in self.cells for word in cell.split()] if self.is_left else []
        return max(map(len, (*self.head.split(), *(parts or self.cells))), default=0)

    def head_lines(self) -> list[str]:
        return textwrap.wrap(self.head, max(1, self.width), break_long_words=False)

    def with_words_of(self, longest: int) -> "_Column":
        """The same column, the words of its title cut to `longest` letters."""
        words = self.head.split()
        short = [word if len(word) <= longest else word[: longest - 1] + "." for word in words]
        return replace(self, head=" ".join(short))

    def put(self, text: str) -> str:
        return text.ljust(self.width) if self.is_left else text.rjust(self.width)


def _trials(lines: Sequence[TrialLine], width: int, height: int) -> Iterator[Text | Rule]:
    """Table of the last trials in at most `height` lines, and how many stand above."""
    columns, gap = _fit(_columns(lines), width)
    heads = [column.head_lines() for column in columns]
    num_heads = max(map(len, heads))
    has_controls = any(line.role != "trial" for line in lines)
    room = max(1, height - num_heads - 1 - has_controls)
    first = 0 if len(lines) <= room else len(lines) - max(1, room - 1)
    for row in range(-num_heads, 0):
        texts = [head[row] if len(head) >= -row else "" for head in heads]
        yield _row(columns, texts, gap, dict.fromkeys((column.head for column in columns), "bold"))
    yield Rule(style="dim")
    if first:
        yield _one_line(f"... {first} {'trial' if first == 1 else 'trials'} above", "dim")
    for place in range(first, len(lines)):
        styles = {"state": STATE_STYLES.get(lines[place].state, ""), "reason": "dim"}
        yield _row(columns, [column.cells[place] for column in columns], gap, styles)
    if has_controls:
        yield _one_line("c: control", "dim")


def _columns(lines: Sequence[TrialLine]) -> list[_Column]:
    names = list(dict.fromkeys(name for line in lines for name in line.settings))
    return [
        _column("#", lines, lambda line: f"{'' if line.role == 'trial' else 'c'}{line.number}"),
        *(_setting_column(name, lines) for name in names),
        replace(_column("state", lines, lambda line: line.state), is_left=True),
        _column("steps", lines, lambda line: NOTHING if line.steps is None else str(line.steps)),
        _column("accuracy", lines, lambda line: percent(line.accuracy)),
        _column("FLOPs", lines, lambda line: percent(line.flops_share)),
        _column("reused", lines, _reused),
        _column("time", lines, lambda line: seconds(line.seconds)),
        replace(_column("reason", lines, lambda line: line.reason or ""), is_left=True),
    ]


def _column(head: str, lines: Sequence[TrialLine], show: Callable[[TrialLine], str]) -> _Column:
    return _Column(head, tuple(" ".join(show(line).split()) for line in lines))


def _reused(line: TrialLine) -> str:
    return f"{line.reused}/{line.stages}" if line.stages else NOTHING


def _setting_column(name: str, lines: Sequence[TrialLine]) -> _Column:
    def show(line: TrialLine) -> str:
        return _cut(_setting(line.settings.get(name, NOTHING)), WIDEST_CELL)

    column = _column(" ".join(re.split(r"[_.]", name)), lines, show)
    return replace(column, is_setting=True, is_left=not _is_numeric(column.cells))


def _fit(columns: Sequence[_Column], width: int) -> tuple[list[_Column], int]:
    """Columns and the gap between them that fit in `width` characters.

    In this order: less gap, shorter titles of the settings, no time, no steps, no reused stages.
    The reasons take what is left; they are told elsewhere where nothing is.
    """
    *kept, reason = columns
    for gap, longest, gone in _squeezes():
        tried = [
            column.with_words_of(longest) if column.is_setting else column
            for column in kept
            if column.head not in gone
        ]
        left = width - _width(tried, gap)
        if left >= 0:
            break
    if any(reason.cells) and left - gap >= NARROWEST_REASON:
        tried.append(replace(reason, cells=tuple(_cut(c, left - gap) for c in reason.cells)))
    return tried, gap


def _squeezes() -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """(gap, longest word in the title of a setting, columns left out), from roomy to narrow."""
    yield 2, WIDEST_CELL, ()
    yield 1, WIDEST_CELL, ()
    for gone in ((), ("time",), ("time", "steps"), ("time", "steps", "reused")):
        for longest in range(9, 3, -1):
            yield 1, longest, gone


def _width(columns: Sequence[_Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def _row(
    columns: Sequence[_Column], texts: Sequence[str], gap: int, styles: Mapping[str, str]
) -> Text:
    row = Text(no_wrap=True, overflow="crop")
    for column, text in zip(columns, texts, strict=True):
        row.append(column.put(text), styles.get(column.head))
        row.append(" " * gap)
    row.rstrip()
    return row


def _results(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> Table:
    """Table in `width` characters: titles are shortened and texts broken, numbers never.

    One that does not fit even so is wider than asked: the terminal breaks it, nothing is lost.
    """
    texts = [[_cell(value) for value in row] for row in rows]
    full = [
        _Column(head, cells, is_left=not _is_numeric(cells))
        for place, head in enumerate(columns)
        for cells in [tuple(row[place] for row in texts)]
    ]
    for gap, longest, gone in _squeezes():
        if gone:
            break
        tried = [column.with_words_of(longest) for column in full]
        gaps = gap * (len(tried) - 1)
        least = sum(column.least for column in tried) + gaps
        if least <= width:
            break
    widths = _shared_out(tried, max(width, least) - least)
    # Every width is given: left to itself, rich would cut numbers to keep texts in one line.
    table = Table(
        box=rich.box.SIMPLE_HEAD,
        padding=(0, gap - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        width=sum(widths) + gaps,
    )
    for column, column_width in zip(tried, widths, strict=True):
        side: Literal["left", "right"] = "left" if column.is_left else "right"
        table.add_column(column.head, justify=side, width=column_width)
    for row in texts:
        table.add_row(*row)
    return table


def _shared_out(columns: Sequence[_Column], spare: int) -> list[int]:
    """Width of each column: the least, and of the spare characters what texts, then titles need."""
    widths = [column.least for column in columns]
    wishes = [[max(map(len, column.cells), default=0) for column in columns]]
    wishes.append([len(column.head) for column in columns])
    for wish in wishes:
        for place, wished in enumerate(wish):
            more = min(spare, max(0, wished - widths[place]))
            widths[place] += more
            spare -= more
    return widths


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_numeric(cells: Sequence[str]) -> bool:
    said = [cell for cell in cells if cell not in ("", NOTHING)]
    return bool(said) and all(NUMBER.fullmatch(cell) for cell in said)


def _bars(progress: _Progress, width: int, now: float) -> Table:
    """Study, trial, step and epoch, one line each, as far as they are known."""
    study, trial, step, epoch = progress.study, progress.trial, progress.step, progress.epoch
    # The cursor stands behind the last bar: the terminal's ^C must not break the line there.
    bars = Table.grid(padding=(0, 1), expand=True)
    bars.width = max(1, width - len("^C") - 1)
    bars.add_column(no_wrap=True, max_width=width // 3, overflow="ellipsis")
    bars.add_column(ratio=1, no_wrap=True)
    # A width of its own: a text that grows and shrinks must not move the bars.
    bars.add_column(width=min(40, 2 * width // 5), no_wrap=True, overflow="ellipsis")
    bars.add_column(min_width=10, no_wrap=True, justify="right")
    if study.name:
        text = f"{study.finished} of {study.planned} settings"
        bars.add_row(
            f"study {study.name}",
            _bar(study.finished, study.planned),
            text,
            _left(_study_left(progress, now)),
        )
    if trial is not None:
        removed = step.percentage if step else 0.0
        bars.add_row(
            f"{trial.line.role} {trial.line.number}",
            _bar(removed, trial.target),
            f"{removed:.1f} of {trial.target:g} % filters",
            _left(_left_of(now - trial.began, removed, trial.target)),
        )
    if step is not None:
        bars.add_row(f"step {step.number}", step.text, "", seconds(now - step.began))
    if epoch is not None:
        done, total, text = epoch
        bars.add_row(
            "epoch",
            _bar(done, total),
            " ".join(f"{done} of {total} {text}".split()),
            _left(_left_of(now - progress.epoch_began, done, total)),
        )
    return bars


def _bar(done: float, total: float) -> ProgressBar:
    # A total of nothing is done: rich would divide by it, or pulse.
    return ProgressBar(total=total, completed=done) if total > 0 else ProgressBar(1, 1)


def _left(duration: float | None) -> str:
    return f"{seconds(duration)} left"


def _left_of(elapsed: float, done: float, total: float) -> float | None:
    """Seconds that the rest takes at the pace so far; None before the first of it is done."""
    return elapsed * (total - done) / done if done > 0 else None


def _study_left(progress: _Progress, now: float) -> float | None:
    """Seconds to the last setting asked for, at the cost of a finished setting so far.

    Trials that gave no setting (failed, duplicate) cost time too. Before the first has
    finished, the one under way stands for all.
    """
    trial, step = progress.trial, progress.step
    elapsed = now - trial.began if trial else 0.0
    rest = _left_of(elapsed, step.percentage, trial.target) if trial and step else None
    searched = [line for line in progress.trials if line.role == "trial"]
    num_finished = sum(line.state in ("finished", "stopped") for line in searched)
    if num_finished:
        each = sum(line.seconds for line in searched) / num_finished
    elif rest is not None:
        each = elapsed + rest
    else:
        return None
    return max(each * (progress.study.planned - progress.study.finished) - elapsed, rest or 0.0)
