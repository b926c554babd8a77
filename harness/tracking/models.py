"""A network as a folder of MLflow's, which loads without our code."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tracking.failures import told

if TYPE_CHECKING:
    from mlflow.models import Model
    from torch import Tensor, nn


def save_pt2(module: nn.Module, example: Tensor, folder: Path, description: Model) -> None:
    """Write the model as MLflow's folder: a graph that loads with torch alone, any batch size."""
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Weights of a pt2 cannot be moved when it is loaded, so they are saved on the CPU.
    still = copy.deepcopy(module).cpu().eval().to(memory_format=torch.contiguous_format)
    # One example would fix the batch size at 1. What it holds goes into the files, and nobody's
    # pictures are to leave with them.
    batch = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
    if batch.is_floating_point():
        batch.normal_(generator=torch.Generator().manual_seed(0))
    _check_room(folder.parent, sum(tensor.nbytes for tensor in still.state_dict().values()))
    with torch.no_grad():
        answer = still(batch)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(batch.numpy().dtype, (-1, *batch.shape[1:]))]),
            outputs=Schema([TensorSpec(answer.numpy().dtype, (-1, *answer.shape[1:]))]),
        )
        mlflow.pytorch.save_model(
            still,
            folder,
            mlflow_model=description,
            signature=signature,
            input_example=batch.numpy(),
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
            ],
            serialization_format="pt2",
        )


_ROOM = 16 * 2**20  # bytes of a graph, an example and MLflow's own files, and some more


def _check_room(folder: Path, size: int) -> None:
    """Raises OSError: where the disk is full torch.export.save would abort the whole process."""
    if shutil.disk_usage(folder).free < size + _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def save_model(
    module: nn.Module, example: Tensor, folder: Path, metadata: Mapping[str, object]
) -> None:
    """Write a module as a folder that `mlflow.pyfunc.load_model` opens without our code.

    example, metadata: as `log_model` takes them. Raises TrackingError.
    """
    with told(f"write the model {folder.name}"):
        from mlflow.models import Model

        save_pt2(module, example, folder, Model(metadata={"harness": dict(metadata)}))
