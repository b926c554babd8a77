"""`harness` on a disk that is full: `python full_disk.py STORE PAGES ...`, and then a command.

STORE is mlflow.db or optuna.db, whose file may have so many pages of 4096 bytes, or stages, of
which so many may be written. SQLite itself says then that the disk is full; the system, ENOSPC.
"""

import errno
import os
import sqlite3
import sys
from typing import Any

from harness.cli import main

store, limit = sys.argv[1], int(sys.argv[2])
connect, fsync = sqlite3.dbapi2.connect, os.fsync
written = 0


def limited(database: Any, *given: Any, **more: Any) -> sqlite3.Connection:
    connection = connect(database, *given, **more)
    if str(database).endswith(store):
        connection.execute(f"PRAGMA max_page_count={limit}")
    return connection


def full(file: int) -> None:
    global written
    written += 1
    if written > limit:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(file)


if store == "stages":
    os.fsync = full
else:
    sqlite3.connect = sqlite3.dbapi2.connect = limited
main(sys.argv[3:])
