"""A criterion of a person's own that kills whoever asks it, as a kernel does that lacks memory."""

import os
import signal

from torch import Tensor

from harness.engine.evidence import Evidence
from harness.engine.graph import Group


def score(group: Group, evidence: Evidence) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("this process is dead")
