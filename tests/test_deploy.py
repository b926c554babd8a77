"""The files that start agents elsewhere, checked as their own tools check them."""

import copy
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import main

DEPLOY = Path(__file__).parents[1] / "deploy"
OLDEST, NEWEST = "1.28", "1.35"  # versions of Kubernetes whose schemas the validator carries


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())


@pytest.fixture(scope="module")
def validator() -> Any:
    return pytest.importorskip("kubernetes_validate", reason="pip install '.[test]' has it")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_key_of_the_manifest(
        validator: Any, manifest: dict[str, Any], version: str) -> None:
    assert manifest["kind"] == "Job"
    assert validator.validate(manifest, version, strict=True) == version


@pytest.mark.parametrize(("key", "value"), [
    ("comand", ["python"]), ("args", "--storage x"), ("volumeMounts", [{"name": "shared"}])])
def test_a_wrong_manifest_would_be_noticed(
        validator: Any, manifest: dict[str, Any], key: str, value: object) -> None:
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["template"]["spec"]["containers"][0][key] = value
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, NEWEST, strict=True)


def words_of_the_slurm_script() -> list[str]:
    last = (DEPLOY / "slurm.sbatch").read_text().strip().splitlines()[-1]
    return last.split()


@pytest.mark.parametrize("where", ["kubernetes", "slurm"])
def test_what_they_start_is_a_command_that_there_is(
        where: str, manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    words = ([*container["command"], *container["args"]] if where == "kubernetes"
             else words_of_the_slurm_script()[1:])
    assert words[:3] == ["python", "-m", "harness"]
    with pytest.raises(SystemExit) as left:
        main([*(word for word in words[3:] if not word.startswith(('"$', "$("))), "x", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words[3:] if word.startswith("--"))


def test_bash_reads_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sbatch")], check=True)


def test_shellcheck_has_nothing_to_say_about_the_slurm_script() -> None:
    program = shutil.which("shellcheck", path=os.pathsep.join(
        [sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if program is None:
        pytest.skip("no shellcheck here: pip install '.[test]' has it")
    done = subprocess.run([program, DEPLOY / "slurm.sbatch"], text=True, capture_output=True,
                          check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_slurm_script_says_what_it_lacks(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(DEPLOY / "slurm.sbatch")], text=True, capture_output=True,
                          check=False, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0
    assert "STORAGE: postgresql+psycopg://USER:PASSWORD@HOST/studies" in done.stderr
