"""What a person sees: the same study in a file and on a terminal, tables, and numbers as words."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.console import (
    Console,
    QuietScreen,
    Screen,
    StudyScreen,
    TrialLine,
    count,
    percent,
    seconds,
)

CONTROL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what was drawn on it, frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.frames.append(plain(text))
        return super().write(text)

    def text(self) -> str:
        return plain(self.getvalue())

    def next_frame(self) -> list[str]:
        """Lines of a picture drawn after this call, so of all that was told before it."""
        # The next frame may have been begun already; the one after it was not.
        wanted = len(self.frames) + 2
        deadline = time.monotonic() + 10
        while len(self.frames) < wanted:
            assert time.monotonic() < deadline, "nothing is drawn"
            time.sleep(0.002)
        return self.frames[-1].split("\n")


def plain(text: str) -> str:
    return CONTROL_CODE.sub("", text).replace("\r", "")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns and 24 lines, drawn often."""
    monkeypatch.setattr("harness.console.FRAMES_PER_SECOND", 100)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return Terminal()


SETTINGS: dict[str, object] = {
    "filters_per_step": 128,
    "retrain_epochs": 2,
    "layer_min": 0.1,
    "percentage": 85.5,
}


def line(number: int, state: str = "finished", **changes: object) -> TrialLine:
    known: dict[str, object] = {
        "number": number,
        "role": "trial",
        "settings": SETTINGS,
        "state": state,
        "accuracy": 0.9861,
        "flops_share": 0.0987,
        "reused": 3,
        "stages": 10,
        "seconds": 83.4,
        "reason": None,
    }
    return TrialLine(**{**known, **changes})  # type: ignore[arg-type]


def tell(screen: Screen, *, num_trials: int = 2, num_epochs: int = 3) -> None:
    """A study of trials with two steps each; every step is told in three phases."""
    screen.study("vgg16_budget", 0, num_trials)
    screen.baseline("training")
    screen.baseline("98.89 %")
    for number in range(num_trials):
        screen.trial(number, SETTINGS, 85.5)
        for step, before, after in ((1, 0.0, 40.0), (2, 40.0, 85.5)):
            for phase in ("cut", "evaluate", "retrain"):
                screen.step(step, phase, before if phase == "cut" else after)
                for epoch in range(num_epochs):
                    screen.epoch(epoch + 1, num_epochs, "loss 0.5")
        screen.trial_done(line(number))
        screen.study("vgg16_budget", number + 1, num_trials)


def piped(**options: int) -> list[str]:
    err = io.StringIO()
    with StudyScreen(Console(err=err)) as screen:
        tell(screen, **options)
    return err.getvalue().splitlines()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (12_345_678, "12.3 M"),
        (134_268_738, "134 M"),
        (999_600, "1.00 M"),
        (15.35e9, "15.3 G"),
        (-4224, "-4.22 k"),
    ],
)
def test_a_count_has_three_digits(number: float, words: str) -> None:
    assert count(number) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.9861, "98.61 %"), (0.0, "0.00 %"), (1.0, "100.00 %"), (None, "-"), (float("nan"), "-")],
)
def test_a_share_is_shown_as_percent(share: float | None, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (0.2, "0:00"),
        (59.6, "1:00"),
        (83.4, "1:23"),
        (3723, "1:02:03"),
        (-1, "0:00"),
        (None, "-:--"),
        (float("inf"), "-:--"),
    ],
)
def test_a_duration_is_shown_in_minutes(duration: float | None, words: str) -> None:
    assert seconds(duration) == words


@pytest.mark.rows("R118")
def test_a_piped_study_is_one_line_a_step_and_one_a_trial() -> None:
    settings = "filters_per_step 128, retrain_epochs 2, layer_min 0.1, percentage 85.5"
    numbers = "accuracy 98.61 % | FLOPs 9.87 % | 2 steps | 3 of 10 stages reused | 1:23"
    assert piped() == [
        "study vgg16_budget: 0 of 2 settings finished",
        "baseline: training",
        "baseline: 98.89 %",
        "trial 0, step 1: 40.0 of 85.5 % filters removed, 0:00",
        "trial 0, step 2: 85.5 of 85.5 % filters removed, 0:00",
        f"trial 0 finished: {settings} | {numbers}",
        "trial 1, step 1: 40.0 of 85.5 % filters removed, 0:00",
        "trial 1, step 2: 85.5 of 85.5 % filters removed, 0:00",
        f"trial 1 finished: {settings} | {numbers}",
    ]


def test_epochs_add_no_line_to_a_file() -> None:
    assert piped(num_epochs=200) == piped(num_epochs=0)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_no_control_code_reaches_a_file(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Not even when the environment asks for colours, and for a narrow terminal."""
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("COLUMNS", "20")
    out, err = io.StringIO(), io.StringIO()
    console = Console(out=out, err=err)
    with StudyScreen(console) as screen:
        tell(screen)
    console.error("wrong")
    console.table("Front", ["trial", "accuracy"], [[1, "98.61 %"]])
    assert "\x1b" not in out.getvalue() + err.getvalue()
    assert "trial 0, step 1: 40.0 of 85.5 % filters removed, 0:00" in err.getvalue()
    assert "error: wrong\n" in err.getvalue()


def test_a_trial_told_twice_is_one_line_and_a_new_outcome_another() -> None:
    err = io.StringIO()
    with StudyScreen(Console(err=err)) as screen:
        for _ in range(2):
            screen.trial_done(line(3, "failed", reason="disk full:\nfree some space"))
            screen.trial_done(line(4))
        screen.trial_done(line(5, "running"))
        screen.trial_done(line(3))
    starts = [text.split(":")[0] for text in err.getvalue().splitlines()]
    assert starts == ["trial 3 failed", "trial 4 finished", "trial 3 finished"]
    assert "| disk full: free some space\n" in err.getvalue()


def test_the_same_message_is_not_told_twice_in_a_row() -> None:
    err = io.StringIO()
    with StudyScreen(Console(err=err)) as screen:
        for text in ("resumed", "resumed", "store full", "resumed"):
            screen.message(text)
    assert err.getvalue().splitlines() == ["resumed", "store full", "resumed"]


def test_a_control_is_named_so() -> None:
    err = io.StringIO()
    with StudyScreen(Console(err=err)) as screen:
        screen.trial(7, {"criterion": "random"}, 50.0, role="control")
        screen.step(1, "cut", 50.0)
        screen.trial_done(line(7, role="control", settings={"criterion": "random"}))
    assert err.getvalue().splitlines()[0].startswith("control 7, step 1: 50.0 of 50 %")
    assert err.getvalue().splitlines()[1].startswith("control 7 finished: criterion random | ")


def test_the_picture_shows_the_trial_under_way_and_the_four_bars(terminal: Terminal) -> None:
    with StudyScreen(Console(err=terminal)) as screen:
        screen.study("vgg16_budget", 5, 12)
        screen.baseline("98.89 %")
        screen.trial_done(line(6))
        screen.trial(7, SETTINGS, 80.0)
        screen.step(3, "retrain", 40.0)
        screen.epoch(2, 4, "loss 0.213")
        lines = terminal.next_frame()
    assert "baseline: 98.89 %" in lines
    finished, running = (" ".join(text.split()) for text in lines if text[:1] in "67" and text)
    assert finished == "6 128 2 0.1 85.5 finished - 98.61 % 9.87 % 3/10 1:23"
    assert running == "7 128 2 0.1 85.5 running 3 - - - 0:00"
    study, trial, step, epoch = lines[-4:]
    assert len(epoch) + len("^C") < 80, "the terminal's ^C would begin a new line"
    assert re.search(r"^study vgg16_budget .* 5 of 12 settings .* left", study)
    assert re.search(r"^trial 7 .* 40\.0 of 80 % filters ", trial)
    assert re.search(r"^step 3 +retrain ", step)
    assert re.search(r"^epoch .* 2 of 4 loss 0\.213 ", epoch)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_forty_trials_fit_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """The last ones are shown whole, the number of the others is said, and no line is too long."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with StudyScreen(Console(err=terminal)) as screen:
        screen.study("vgg16_budget", 40, 60)
        screen.baseline("98.89 %")
        for number in range(40):
            screen.trial_done(line(number, "stopped", reason="worse than the median " * 9))
        screen.trial(40, SETTINGS, 85.5)
        screen.step(1, "retrain", 10.0)
        screen.epoch(1, 4)
        lines = terminal.next_frame()
    assert len(lines) == 23
    assert max(map(len, lines)) <= columns
    shown = [int(text.split()[0]) for text in lines if re.match(r" *\d+ +128 +2 ", text)]
    assert shown == list(range(41 - len(shown), 41))
    assert f"... {41 - len(shown)} trials above" in lines
    assert all("98.61 %" in text and "9.87 %" in text for text in lines if " stopped " in text)


def test_a_reason_takes_the_room_that_is_left(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    with StudyScreen(Console(err=terminal)) as screen:
        screen.trial_done(line(3, "duplicate", reason="same settings as trial 1"))
        assert any(text.endswith("same settings as trial 1") for text in terminal.next_frame())


def test_a_closed_screen_leaves_every_trial_once(terminal: Terminal) -> None:
    with StudyScreen(Console(err=terminal)) as screen:
        tell(screen, num_trials=30)
        screen.trial(30, SETTINGS, 85.5)
        screen.message("the end")
        screen.close()
    # What an erased frame held is behind the last erasing of a line.
    left = CONTROL_CODE.sub("", terminal.getvalue().rsplit("\x1b[2K", 1)[1]).split("\n")
    assert left[0] == "baseline: 98.89 %"
    numbers = [int(text.split()[0]) for text in left if re.match(r" *\d+ +128 ", text)]
    assert numbers == list(range(31))
    assert "unfinished" in next(text for text in left if text.startswith("30 "))
    assert not any("settings" in text or "above" in text for text in left)


def test_a_failed_trial_tells_why_above_the_picture(terminal: Terminal) -> None:
    with StudyScreen(Console(err=terminal)) as screen:
        screen.trial_done(line(3, "failed", reason="disk full"))
    assert terminal.text().count("trial 3 failed: disk full\n") == 1


def test_a_trial_told_again_replaces_its_row(terminal: Terminal) -> None:
    with StudyScreen(Console(err=terminal)) as screen:
        screen.trial_done(line(3, "stopped"))
        screen.trial_done(line(3, "finished", role="control"))
        screen.trial_done(line(3, "finished"))
        lines = terminal.next_frame()
    rows = [text.split()[0] for text in lines if " 128 " in text]
    assert rows == ["3", "c3"]
    assert not any("stopped" in text for text in lines)


def test_a_control_begun_without_its_role_is_ended_too(terminal: Terminal) -> None:
    with StudyScreen(Console(err=terminal)) as screen:
        screen.trial(3, SETTINGS, 85.5)
        screen.step(2, "cut", 10.0)
        screen.trial_done(line(3, role="control"))
        lines = terminal.next_frame()
    rows = [" ".join(text.split()) for text in lines if " 128 " in text]
    assert rows == ["c3 128 2 0.1 85.5 finished 2 98.61 % 9.87 % 3/10 1:23"]


def test_time_left_is_that_of_the_settings_still_to_finish(terminal: Terminal) -> None:
    """One finished, one stopped by its floors (a setting too), one failed trial took 180 s:
    90 s a setting, and four are missing."""
    with StudyScreen(Console(err=terminal)) as screen:
        screen.study("s", 2, 6)
        for number, state in enumerate(("finished", "failed", "stopped")):
            screen.trial_done(line(number, state, seconds=60.0))
        assert any(text.rstrip().endswith("6:00 left") for text in terminal.next_frame())


def test_time_already_spent_on_a_trial_is_no_longer_left(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One finished setting took 60 s, two are missing, the next began 20 s ago: 100 s are left.

    That trial is a quarter done in these 20 s: 60 s of it are left. Its epochs, half done: 20 s.
    """
    clock = SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr("harness.console.time", clock)
    with StudyScreen(Console(err=terminal)) as screen:
        screen.study("s", 1, 3)
        screen.trial_done(line(0, seconds=60.0))
        screen.trial(1, SETTINGS, 80.0)
        screen.step(1, "retrain", 20.0)
        screen.epoch(2, 4)
        clock.monotonic = lambda: 1020.0
        study, trial, step, epoch = terminal.next_frame()[-4:]
    assert study.endswith("1:40 left")
    assert trial.endswith("1:00 left")
    assert step.endswith(" 0:20")
    assert epoch.endswith("0:20 left")


@pytest.mark.parametrize("target", [0.0, 80.0])
def test_nothing_done_and_nothing_asked_for_can_be_drawn(terminal: Terminal, target: float) -> None:
    with StudyScreen(Console(err=terminal)) as screen:
        assert terminal.next_frame()
        screen.study("s", 0, 0)
        screen.trial(0, {}, target)
        screen.step(1, "cut", 0.0)
        screen.epoch(0, 0)
        assert any(text.startswith("epoch ") for text in terminal.next_frame())


def test_a_terminal_that_cannot_redraw_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with StudyScreen(Console(err=terminal)) as screen:
        tell(screen, num_trials=1)
    assert "\x1b" not in terminal.getvalue()
    assert "trial 0, step 2: " in terminal.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_telling_an_epoch_costs_next_to_nothing(terminal: Terminal, is_terminal: bool) -> None:
    with StudyScreen(Console(err=terminal if is_terminal else io.StringIO())) as screen:
        began = time.thread_time()
        for done in range(20_000):
            screen.epoch(done, 20_000, "loss 0.5")
        assert (time.thread_time() - began) / 20_000 < 5e-6


def test_every_screen_can_be_told_a_study() -> None:
    screens: list[Screen] = [QuietScreen(), StudyScreen(Console(err=io.StringIO()))]
    for screen in screens:
        with screen as opened:
            tell(opened)
        screen.close()


def test_a_quiet_screen_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with QuietScreen() as screen:
        tell(screen)
    assert capsys.readouterr() == ("", "")


def test_a_table_goes_to_stdout_and_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("working")
    console.table("Front", ["trial"], [[1]])
    out, err = capsys.readouterr()
    assert err == "working\n"
    assert [text.strip() for text in out.splitlines() if text.isascii()] == ["Front", "trial", "1"]


def table_lines(
    stream: io.StringIO, columns: list[str], rows: list[list[object]], *notes: str
) -> list[str]:
    Console(out=stream).table("Front", columns, rows, notes)
    return [text.rstrip() for text in CONTROL_CODE.sub("", stream.getvalue()).splitlines()]


def test_numbers_stand_right_and_texts_left() -> None:
    rows: list[list[object]] = [
        [7, "taylor", "98.61 %", 0.123456, None],
        [12, "l1", None, 12.0, "[bold]kept[/bold] :smile:"],
    ]
    lines = table_lines(
        io.StringIO(), ["trial", "criterion", "accuracy", "loss", "note"], rows, "FLOPs: 2 x MACs."
    )
    assert lines[0] == "Front"
    assert lines[1] == "trial  criterion  accuracy    loss  note"
    assert lines[3] == "    7  taylor      98.61 %  0.1235  -"
    assert lines[4] == "   12  l1                -      12  [bold]kept[/bold] :smile:"
    assert lines[5:] == ["FLOPs: 2 x MACs."]


def test_a_wide_table_is_whole_in_a_file() -> None:
    row: list[object] = ["word " * 40] * 3
    lines = table_lines(io.StringIO(), ["a", "b", "c"], [row])
    assert len(lines) == 4
    assert lines[3].split() == ["word"] * 120


def test_a_narrow_terminal_breaks_titles_and_texts_but_no_number(terminal: Terminal) -> None:
    heads = ["trial", "filters per step", "validation accuracy", "test accuracy", "share", "note"]
    row: list[object] = [7, 128, "98.61 %", "98.01 %", "100.00 %", "random at matched FLOPs " * 3]
    lines = table_lines(terminal, heads + heads[2:], [row + row[2:]])
    assert max(map(len, lines)) <= 80
    assert sum(text.count("98.61 %") + text.count("100.00 %") for text in lines) == 4
    assert sum(text.count("matched") for text in lines) == 6


def test_a_table_too_wide_for_the_terminal_loses_nothing(terminal: Terminal) -> None:
    row: list[object] = [f"{number}000.5 %" for number in range(10, 40)]
    lines = table_lines(terminal, ["share"] * 30, [row])
    assert " ".join(lines[-1].split()) == " ".join(map(str, row))


def test_a_table_without_rows_has_its_titles() -> None:
    assert table_lines(io.StringIO(), ["trial", "note"], [])[1] == "trial  note"


def test_a_row_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="Front: 1 cells for 2 columns"):
        Console(out=io.StringIO()).table("Front", ["trial", "note"], [[1]])


def test_an_error_is_shown_as_it_was_written() -> None:
    err = io.StringIO()
    text = (
        "2 mistakes in configs/a.yaml\n  retrain.lr: -0.1 must be > 0.\n  [b]: unknown " + "x" * 99
    )
    Console(err=err).error(text)
    assert err.getvalue() == f"error: {text}\n"


def test_a_link_is_never_broken_on_a_terminal(terminal: Terminal) -> None:
    link = "http://127.0.0.1:5000/#/compare-runs?runs=" + "0123456789abcdef" * 8
    Console(err=terminal).say(f"Compare the trials of the study and see which widths won: {link}")
    first, second = terminal.text().splitlines()
    assert first == "Compare the trials of the study and see which widths won:"
    assert second == link


CTRL_C = """
import signal
import time
from harness.console import Console, StudyScreen

# A shell that starts the tests in the background has it ignored, down to here.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with StudyScreen(Console()) as screen:
        screen.study("s", 0, 2)
        screen.trial(0, {"layer_min": 0.1}, 50.0)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_a_study_the_cursor_is_shown(number: signal.Signals) -> None:
    main_side, study_side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        [sys.executable, "-c", CTRL_C],
        stdin=study_side,
        stdout=study_side,
        stderr=study_side,
        cwd=Path(__file__).parents[1],
        env=environment,
    ) as study:
        os.close(study_side)
        drawn = read_until(main_side, b"trial 0")
        study.send_signal(number)
        drawn += read_until(main_side, None)
        study.kill()
    os.close(main_side)
    assert drawn.rfind(b"\x1b[?25h") > drawn.rfind(b"\x1b[?25l") >= 0
    if number == signal.SIGINT:
        assert b"unfinished" in drawn
        assert drawn.rstrip().endswith(b"interrupted")


def read_until(stream: int, wanted: bytes | None) -> bytes:
    """What a pseudo terminal gives up to the wanted bytes, or to its end."""
    read = b""
    deadline = time.monotonic() + 20
    while (wanted is None or wanted not in read) and time.monotonic() < deadline:
        if select.select([stream], [], [], 0.1)[0]:
            try:
                read += os.read(stream, 65536)
            except OSError:  # Linux: the other side is closed
                break
    return read


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_who_no_longer_reads_ends_nothing(kind: str) -> None:
    """As after `| head -1`, and when the window is closed: the process says on and ends well."""
    program = ("import sys, threading; from harness.console import Console; console = Console()\n"
               "def say():\n"
               "    for _ in range(3): console.say('more'); console.table('t', ['a'], [['b']])\n"
               "input(); say()\n"
               "thread = threading.Thread(target=say); thread.start(); thread.join()\n"
               "open(sys.argv[1], 'w').write('done')")
    reading, writing = os.pipe() if kind == "pipe" else pty.openpty()
    kept, said = os.pipe()
    with subprocess.Popen([sys.executable, "-c", program, f"/dev/fd/{said}"], text=True,
                          stdin=subprocess.PIPE, stdout=writing, stderr=writing,
                          pass_fds=[said]) as process:
        os.close(writing)
        os.close(reading)
        os.close(said)
        process.communicate("\n", timeout=60)
    assert process.returncode == 0
    with os.fdopen(kept) as told:
        assert told.read() == "done"
