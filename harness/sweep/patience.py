"""Wait for a database server that is away: a restart takes seconds, a move minutes."""

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE_S = 300.0  # at work
OPENING_S = 20.0  # at the start: a restart takes less, and a wrong address should be told soon


def patient(call: Callable[P, T], patience_s: float = PATIENCE_S) -> Callable[P, T]:
    """The same call, tried again while the server is away; what it raises otherwise goes up.

    The call may have been carried out although its answer was lost: it must bear to be repeated.
    """

    @wraps(call)
    def again(*given: P.args, **more: P.kwargs) -> T:
        end, pause = time.monotonic() + patience_s, 0.1
        while True:
            try:
                return call(*given, **more)
            except Exception as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                if not _is_outage(cause) or time.monotonic() > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    return again


def _is_outage(error: BaseException | None) -> bool:
    """No server, or one that has cut the session; not what is wrong with a statement.

    By the names that all drivers share (PEP 249): while a connection is being made SQLAlchemy lets
    a driver's own errors through.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "PendingRollbackError" in kinds:
        return True  # the session was cut in the middle of a transaction, and that was not noticed
    if not kinds & {"DBAPIError", "DatabaseError", "InterfaceError"}:
        return False
    if any(words in str(error) for words in _REFUSALS):
        return False
    return (bool(kinds & {"OperationalError", "InterfaceError"})
            or bool(getattr(error, "connection_invalidated", False))
            or "terminating connection" in str(error))


# A server that is there, or an address that is wrong: waiting changes nothing.
_REFUSALS = ("authentication failed", "does not exist", "pg_hba.conf", "Access denied",
             "Unknown database", "resolve host", "translate host", "disk is full",
             "No space left")
