"""Finished studies of a home, from their files."""

import json
from pathlib import Path

from harness.errors import StudyError, unknown
from harness.sweep.outcome import Outcome


def outcomes(home: Path) -> list[Outcome]:
    """Every finished study of a home, the latest last."""
    files = sorted((home / "studies").glob("*/outcome.json"), key=lambda f: f.stat().st_mtime)
    return [_read(file) for file in files]


def outcome_of(name: str, home: Path) -> Outcome:
    """Of the finished study of this id, or of the latest one of this name. Raises StudyError."""
    found = outcomes(home)
    exact = [o for o in found if name in (o.study_id, o.study)]
    if exact:
        return exact[-1]
    known = {o.study_id for o in found} | {o.study for o in found}
    raise StudyError(unknown("finished study", name, known) + f" (looked in {home / 'studies'}; "
                     "another place: --home)")


def _read(file: Path) -> Outcome:
    try:
        return Outcome.from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{file} is broken, or of another version: {error}. Move it away.",
                         ) from error
