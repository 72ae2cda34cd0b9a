"""Who may start runs of a store: the runners of one host, several at once, or one cluster's driver.

The lock of a run is the kernel's, and kernels do not share locks over every file system. So whoever
starts runs says so in the store, in a file that it writes anew every few seconds. Who finds one
that excludes it watches whether it changes, and compares no clocks; one that does not is removed,
and with it the claim of whoever wrote it.

Of two that exclude each other at most one starts runs; of two that begin at the same moment, it may
be neither. One that was silent for too long and wakes up writes nothing durable any more, and ends
what it trains. A worker that outlived its runner on another host writes nothing into its run once
that is claimed anew. What stays open is the moment between a look at a claim and the write after
it: see `durable.fenced`.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.durable import fenced, is_alive, sweep
from workbench.records import Held, read_json, write_json

log = logging.getLogger(__name__)

NAME = ".driver.json"
RUNNER = ".runner-{token}.json"
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 3 * BEAT + 1  # seconds without one after which a holder on another host counts as gone


@dataclass
class Lease:
    """A claim on every run of a tracking folder.

    Attributes:
        root: the tracking folder.
        alone: whether nobody else may have it, as for a driver; runners of one host share it.
        beat, patience: seconds, see above.
        lost: whether another took it, because this one was silent for too long.
    """

    root: Path
    alone: bool = True
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
            Held: another has it; the message says who and where.
        """
        refuse_if_held(self.root, self.alone, self.patience)
        self._write()
        try:
            self._refuse_if_late()
            for name in (NAME, RUNNER.format(token="*")):
                sweep(self.root, f".{name}.*")
            with self._beating(), fenced(self._mine):
                yield
        finally:
            if self._mine():
                self._path.unlink(missing_ok=True)

    def _refuse_if_late(self) -> None:
        """Raises Held if another came at the same moment: of two that have written, one sees it."""
        if self.alone:
            time.sleep(min(0.2, self.beat))  # of two that take a dead one's place, the last has it
        for holder in _excluding(self.root, self.alone).values():
            if holder["token"] != self._token:
                raise Held(_sentence(self.root, holder))

    @contextmanager
    def _beating(self) -> Iterator[None]:
        thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _keep_beating(self) -> None:
        while not self._over.wait(self.beat):
            try:
                if not self._mine():
                    self.lost = True
                    return
                self._write()
            except OSError as error:  # a store that does not answer now may be in time
                log.warning("%s cannot be reached, and is tried again: %s", self._path, error)

    def _write(self) -> None:
        self._beats += 1
        holder = {"host": socket.gethostname(), "process": os.getpid(), "alone": self.alone}
        point = NAME if self.alone else ".runner.json"
        write_json(self._path, {**holder, "token": self._token, "beats": self._beats}, point)

    @property
    def _path(self) -> Path:
        return self.root / (NAME if self.alone else RUNNER.format(token=self._token))

    def _mine(self) -> bool:
        return _read(self._path).get("token") == self._token


def refuse_if_held(root: Path, alone: bool, patience: float = PATIENCE) -> None:
    """Raises Held if another holds the store and lives, which is known by its next sign of life.

    Only of one on this host is it known at once that it is gone. That its number is in use says
    nothing: another process may have been given it since. Of those that are gone the files are
    removed.

    Args:
        root: the tracking folder.
        alone: whether to be asked for by a driver, which has it alone, or by a runner of this host.
        patience: seconds to wait for a sign.
    """
    waiting = _excluding(root, alone)
    for holder in waiting.values():
        log.warning("looking up to %.0f s whether it lives: %s", patience, _sentence(root, holder))
    deadline = time.monotonic() + patience
    while waiting and time.monotonic() < deadline:
        time.sleep(min(0.5, patience / 10))
        for path, before in list(waiting.items()):
            now = _read(path)
            if not now:
                del waiting[path]
            elif now != before:
                raise Held(_sentence(root, now))
    for path, before in waiting.items():
        if _read(path) == before:
            path.unlink(missing_ok=True)


def _excluding(root: Path, alone: bool) -> dict[Path, dict[str, Any]]:
    """Who holds the store and would let nobody in who wants it so, the dead of this host aside."""
    here, found = socket.gethostname(), {}
    for path in [*root.glob(NAME), *root.glob(RUNNER.format(token="*"))]:
        holder = _read(path)
        if holder and holder["host"] == here and not is_alive(holder["process"]):
            path.unlink(missing_ok=True)
        elif holder and (alone or path.name == NAME or holder["host"] != here):
            found[path] = holder
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _sentence(root: Path, holder: dict[str, Any]) -> str:
    who = "the driver of a cluster" if holder["alone"] else "a runner"
    return (
        f"{who} (process {holder['process']} on {holder['host']}) trains the runs of {root}; wait "
        "for it, stop it, or give another folder with --root"
    )
