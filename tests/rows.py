"""The rows of docs/coverage.md: what shows each of them, and whether a run of all tests did.

A row is shown by tests that carry its number, `@pytest.mark.rows("R001")`, or by a command whose
output lies in docs/records/R001.txt under a first line `$ COMMAND`. The page's sentences are
written by hand; its last column is written by `python tests/rows.py`, and checked by test_rows.py.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROWS = tuple(f"R{number:03}" for number in range(1, 142))
# Row -> what is missing. Empty when all is done; until then exactly these are shown by nothing.
OPEN: Mapping[str, str] = {}


def marked(tests: Path) -> dict[str, list[str]]:
    """Row -> the tests that carry it, as pytest names them without parameters."""
    found: dict[str, list[str]] = {}
    for file in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, function in _functions(tree, file.relative_to(tests.parent).as_posix()):
            for row in _rows_of(function):
                found.setdefault(row, []).append(name)
    return found


def _functions(tree: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{name}::{node.name}")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            yield f"{name}::{node.name}", node


def _rows_of(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.rows":
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def recorded(tests: Path) -> dict[str, str]:
    """Row -> the command whose output is recorded."""
    found = {}
    for file in sorted((tests.parent / "docs" / "records").glob("R*.txt")):
        command, _, output = file.read_text(encoding="utf-8").partition("\n")
        if not command.startswith("$ ") or not output.strip():
            raise ValueError(f"{file} must begin with '$ COMMAND', and its output must follow")
        found[file.stem] = command.removeprefix("$ ")
    return found


def with_proofs(page: str, tests: Mapping[str, list[str]], commands: Mapping[str, str],
                missing: Mapping[str, str]) -> str:
    """The page, with the last column of every row written anew."""
    def proofs(found: re.Match[str]) -> str:
        row, sentence = found.group(1, 2)
        cells = [f"`{name.removeprefix('tests/')}`" for name in tests.get(row, [])]
        if row in commands:
            cells.append(f"`$ {commands[row]}` ([recorded](records/{row}.txt))")
        if row in missing:
            cells.append(f"**open**: {missing[row]}")
        return f"| {row} | {sentence} | {'<br>'.join(cells)} |"

    return re.sub(r"^\| (R\d+) \| ([^|]*?) \|[^|]*\|$", proofs, page, flags=re.MULTILINE)


class Guard:
    """A plugin of pytest: a run of all tests fails if a row has no test that ran and passed.

    A narrow run (a file, -k, -m, --lf) or one that was cut short is left alone.
    """

    def __init__(self, tests: Path = TESTS, missing: Mapping[str, str] = OPEN) -> None:
        self._tests = tests
        self._missing = missing
        self._passed: set[str] = set()
        self.unshown: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test of many parameters is known by one name: one of them must have passed."""
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid.partition("[")[0])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.shouldstop or session.shouldfail or not _is_whole(session.config, self._tests):
            return
        if session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        commands = recorded(self._tests)
        for row, names in sorted(marked(self._tests).items()):
            if row not in {*commands, *self._missing} and not self._passed & set(names):
                self.unshown.append(f"{row} was not shown: none of {', '.join(names)} ran and "
                                    "passed")
        if self.unshown:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unshown:
            terminalreporter.write_line(line, red=True)


def _is_whole(config: pytest.Config, tests: Path) -> bool:
    asked = {(config.invocation_params.dir / argument).resolve() for argument in config.args}
    narrowing = ("keyword", "markexpr", "collectonly", "lf", "stepwise")
    return bool(asked & {tests, tests.parent}) and not any(
        getattr(config.option, option, None) for option in narrowing)


def main() -> None:
    """Write the last column of the page."""
    page = TESTS.parent / "docs" / "coverage.md"
    page.write_text(with_proofs(page.read_text(encoding="utf-8"), marked(TESTS), recorded(TESTS),
                                OPEN), encoding="utf-8")


if __name__ == "__main__":
    main()
