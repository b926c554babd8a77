"""What somebody else's program does with an exported file: load it, and put pictures through it.

Run as a program of its own (`python -I reader.py`), which asserts that nothing of ours was loaded;
only a `state` file needs us. It imports nothing of ours at its head, and of the rest what it needs.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
BATCH = 32


def answered(run: Run, pictures: npt.NDArray[np.float32], compared: int,
             ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]:
    """Outputs of the first `compared` pictures, and every picture's class: (N,), or (N, H, W).

    The first picture goes alone, then batches of 32 and what is left: three batch sizes.
    """
    outputs, answers = [], []
    start, size = 0, 1
    while start < len(pictures):
        found = run(np.array(pictures[start:start + size]))  # a copy: torch wants to own it
        if start < compared:
            outputs.append(found[:compared - start])
        answers.append(found.argmax(1).astype(np.int16))
        start, size = start + size, BATCH
    return np.concatenate(outputs), np.concatenate(answers)


def _pt2(asked: Mapping[str, Any]) -> Run:
    import torch

    torch.set_num_threads(asked["threads"])
    module = torch.export.load(asked["file"]).module()
    return of_module(module)


def _onnx(asked: Mapping[str, Any]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = asked["threads"]
    session = onnxruntime.InferenceSession(asked["file"], options,
                                           providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    return lambda batch: session.run(None, {given: batch})[0]


def _mlflow(asked: Mapping[str, Any]) -> Run:
    import mlflow.pyfunc
    import torch

    torch.set_num_threads(asked["threads"])
    model = mlflow.pyfunc.load_model(asked["file"])
    return lambda batch: model.predict(batch)


def _state(asked: Mapping[str, Any]) -> Run:
    sys.path[:0] = asked["path"]
    import torch

    from harness.checkpoint import load_pruned, read_checkpoint
    from harness.models import build

    torch.set_num_threads(asked["threads"])
    whole = build(**read_checkpoint(asked["file"]).metadata["model"])
    return of_module(load_pruned(whole, asked["file"]).eval())


def of_module(module: Any) -> Run:
    import torch

    def run(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(batch)).numpy()  # type: ignore[no-any-return]

    return run


_LOADERS = {"pt2": _pt2, "onnx": _onnx, "mlflow": _mlflow, "state": _state}


def main() -> None:
    asked = json.loads(sys.argv[1])
    run = _LOADERS[asked["format"]](asked)
    pictures = np.load(asked["pictures"], mmap_mode="r")
    outputs, answers = answered(run, pictures, asked["compared"])
    np.save(asked["outputs"], outputs)
    np.save(asked["answers"], answers)
    ours = [name for name in sys.modules if name.partition(".")[0] == "harness"]
    if ours and asked["format"] != "state":
        sys.exit(f"it needs {ours[0]} to be loaded")


if __name__ == "__main__":
    main()
