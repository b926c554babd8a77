"""The same study with one, two and three agents: the same to the bit?

`python -m benchmarks.agents` takes as many settings of the main study as it asks for, as a fixed
list, since what a sampler suggests depends on what is finished when it is asked; and walks them
with its controls, once with each number of agents. `--profile smoke` is the short form.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from benchmarks import machine
from benchmarks.sharing import drawn, shared
from harness.checking import known_names
from harness.config import Known, Study, load_study


def fixed(name: str, profile: str | None, seed: int = 0) -> Study:
    """The study with its suggestions written down beforehand, drawn evenly."""
    study = load_study(name, profile=profile, known=Known(**known_names()))
    ladders = {key: given for key, given in study.config.space.items() if isinstance(given, list)}
    listed = drawn(ladders, study.config.trials, Random(seed))
    return replace(study, config=study.config.model_copy(update={"enqueue": listed}))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="vgg16_budget")
    parser.add_argument("--profile", help="a form that the study names, such as smoke")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    study = fixed(asked.study, asked.profile)
    walks = []
    with tempfile.TemporaryDirectory() as place:
        for count in asked.agents:
            walks.append(shared(study, Path(place) / str(count), count))
            found = walks[-1]
            print(f"{count} agents: {len(found.weights)} settings, champion's weights "
                  f"{found.champion[:16]}, {found.made_again} stages made twice", flush=True)
    equal = sum(len({walk.weights[n] for walk in walks}) == 1 for n in walks[0].weights)
    champions = {walk.champion for walk in walks}
    print(f"weights equal in {equal} of {len(walks[0].weights)} settings; "
          f"{'the same champion' if len(champions) == 1 else f'{len(champions)} champions'}")
    print(machine.line(machine.facts()))


if __name__ == "__main__":
    main()
