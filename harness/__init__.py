"""Prune convolutional networks, exactly; sweep over how, with Optuna; keep everything in MLflow.

The names below are resolved on first use, so that `import harness` stays light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "prune": "harness.engine.pruner",
    "Result": "harness.engine.pruner",
    "trace": "harness.engine.tracing",
    "Graph": "harness.engine.graph",
    "Group": "harness.engine.graph",
    "Plan": "harness.engine.graph",
    "Floors": "harness.engine.floors",
    "latency_tables": "harness.engine.latency",
    "CRITERIA": "harness.engine.criteria",
    "Criterion": "harness.engine.criteria",
    "Evidence": "harness.engine.evidence",
    "Cost": "harness.engine.cost",
    "Certificate": "harness.engine.certificate",
    "Ledger": "harness.engine.ledger",
    "check_optimizer": "harness.engine.optimizer",
    "recalibrate": "harness.engine.recalibration",
    "origins": "harness.engine.lineage",
    "channel_difference": "harness.engine.lineage",
    "trajectory": "harness.trajectories",
    "Step": "harness.trajectories",
    "save_pruned": "harness.checkpoint",
    "load_pruned": "harness.checkpoint",
    "HarnessError": "harness.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
