"""Processes that work for another one: they end with it, and how one ended is told in words."""

import ctypes
import faulthandler
import gc
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
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8


class Killed(RuntimeError):
    """A process that the run needs was ended from outside, like any process on a busy machine."""


def end_with_parent() -> None:
    """Has Linux kill this process when its parent dies, however that does; elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def settle_memory() -> None:
    """Has glibc keep what is freed, one store of it for all threads, and oneDNN keep less.

    Else the memory of large tensors goes back to the system with each of them, and comes anew, page
    by page, with the next: 5% of a training step on a processor. oneDNN keeps a program for each of
    1,024 shapes, and some never come again: hundreds of MB. Those of the layers, filled up to round
    numbers of tokens, are fewer than 128. Where a library is another, it has no part in this.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_TOP_PAD, 2**26)
        library.mallopt(M_ARENA_MAX, 1)


@contextmanager
def importing() -> Iterator[None]:
    """Modules that are imported inside are in no look for garbage, then or later.

    They stay. But as they come Python looks through all that it has, again and again, a quarter of
    what torch and transformers take to import; and each later look at all would be as long. All
    else that is there at the end is in none either, garbage too: it is for once in a process.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def how_it_ended(code: int) -> str:
    """What an exit status says: `was ended by SIGKILL`, `exited with status 1`."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with status {code}"


@dataclass(frozen=True)
class Failed:
    """An error ended a process: the name of its class, its words, and whether it is a `Killed`."""

    kind: str
    words: str
    killed: bool

    def reraise(self, who: str, otherwise: type[Exception]) -> NoReturn:
        """Raises it here as what decides whether it is tried again: as one of three classes.

        MemoryError where memory ran out, `Killed` where a process of that one was, or `otherwise`.
        """
        kind = Killed if self.killed else otherwise
        if self.kind in ("OutOfMemoryError", "MemoryError"):
            kind = MemoryError
        raise kind(f"{who}: {self.kind}: {self.words}")


@contextmanager
def serving(orders: Connection) -> Iterator[None]:
    """The life of a process that takes orders: it ends when they do, or says which error ended it.

    The other end of the connection gets a `Failed`; the traceback is in the log. A process that
    crashes, as by a segmentation fault, can send nothing: where it was then is in the log too.
    """
    faulthandler.enable()
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
            killed = isinstance(error, Killed)
            orders.send(Failed(type(error).__name__, str(error), killed))
        raise SystemExit(1) from error
