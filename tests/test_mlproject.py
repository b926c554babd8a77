"""`mlflow run .` as a person types it, in a clean copy of the tree; and what it stands on."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.cli import cli
from harness.tracking import MlflowTracker

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
BARE = {"PATH": "/usr/bin:/bin"}


def run(command: list[str], folder: Path, changes: Mapping[str, str],
        ) -> subprocess.CompletedProcess[str]:
    """In a shell in which no environment is activated."""
    kept = {key: value for key, value in os.environ.items()
            if not key.startswith(("MLFLOW", "HARNESS", "VIRTUAL_ENV", "PYTHON", "CONDA"))}
    return subprocess.run(command, cwd=folder, env={**kept, **changes}, capture_output=True,
                          text=True, timeout=300, check=False)


def files_of_the_tree() -> list[Path]:
    """Those that git knows; in an unpacked archive, those that `mlflow run` needs."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                            check=False)
    files = [ROOT / name for name in listed.stdout.splitlines()]
    if not files:
        files = [ROOT / "MLproject", *(file for room in ("bin", "configs", "harness", "studies")
                                       for file in (ROOT / room).rglob("*"))]
    return [file for file in files if file.is_file()]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tree, and a study that takes seconds."""
    folder = tmp_path_factory.mktemp("tree")
    for file in files_of_the_tree():
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    shutil.copy(tiny.__file__, folder)
    space = {**tiny.SPACE, "prune.percentage": [70]}  # within the budget, whichever way it goes
    tiny.write(tiny.study(trials=2, controls=["l1"], space=space), folder)
    return folder


def mlflow_run(tree: Path, path: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run([str(BIN / "mlflow"), "run", ".", "-P", "study=tiny", *words], tree,
               {"PATH": path})


def written(tree: Path, experiment: str) -> tuple[Any, list[Any]]:
    """MLflow's client of the default store, and the runs of an experiment."""
    tracker = MlflowTracker.open(f"sqlite:///{tree}/mlflow.db", experiment, tree)
    return tracker.client, tracker.client.search_runs([tracker.experiment_id])


def test_mlflow_run_works_bare_in_an_environment_that_is_not_activated(tree: Path) -> None:
    """Neither conda nor pyenv is on the path, and every parameter may be empty."""
    empty = [word for name in ("profile", "config", "storage", "home", "set")
             for word in ("-P", f"{name}=")]
    done = mlflow_run(tree, BARE["PATH"], "-P", "trials=1", *empty)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (tree / "runs" / "optuna.db").is_file()
    _, runs = written(tree, "tiny")
    assert sorted(r.data.tags["role"] for r in runs) == ["baseline", "control", "study", "trial"]
    launcher, = written(tree, "Default")[1]
    assert launcher.data.tags["role"] == "launcher"
    study = next(r for r in runs if r.data.tags["role"] == "study")
    assert launcher.data.tags["study_run"] == study.info.run_id
    assert {r.info.status for r in [launcher, *runs]} == {"FINISHED"}


def test_mlflow_run_works_with_env_manager_local_and_goes_on(tree: Path) -> None:
    """After the test above, in the same tree: one more trial."""
    done = mlflow_run(tree, f"{BIN}:{BARE['PATH']}", "--env-manager", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    client, runs = written(tree, "tiny")
    roles = [r.data.tags["role"] for r in runs]
    assert (roles.count("study"), roles.count("baseline"), roles.count("trial")) == (1, 1, 2)
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert client.get_model_version_by_alias("tiny", "champion").run_id in {
        r.info.run_id for r in runs if r.data.tags["role"] == "trial"}


# --- bin/python: the interpreter that mlflow runs in ----------------------------------------------

WHICH = f"sh '{ROOT}/bin/python' -c 'import sys; print(sys.executable)'"


def started_by_mlflow(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """As `mlflow run` does it: Python, running a program called mlflow, starts bash."""
    program = folder / "mlflow"
    program.write_text("import subprocess\n"
                       f"subprocess.run(['bash', '-c', {WHICH!r} + '; true'], check=True)\n")
    return run([str(python), str(program)], folder, BARE)


@pytest.mark.parametrize("folder", ["", "a" * 120], ids=["short", "longer than a terminal"])
def test_it_is_the_interpreter_of_mlflow(tmp_path: Path, folder: str,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Where COLUMNS is set, as in some shells, `ps` cuts lines there, into a pipe too."""
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / folder).mkdir(exist_ok=True)
    done = started_by_mlflow(Path(sys.executable), tmp_path / folder)
    assert done.stdout.strip() == sys.executable, done.stderr


def test_its_path_may_hold_spaces(tmp_path: Path) -> None:
    """A virtual environment that finds what is installed in ours, if ours is one or not."""
    place = tmp_path / "my own venv"
    venv.create(place, symlinks=True)
    names = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path))
    python = place / "bin" / "python"
    done = started_by_mlflow(python, tmp_path)
    assert done.stdout.strip() == str(python), done.stderr


def test_a_shell_that_only_speaks_of_mlflow_is_not_taken_for_it(tmp_path: Path) -> None:
    command = f"{WHICH}; : --home python-mlflow-runs"
    done = run(["bash", "-c", command], tmp_path, {"PATH": f"{BIN}:{BARE['PATH']}"})
    assert Path(done.stdout.strip()).parent == BIN, done.stderr


def test_harness_python_wins(tmp_path: Path) -> None:
    done = run(["bash", "-c", WHICH], tmp_path, BARE | {"HARNESS_PYTHON": sys.executable})
    assert done.stdout.strip() == sys.executable, done.stderr


def test_a_python_without_the_harness_is_told_how_to_get_it(tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    done = run(["bash", "-c", WHICH], tmp_path, BARE | {"HARNESS_PYTHON": str(empty)})
    assert done.returncode == 1
    assert f"harness is not installed in {empty}: run 'pip install -e .' there" in done.stderr


# --- what is written down twice must agree --------------------------------------------------------


@pytest.mark.rows("R133")
def test_conda_and_pip_ask_for_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert f"python{project['requires-python']}" in conda
    pip, = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert sorted(pip) == sorted(project["dependencies"])


@pytest.mark.rows("R133")
def test_every_dependency_is_pinned_to_a_version_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for text in (
        *project["dependencies"], *chain(*project["optional-dependencies"].values()))]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines()
             if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    assert len(versions) == len(lines)
    for requirement in asked:
        if requirement.name != project["name"]:
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement}, not {version}"


@pytest.mark.rows("R133")
def test_the_files_of_environments_have_the_names_that_the_documents_use() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "conda.yaml", ROOT / "Makefile"]
    text = "\n".join(page.read_text() for page in pages)
    named = re.findall(r"(?:install -c|env create -f) (\S+)", text)
    assert {"constraints.txt", "conda.yaml"} == set(named)
    assert all((ROOT / name).is_file() for name in named)
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    assert re.findall(r"conda activate (\S+)", text) == [conda["name"]]


def test_every_entry_point_names_a_verb_and_options_that_exist() -> None:
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert {"main", "run", "baseline", "export"} <= points.keys()
    for name, point in points.items():
        words = point["command"].removeprefix("sh bin/python -m harness ").split()
        assert words[0] == {"main": "study"}.get(name, name)
        options = {option for parameter in cli.commands[words[0]].params
                   for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
        assert {word.strip("{}") for word in words if word.startswith("{")} == set(
            point["parameters"])
