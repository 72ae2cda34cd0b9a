"""Processes that work for another one: they end with it, and how one ended is told in words."""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has Linux kill this process when its parent dies, however that does; elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """What an exit status says: `was ended by SIGKILL`, `exited with status 1`."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with status {code}"


@dataclass(frozen=True)
class Failed:
    """An error ended a process: the name of its class, and its words."""

    kind: str
    words: str

    def reraise(self, who: str, otherwise: type[Exception]) -> NoReturn:
        """Raises it here: a MemoryError where memory ran out, which is tried again with less."""
        kind = MemoryError if self.kind in ("OutOfMemoryError", "MemoryError") else otherwise
        raise kind(f"{who}: {self.kind}: {self.words}")


@contextmanager
def serving(orders: Connection) -> Iterator[None]:
    """The life of a process that takes orders: it ends when they do, or says which error ended it.

    The other end of the connection gets a `Failed`; the traceback is in the log.
    """
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        raise SystemExit(1)  # it died before this process could ask to end with it
    try:
        yield
    except EOFError:  # the other end was closed: there are no more orders
        return
    except Exception as error:
        traceback.print_exc()
        with suppress(OSError):
            orders.send(Failed(type(error).__name__, str(error)))
        raise SystemExit(1) from error
