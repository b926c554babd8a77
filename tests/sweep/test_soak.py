"""Random faults, as many as one likes: `SOAK=200 pytest -s tests/sweep/test_soak.py` says what was
lost. Every trial ends once, every run has its right end, every result is that of a quiet
study."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from harness.config import Study
from harness.sweep.ledger import MOST_TRIES
from harness.sweep.outcome import Outcome
from harness.sweep.place import study_id
from sweep.desk import Desk

FAULTS = int(os.environ.get("SOAK", "8"))
IN_ONE_STUDY = 12
AGENTS = 2


class Havoc:
    """Does something to a study at work, and counts what it did."""

    def __init__(self, desk: Desk, random: Random) -> None:
        self.desk, self.random, self.done = desk, random, Counter[str]()
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        return self.desk.start("study", "tiny", "--agents", str(AGENTS), quiet=True)

    def begin_again(self) -> None:
        """As a person does whose command has ended before the study has."""
        if self.process.poll() is not None:
            self.process = self.start()

    def is_finished(self) -> bool:
        with suppress(Exception):  # the store may not be there yet
            return self.desk.place.ledger(study_id(self.desk.study)).get("outcome") is not None
        return False

    def disturb(self) -> bool:
        """One fault. False if there was nothing to disturb."""
        name = self.random.choice(list(self.faults))
        if not self.faults[name]():
            return False
        self.done[name] += 1
        return True

    @property
    def faults(self) -> dict[str, Callable[[], bool]]:
        return {"kill -9 of an agent": lambda: self.to_agent(signal.SIGKILL),
                "SIGTERM to an agent": lambda: self.to_agent(signal.SIGTERM),
                "an agent stopped for a while": self.stop_for_a_while,
                "kill -9 of the supervisor": self.kill_supervisor,
                "SIGTERM to the supervisor": self.end_supervisor,
                "a stage with a wrong byte": self.spoil_stage,
                "a stage cut off": self.cut_stage,
                "a stage removed": self.remove_stage}

    def victim(self) -> int | None:
        """An agent whose trial has not died so often that one more death would be its last."""
        holders = self.desk.place.claims(study_id(self.desk.study)).holders()
        tries = {f"trial-{t.number}": t.user_attrs.get("tries", 0)
                 for t in self.desk.place.ledger(study_id(self.desk.study)).trials()}
        pids = [h.pid for claim, h in holders.items() if claim.startswith("agent-")]
        spared = {h.pid for claim, h in holders.items() if tries.get(claim, 0) >= MOST_TRIES - 1}
        left = [pid for pid in pids if pid not in spared]
        return self.random.choice(left) if left else None

    def to_agent(self, number: int) -> bool:
        pid = self.victim()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def stop_for_a_while(self) -> bool:
        pid = self.victim()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.random.uniform(0.5, 3))
            os.kill(pid, signal.SIGCONT)
        return True

    def kill_supervisor(self) -> bool:
        return self.end(signal.SIGKILL)

    def end_supervisor(self) -> bool:
        return self.end(signal.SIGTERM)

    def end(self, number: int) -> bool:
        if self.victim() is None:
            return False
        self.process.send_signal(number)
        self.process.wait()
        return True

    def spoil_stage(self) -> bool:
        path = self.some_stage()
        if path is None:
            return False
        with suppress(FileNotFoundError), path.open("r+b") as file:
            place = self.random.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 0xFF]))
        return True

    def cut_stage(self) -> bool:
        path = self.some_stage()
        if path is None:
            return False
        with suppress(FileNotFoundError):
            os.truncate(path, self.random.randrange(path.stat().st_size))
        return True

    def remove_stage(self) -> bool:
        path = self.some_stage()
        if path is None:
            return False
        path.unlink(missing_ok=True)
        return True

    def some_stage(self) -> Path | None:
        stages = sorted((self.desk.folder / "runs" / "stages").glob("[!.]*.safetensors"))
        return self.random.choice(stages) if stages else None


def test_no_fault_loses_anything(study: Study, alone: Outcome, tmp_path: Path) -> None:
    random, done, found, studies = Random(0), Counter[str](), Counter[str](), 0
    while done.total() < FAULTS:
        (tmp_path / str(studies)).mkdir()
        havoc = Havoc(Desk(tmp_path / str(studies), study), random)
        wanted = min(FAULTS - done.total(), IN_ONE_STUDY)
        end = time.monotonic() + 600
        while not havoc.is_finished() or havoc.process.poll() is None:
            assert time.monotonic() < end, "the study does not end"
            havoc.begin_again()
            time.sleep(random.uniform(0.2, 2))
            if havoc.done.total() < wanted and not havoc.is_finished():
                havoc.disturb()
        found += havoc.desk.check(alone)
        studies += 1
        done += havoc.done
        print(f"study {studies}: {havoc.done.total()} faults, nothing lost", flush=True)
    print(f"\n{done.total()} faults in {studies} studies of {len(alone.rows)} networks:")
    print(table(done))
    print("found at the end:")
    print(table(found))
    print("lost: nothing")


def table(counts: Counter[str]) -> str:
    return "\n".join(f"{count:6d}  {what}" for what, count in sorted(counts.items()))
