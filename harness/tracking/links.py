"""Where runs and saved views stand in MLflow's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def run_path(experiment_id: str, run_id: str) -> str:
    """Where a run stands in MLflow's pages, past the server's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{_WORKFLOW}"


def view_path(experiment_id: str, key: str) -> str:
    """Where a saved view stands in MLflow's pages, past the server's address."""
    return (
        f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}"
        f"&compareRunsMode=CHART&{_WORKFLOW}"
    )


# Without it a browser that is new to MLflow opens the pages for language models.
_WORKFLOW = "workflowType=machine_learning"


def view_link(port: int, experiment_id: str, key: str) -> str:
    """The link to a saved view on this machine's server."""
    return f"http://127.0.0.1:{port}/{view_path(experiment_id, key)}"
