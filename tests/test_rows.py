"""docs/coverage.md has every row, each with its proof; a run that leaves one out fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rows import OPEN, ROWS, TESTS, marked, recorded, with_proofs

PAGE = (TESTS.parent / "docs" / "coverage.md").read_text(encoding="utf-8")


def test_every_row_stands_on_the_page_once_and_in_order() -> None:
    assert tuple(re.findall(r"^\| (R\d+) \|", PAGE, re.MULTILINE)) == ROWS


def test_every_row_says_in_a_sentence_what_our_software_does() -> None:
    sentences = dict(re.findall(r"^\| (R\d+) \| ([^|]*?) \|[^|]*\|$", PAGE, re.MULTILINE))
    assert tuple(sentences) == ROWS  # none has a cell too many
    for row, sentence in sentences.items():
        assert len(sentence.split()) >= 6, row
        assert sentence.endswith("."), row
    assert len(set(sentences.values())) == len(ROWS)


def test_what_shows_a_row_stands_beside_it() -> None:
    """After marking a test: `python tests/rows.py` writes the column."""
    assert with_proofs(PAGE, marked(TESTS), recorded(TESTS), OPEN) == PAGE


def test_exactly_the_open_rows_are_shown_by_nothing() -> None:
    shown = {*marked(TESTS), *recorded(TESTS)}
    assert shown <= set(ROWS), "a test or a record is of a row that there is not"
    assert set(ROWS) - shown == set(OPEN), "OPEN in tests/rows.py must be these rows"


def test_no_mark_is_put_where_it_is_not_read() -> None:
    """On a test itself; one on a class or among parameters would claim more than is known."""
    written = sum(len(re.findall(r"\bmark\.rows\(", file.read_text(encoding="utf-8")))
                  for file in TESTS.rglob("test_*.py") if file != Path(__file__))
    read = [name for names in marked(TESTS).values() for name in names]
    assert written == len(set(read)) > 0


def test_a_record_without_its_command_or_output_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "docs" / "records" / "R001.txt"
    file.parent.mkdir(parents=True)
    for text in ("$ harness check\n", "harness check\nall good\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"R001.txt must begin with '\$ COMMAND'"):
            recorded(tmp_path / "tests")
    file.write_text("$ harness check\nall good\n")
    assert recorded(tmp_path / "tests") == {"R001": "harness check"}


# --- the guard, in a project of its own -----------------------------------------------------------


CONFTEST = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from rows import Guard
def pytest_configure(config):
    config.addinivalue_line("markers", "rows: rows")
    config.pluginmanager.register(Guard(Path(__file__).parent, {missing!r}))
"""
SUITE = """
import pytest
@pytest.mark.rows("R001", "R002")
@pytest.mark.parametrize("n", [1, 2])
def test_one(n): {one}
class TestMore:
    @pytest.mark.rows("R002")
    def test_two(self): {two}
def test_none(): pass
"""


def pytest_run(folder: Path, *words: str, one: str = "pass", two: str = "pass",
               missing: tuple[str, ...] = ()) -> tuple[int, str]:
    """(exit code, output) of a run in a project whose tests carry R001 and R002."""
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tests / "conftest.py").write_text(CONFTEST.format(
        tests=str(TESTS), missing=dict.fromkeys(missing, "much")))
    (tests / "test_it.py").write_text(SUITE.format(one=one, two=two))
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
                          cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout


def test_a_run_in_which_all_rows_were_shown_passes(tmp_path: Path) -> None:
    code, out = pytest_run(tmp_path)
    assert code == 0
    assert "not shown" not in out


def test_a_run_whose_tests_of_a_row_were_skipped_or_left_out_fails(tmp_path: Path) -> None:
    skip = "pytest.skip('no card')"
    code, out = pytest_run(tmp_path, one=skip)
    assert code == 1
    assert "R001 was not shown: none of tests/test_it.py::test_one ran and passed" in out
    assert "R002" not in out  # the other test of it passed
    assert pytest_run(tmp_path, "--deselect", "tests/test_it.py::test_one")[0] == 1
    code, out = pytest_run(tmp_path, one="assert n == 3", two=skip)
    assert code == 1
    assert "R002 was not shown" in out
    # What is open, or one of the parameters, is enough to go on.
    assert pytest_run(tmp_path, one=skip, missing=("R001",))[0] == 0
    assert pytest_run(tmp_path, one="n == 1 or pytest.skip('2')")[0] == 0


def test_of_several_processes_the_one_that_starts_them_judges(tmp_path: Path) -> None:
    """Each row is shown by one of the two; a row that none shows is told once."""
    code, out = pytest_run(tmp_path, "-n", "2")
    assert (code, "not shown" in out) == (0, False)
    code, out = pytest_run(tmp_path, "-n", "2", one="pytest.skip('no card')")
    assert code == 1
    assert out.count("R001 was not shown") == 1


@pytest.mark.parametrize("words", [
    ("tests/test_it.py",), ("tests", "-k", "none or two"), ("-m", "not rows"), ("--collect-only",)])
def test_a_narrow_run_is_left_alone(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out = pytest_run(tmp_path, *words, one="pytest.skip('no card')")
    assert code == 0
    assert "not shown" not in out
