"""What each of two processes does in tests/test_devices.py: `python tests/team.py FOLDER`.

It walks the tiny trial with the other, then one in which the two want different things; and writes
down what it saw.
"""

import json
import sys
from pathlib import Path

import torch
from tiny import run

from harness.devices import together
from harness.errors import TrainingError
from harness.experiment import Experiment
from harness.store import FolderStore, NoStore

SETTINGS = {"devices": 2, "prune__filters_per_step": 9, "prune__percentage": 45}


def main(folder: Path) -> None:
    with together(2, "cpu") as team:
        store = FolderStore(folder / f"stages-{team.rank}")
        experiment = Experiment(run(**SETTINGS), store, team=team)
        trial = experiment.trial(experiment.config)
        again = Experiment(run(**SETTINGS), store, team=team).trial(experiment.config)
        seen = {"keys": [step.stage.key for step in trial.steps],
                "reused": [stage.reused for stage in again.stages],
                "stored": len(list((folder / f"stages-{team.rank}").glob("*.safetensors"))),
                "threads": torch.get_num_threads()}
        torch.save({"tensors": [dict(step.stage.tensors) for step in trial.steps],
                    "facts": [dict(step.stage.facts) for step in trial.steps],
                    "gathered": [step.stage.gathered.tensors() for step in trial.steps]},
                   folder / f"rank-{team.rank}.pt")
        different = run(**SETTINGS | {"prune__filters_per_step": 9 + 4 * team.rank})
        try:
            Experiment(different, NoStore(), team=team).trial(different)
        except TrainingError as error:
            seen["told"] = str(error)
        (folder / f"rank-{team.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
