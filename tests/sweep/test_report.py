"""The report of a study: read by a parser, as a browser does, and held against what was found."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny
from PIL import Image
from tiny import Machine

from harness.checkpoint import read_checkpoint
from harness.cli import _load_study
from harness.errors import StudyError
from harness.sweep.outcome import Outcome
from harness.sweep.place import study_id
from harness.sweep.report import REPORT, report_study, write
from harness.sweep.report_page import anonymous
from harness.sweep.verdict import Versus
from sweep.conftest import Whole

HOSTILE = "<script>alert('x')</script>\"'><img src=http://evil.example/a.png onerror=b()>&amp;"


@dataclass
class Seen(HTMLParser):
    """What stands in a page: its tags with their attributes, its texts, its tables by rows."""

    page: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "code":
            self.codes.append("")
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # every tag is closed where it should be

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data
        if "code" in self._open:
            self.codes[-1] += data

    @property
    def words(self) -> str:
        return "\n".join(self.texts)


def pictures(seen: Seen) -> list[Image.Image]:
    sources = [str(attrs["src"]) for tag, attrs in seen.tags if tag == "img"]
    drawn = [Image.open(io.BytesIO(base64.b64decode(s.removeprefix("data:image/png;base64,"))))
             for s in sources]
    for image in drawn:
        image.load()  # raises for what is cut off or no picture
    return drawn


@pytest.fixture(scope="module")
def folder(whole: Whole) -> Path:
    return whole.machine.home / "studies" / whole.outcome.study_id


@pytest.fixture(scope="module")
def seen(folder: Path) -> Seen:
    return Seen((folder / REPORT).read_text())


def test_every_number_of_the_final_table_stands_in_the_report(whole: Whole, seen: Seen) -> None:
    assert len(whole.outcome.rows) > 3
    for row in whole.outcome.rows:
        line, = [r for r in seen.rows if r[:2] == [row.role, row.name]]
        test = "-" if row.test_accuracy is None else f"{100 * row.test_accuracy:.2f} %"
        assert line[2:5] == [f"{100 * row.accuracy:.2f} %", test, f"{100 * row.share:.2f} %"]
        assert line[6] == str(row.filters)
        assert all(f"{name} {value}" in line[7] for name, value in row.settings.items())
    assert whole.outcome.question in seen.words
    assert whole.outcome.verdict
    assert all(sentence in seen.texts for sentence in whole.outcome.verdict)
    assert ["epochs of retraining and fine-tuning, run", str(whole.outcome.epochs_run)] in seen.rows


def test_widths_before_and_after_are_those_of_the_weights(whole: Whole, folder: Path, seen: Seen,
                                                          ) -> None:
    """Counted in the files of baseline and champion."""
    before, after = (
        {name.removesuffix(".weight"): tensor.shape[0] for name, tensor
         in read_checkpoint(folder / f"{which}.safetensors").tensors.items() if tensor.dim() == 4}
        for which in ("baseline", "champion"))
    assert list(before.values()) == [8, 12, 16]
    assert sum(after.values()) < sum(before.values())
    told = {row[0]: row[1:3] for row in seen.rows if row[0] in before and len(row) == 8}
    assert told == {name: [str(before[name]), str(after[name])] for name in before}
    assert ["12", "output of the network"] in seen.rows


def test_a_page_opens_from_disk_and_fetches_nothing(folder: Path, seen: Seen) -> None:
    targets = [value for _, attrs in seen.tags for key, value in attrs.items()
               if key in ("src", "href", "srcset", "action", "data", "background")]
    assert targets
    assert {str(target).partition(":")[0] for target in targets
            if not str(target).startswith("#part")} == {"data"}
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in seen.tags}
    assert not re.search(r"url\(|@import", seen.page)
    anchors = {str(attrs["href"])[1:] for tag, attrs in seen.tags
               if tag == "a" and str(attrs["href"]).startswith("#")}
    assert anchors == {attrs["id"] for tag, attrs in seen.tags if tag == "section"}
    drawn = pictures(seen)
    files = [file.read_bytes() for file in (folder / "pictures").glob("*.png")]
    assert sorted(image.size for image in drawn) == sorted(
        Image.open(io.BytesIO(content)).size for content in files)
    assert len(drawn) > 8


def test_numbers_behind_a_picture_can_be_saved_from_the_page(folder: Path, seen: Seen) -> None:
    saved = {attrs["download"]: base64.b64decode(str(attrs["href"]).partition(",")[2])
             for tag, attrs in seen.tags if tag == "a" and "download" in attrs}
    for file in (folder / "pictures").glob("*.csv"):
        assert saved[file.name] == file.read_bytes()


def test_the_files_and_the_command_of_a_report_are_the_study_again(
        whole: Whole, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, study, run = seen.codes
    *_, study_file, _, run_file = command.split()
    assert command == f"python -m harness study {study_file} --config {run_file}"
    monkeypatch.chdir(tmp_path)
    Path(study_file).write_text(study)
    Path(run_file).write_text(run)
    again = _load_study(study_file, None, run_file, [], None)
    assert study_id(again) == whole.outcome.study_id
    assert again.config == whole.study.config


def test_the_report_is_in_mlflow_and_can_be_written_again(whole: Whole, folder: Path, seen: Seen,
                                                          ) -> None:
    run, = whole.machine.runs("study")
    assert run.files[REPORT] == seen.page
    run.files[REPORT] = "spoilt"
    path, told = report_study("tiny", whole.machine.place, lambda _: whole.machine.tracker)
    assert (path, told) == (folder / REPORT, [])
    assert run.files[REPORT] == path.read_text() == seen.page
    path, told = report_study("tiny", whole.machine.place, lambda _: None)
    assert path == folder / REPORT
    assert told[0].startswith(f"MLflow does not have the run of {whole.outcome.study_id}")


def test_what_the_settings_say_is_never_part_of_the_page(whole: Whole, tmp_path: Path) -> None:
    rows = tuple(replace(row, name=HOSTILE, settings={HOSTILE: HOSTILE})
                 for row in whole.outcome.rows)
    other = Versus(HOSTILE, (0.5,), 0.3, (0.6,), 0.3)
    layers = tuple(replace(layer, layer=HOSTILE) for layer in whole.outcome.layers)
    hostile = replace(whole.outcome, study=HOSTILE, study_id="s-1", question=HOSTILE, rows=rows,
                      comparisons=(other,), verdict=(HOSTILE,), notes=(HOSTILE,),
                      measure=HOSTILE, layers=layers, frozen={HOSTILE: HOSTILE},
                      environment={f"version.{HOSTILE}": HOSTILE}, weights=HOSTILE)
    folder = tmp_path / "studies" / "s-1"
    folder.mkdir(parents=True)
    for name in ("study.yaml", "config.yaml"):
        (folder / name).write_text(HOSTILE)
    seen = Seen(write(hostile, None, tmp_path).read_text())
    assert seen.words.count(HOSTILE) > 20
    assert not {"script", "img"} & {tag for tag, _ in seen.tags}
    assert not [key for _, attrs in seen.tags for key in attrs if key.startswith("on")]


def test_replicates_are_told_with_their_spread(whole: Whole, tmp_path: Path) -> None:
    """Settings run again at 0.8, 0.9 and 0.7: 0.8 on average, deviation 0.1."""
    again = (0.8, 0.9, 0.7)
    outcome = replace(whole.outcome, study_id="s-2", replicates=3, comparisons=(
        Versus("again", again, 0.3, again, 0.3),
        Versus("random", (0.5, 0.55, 0.45), 0.3, again, 0.3)))
    seen = Seen(write(outcome, None, tmp_path).read_text())
    assert ("Its settings, run again on 3 new baselines, give 80.00 % on average, standard "
            "deviation 10.00 points.") in seen.texts
    line, = [row for row in seen.rows if row[:2] == ["random", "3"]]
    assert line[2:4] == ["50.00 %", "5.00"]
    assert line[5].startswith("+30.00 ± ")


def test_a_study_without_a_champion_has_a_report_too(whole: Whole, tmp_path: Path) -> None:
    rows = tuple(row for row in whole.outcome.rows if row.role in ("baseline", "front"))
    outcome = replace(whole.outcome, study_id="s-3", rows=rows, comparisons=(), verdict=(),
                      layers=(), weights="")
    seen = Seen(write(outcome, None, tmp_path).read_text())
    assert "No network that was tried fits what was asked for" in seen.words


def test_an_outcome_of_an_earlier_version_says_what_it_did_not_keep(whole: Whole, tmp_path: Path,
                                                                   ) -> None:
    facts = whole.outcome.as_json()
    for new in ("layers", "frozen", "environment", "val_examples"):
        del facts[new]
    seen = Seen(write(Outcome.from_json({**facts, "study_id": "s-4"}), None, tmp_path).read_text())
    assert seen.words.count("earlier version, which did not keep that") == 4


def test_every_trial_stands_in_the_report_with_its_settings(whole: Whole, seen: Seen) -> None:
    for number, settings, _, _ in tiny.trials(whole.machine.ledger(whole.study)):
        line, = [row for row in seen.rows if row[0] == str(number) and len(row) > 8]
        assert line[1:1 + len(settings)] == [str(value) for value in settings.values()]


def test_a_study_that_is_not_finished_has_no_report_but_a_command(tmp_path: Path) -> None:
    machine, study = Machine(tmp_path), tiny.study()
    machine.place.ledger_of(study)
    with pytest.raises(StudyError, match=rf"{study_id(study)} is not finished: 0 of .*"
                                         rf"python -m harness study tiny --home {tmp_path}"):
        report_study("tiny", machine.place, lambda _: machine.tracker)
    with pytest.raises(StudyError, match="finished study"):
        report_study("nobody", machine.place, lambda _: machine.tracker)


def test_trials_that_lie_elsewhere_are_missed_and_told(whole: Whole, tmp_path: Path) -> None:
    source = whole.machine.home / "studies" / whole.outcome.study_id
    copied = tmp_path / "studies" / whole.outcome.study_id
    copied.mkdir(parents=True)
    (copied / "outcome.json").write_bytes((source / "outcome.json").read_bytes())
    path, told = report_study("tiny", Machine(tmp_path).place, lambda _: whole.machine.tracker)
    assert path.parent == copied
    assert len(told) == 1
    assert "--storage" in told[0]


@pytest.mark.parametrize(("system", "told"), [
    ("Linux-6.1.0-ours-7-x86_64-with-glibc2.36", "Linux-6.1.0-x86_64-with-glibc2.36"),
    ("Linux-6.1.0-x86_64-with-glibc2.36", "Linux-6.1.0-x86_64-with-glibc2.36"),
    ("macOS-14.5-arm64-arm-64bit", "macOS-14.5-arm64-arm-64bit"),
    ("2.15.0+cpu", "2.15.0+cpu"),
])
def test_a_page_for_others_does_not_say_what_a_machine_is_called(system: str, told: str) -> None:
    assert anonymous(system) == told
