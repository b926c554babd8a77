"""The network and the data of the main job (`vgg16_digits`), as benches measure them."""

from collections.abc import Mapping
from typing import Any

from harness.checking import known_names
from harness.config import Known, RunConfig, apply, load_run
from harness.runtime import settle

TINY = {"model.width": 0.125, "baseline.epochs": 1, "finetune.epochs": 1}


def config(size: str, given: Mapping[str, Any] | None = None) -> RunConfig:
    """With one thread, seeded, as every run is; 'tiny' is an eighth of the width."""
    settle(1)
    base = load_run("vgg16_digits", known=Known(**known_names()))
    return apply(base, {**(TINY if size == "tiny" else {}), **(given or {})})
