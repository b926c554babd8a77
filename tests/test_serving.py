"""A registered model answers over HTTP and in pyfunc as its network does, and needs none of us."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from harness.engine.pruner import prune
from harness.tracking import MlflowTracker, save_model

ANSWERS_WITHIN_S = 180


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def outsider(folder: Path, uri: str) -> dict[str, str]:
    """The environment of a person who has MLflow and PyTorch; importing harness is an error."""
    package = folder / "not ours" / "harness"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('harness must not be needed')\n")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "PYTHONPATH": str(package.parent),
            "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextmanager
def served(model: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """What docs/serving.md says to type; the address, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager",
               "local", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "served.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log,
                                   start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while True:
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=5):
                    break
            except OSError:
                said = (folder / "served.log").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def asked(address: str, key: str, inputs: torch.Tensor) -> Any:
    body = json.dumps({key: inputs.tolist()}).encode()
    request = urllib.request.Request(f"{address}/invocations", body,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return torch.tensor(json.load(answer)["predictions"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as MLflow keeps it, and `expected.pt`: inputs, and what its network says of them."""
    folder = tmp_path_factory.mktemp("kept")
    module, inputs = tiny.net().eval(), torch.randint(0, 17, (3, 1, 8, 8)).float()
    save_model(module, inputs, folder / "net.mlflow", {})
    with torch.no_grad():
        torch.save((inputs, module(inputs)), folder / "expected.pt")
    return folder


def test_arrays_of_another_kind_or_shape_get_one_clear_error_in_pyfunc(folder: Path) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(folder / "net.mlflow"))
    inputs, expected = torch.load(folder / "expected.pt", weights_only=True)
    array = inputs.numpy()
    assert np.allclose(model.predict(array), expected, atol=1e-5)
    assert model.predict(array[:0]).shape == (0, 10)
    for given, words in ((array.astype("float64"), "float64 does not match .* float32"),
                         (array.astype("uint8"), "uint8 does not match .* float32"),
                         (array[0], r"\(1, 8, 8\) does not match .*\(-1, 1, 8, 8\)"),
                         (array[:, :, :7], r"\(3, 1, 7, 8\) does not match"),
                         (array.repeat(3, axis=1), r"\(3, 3, 8, 8\) does not match")):
        with pytest.raises(MlflowException, match=words):
            model.predict(given)


@pytest.mark.slow
def test_a_served_champion_answers_pictures_as_its_network_does(tmp_path: Path) -> None:
    module = tiny.net().eval()
    example = torch.randn(2, 1, 8, 8)
    prune(module, example, target={"filters": 0.5})
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker.open(uri, "digits", tmp_path / "home")
    run = tracker.open_run(name="trial 1", role="trial", study="s")
    model = tracker.log_model(run, module, example, name="pruned", metadata={"labels": ["a"] * 10})
    tracker.register(model, "digits", alias="champion")
    environment = outsider(tmp_path, uri)
    pictures = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = module(pictures)

    script = ("import json, sys, mlflow, numpy\n"
              "model = mlflow.pyfunc.load_model('models:/digits@champion')\n"
              "given = numpy.array(json.load(sys.stdin), dtype='float32')\n"
              "print(json.dumps([model.predict(given).tolist(), model.predict(given[:1]).tolist(),"
              " model.metadata.metadata['harness']['labels'],"
              " model.metadata.get_input_schema().inputs[0].shape]))\n")
    alone = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment,
                           input=json.dumps(pictures.tolist()), capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    many, one, labels, shape = json.loads(alone.stdout.splitlines()[-1])
    assert torch.allclose(torch.tensor(many), expected, atol=1e-5)
    assert torch.allclose(torch.tensor(one), expected[:1], atol=1e-5)
    assert (labels, shape) == (["a"] * 10, [-1, 1, 8, 8])

    with served("models:/digits@champion", tmp_path, environment) as address:
        assert torch.allclose(asked(address, "inputs", pictures), expected, atol=1e-5)
        assert torch.allclose(asked(address, "instances", pictures[:1]), expected[:1], atol=1e-5)
        whole = torch.arange(64).reshape(1, 1, 8, 8)  # as JSON has them, of no kind
        with torch.no_grad():
            expected = module(whole.float())
        assert torch.allclose(asked(address, "inputs", whole), expected, rtol=1e-4)
        assert torch.allclose(asked(address, "inputs", whole.double()), expected, rtol=1e-4)
        for shape in ((1, 3, 8, 8), (1, 8, 8), (1, 1, 8, 7), (64,)):
            with pytest.raises(urllib.request.HTTPError) as refused:
                asked(address, "inputs", torch.zeros(shape))
            with refused.value:
                assert refused.value.code == 400
                assert "does not match" in json.load(refused.value)["message"]
