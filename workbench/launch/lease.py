"""Who may start runs where several hosts share the run directories: one driver at a time.

The lock of a run is the kernel's, and kernels do not share locks over every file system. So the
driver of a cluster holds a lease on the whole store: a file that it writes anew every few seconds.
Another driver that finds the file watches whether it changes, and compares no clocks.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.durable import fenced, is_alive, sweep
from workbench.records import Held, read_json, write_json

NAME = ".driver.json"
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 3 * BEAT + 1  # seconds without one after which a driver on another host counts as gone


@dataclass
class Lease:
    """A claim on every run of a tracking folder.

    Attributes:
        root: the tracking folder.
        beat, patience: seconds, see above.
        lost: whether another driver took it, because this one was silent for too long.
    """

    root: Path
    beat: float = BEAT
    patience: float = PATIENCE
    lost: bool = field(default=False, init=False)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    _beats: int = field(default=0, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the store while the block runs; once it is lost, nothing durable is written.

        Raises:
            Held: another driver has it; the message says where it runs.
        """
        refuse_if_held(self.root, self.patience)
        self._write()
        time.sleep(min(0.2, self.beat))  # of two that take a dead one's place, the last one has it
        if not self._mine():
            raise Held(_sentence(self.root, _read(self.root / NAME)))
        sweep(self.root, f".{NAME}.*")
        beating = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        beating.start()
        try:
            with fenced(self._mine):
                yield
        finally:
            self._over.set()
            beating.join()
            if self._mine():
                (self.root / NAME).unlink(missing_ok=True)

    def _keep_beating(self) -> None:
        while not self._over.wait(self.beat):
            if not self._mine():
                self.lost = True
                return
            with suppress(OSError):  # a store that cannot be written now may be in time
                self._write()

    def _write(self) -> None:
        self._beats += 1
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        write_json(self.root / NAME, {**holder, "token": self._token, "beats": self._beats})

    def _mine(self) -> bool:
        return _read(self.root / NAME).get("token") == self._token


def refuse_if_held(root: Path, patience: float = PATIENCE) -> None:
    """Raises Held if a driver that lives holds the store, which is known by its next sign of life.

    Only of one on this host is it known at once that it is gone. That its number is in use says
    nothing: another process may have been given it since.
    """
    path = root / NAME
    first = _read(path)
    if not first or (first["host"] == socket.gethostname() and not is_alive(first["process"])):
        return
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        now = _read(path)
        if not now:
            return
        if now != first:
            raise Held(_sentence(root, now))
        time.sleep(min(0.5, patience / 10))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _sentence(root: Path, holder: dict[str, Any]) -> str:
    return (
        f"the driver of a cluster (process {holder['process']} on {holder['host']}) trains the "
        f"runs of {root}; wait for it, stop it, or give another folder with --root"
    )
