"""Wait for a database server that is away: a restart takes seconds, a move minutes."""

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE_S = 300.0


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
            except (StorageInternalError, DBAPIError) as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                if not _is_outage(cause) or time.monotonic() > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    return again


def _is_outage(error: BaseException | None) -> bool:
    """No server, or one that has cut the session; not what is wrong with a statement."""
    return (isinstance(error, OperationalError | InterfaceError)
            or (isinstance(error, DBAPIError) and (error.connection_invalidated
                                                  or "terminating connection" in str(error))))
