"""Where a study is kept, and by which name."""

from dataclasses import dataclass
from pathlib import Path

from harness.config import Study, fingerprint
from harness.errors import StudyError
from harness.store import locked
from harness.sweep.claims import Claims
from harness.sweep.leases import LEASE_S
from harness.sweep.ledger import Ledger
from harness.sweep.question import DIRECTIONS
from harness.sweep.storage import default_url, open_claims, open_study, study_names


def study_id(study: Study) -> str:
    """A study is its name and the fingerprint of all that changes its results."""
    return f"{study.config.name}-{fingerprint(study)}"


@dataclass(frozen=True)
class Place:
    """Where a study is kept: its home, its storage's URL, and how long a lease lasts there."""

    home: Path
    url: str
    lease_s: float = LEASE_S

    @classmethod
    def at(cls, home: Path, url: str | None = None, lease_s: float = LEASE_S) -> "Place":
        return cls(home, url or default_url(home), lease_s)

    @property
    def locks(self) -> Path:
        return self.home / "locks"

    def ledger(self, name: str) -> Ledger:
        """The book of a study that was begun."""
        return Ledger(open_study(name, self.url, self.locks))

    def ledger_of(self, study: Study) -> Ledger:
        """The study's book; this begins it if it was not."""
        directions = DIRECTIONS[study.config.kind]
        return Ledger(open_study(study_id(study), self.url, self.locks, directions))

    def claims(self, name: str) -> Claims:
        return open_claims(name, self.url, self.locks, self.lease_s)

    def names(self) -> list[str]:
        return study_names(self.url, self.locks)

    def begun(self, study: Study) -> str:
        """The study's id. Raises StudyError if it has not been begun here."""
        name = study_id(study)
        others = self.names()
        if name not in others:
            family = [n for n in others if n.rpartition("-")[0] == study.config.name]
            known = (f" Started were {', '.join(family)}, with other settings or another profile."
                     if family else "")
            raise StudyError(f"{name} has not been started in {self.home}.{known} Start it: "
                             f"harness study {study.config.name}")
        return name

    def check_writable(self) -> None:
        """Raises StudyError."""
        try:
            with locked(self.locks / "home.lock"):
                pass
        except OSError as error:
            raise StudyError(f"{self.home} cannot be written: {error.strerror}. Choose another "
                             "folder with --home.") from error
