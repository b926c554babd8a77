"""What the main job must have left behind: its runs in MLflow, and a model that loads by itself."""

import sys
from pathlib import Path

import torch
from mlflow import MlflowClient

clone, exported = Path(sys.argv[1]), Path(sys.argv[2])
client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
experiment = client.get_experiment_by_name("vgg16_budget")
assert experiment is not None, "there is no experiment vgg16_budget"
runs = client.search_runs([experiment.experiment_id], max_results=1000)
roles = [run.data.tags["role"] for run in runs]
print("runs:", {role: roles.count(role) for role in sorted(set(roles))})
assert roles.count("study") == 1
assert roles.count("baseline") == 1
assert roles.count("trial") >= 3
assert roles.count("control") >= 2
assert all(run.info.status == "FINISHED" for run in runs), [r.info.status for r in runs]
trial = next(run for run in runs if run.data.tags["role"] == "trial")
history = client.get_metric_history(trial.info.run_id, "val_accuracy")
assert len(history) >= 2, "a trial has no curve"
version = client.get_model_version_by_alias("vgg16_budget", "champion")
print("champion:", version.name, "version", version.version)

model = torch.export.load(exported).module()
with torch.no_grad():
    logits = model(torch.zeros(5, 1, 32, 32))
assert logits.shape == (5, 10), logits.shape
assert "harness" not in sys.modules
print(f"{exported.name}: loads without harness, {exported.stat().st_size / 1e6:.2f} MB")
