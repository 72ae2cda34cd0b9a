"""Grades where it can be stopped: a verifier in a process of its own, under a wall-clock limit.

Algebra on what a model wrote can take for ever, bring a parser down, or print a gigabyte. The
process reads texts as lines of JSON and answers each with one verdict on a pipe of its own; what it
prints goes nowhere, and its memory is limited. One that is late is killed, and the next is started.
"""

import atexit
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO

from workbench.identity import canonical, imports, restore
from workbench.problems.verifier import Verdict, Verifier

START_SECONDS = 300.0  # to import what it needs, on a busy machine
CHUNK = select.PIPE_BUF  # what a pipe that can be written takes at once without blocking
READY = b"ready\n"
WARM = (r"\boxed{x + y}", "y + x")  # the first comparison imports what all of them need


@lru_cache(maxsize=8)
def grader(verifier: Verifier) -> Callable[[str, str], Verdict]:
    """The verifier as training calls it: in a process of its own if it interprets what it reads."""
    if not verifier.interprets:
        return verifier
    isolated = Isolated(verifier)
    atexit.register(isolated.close)
    return isolated


@dataclass
class Isolated:
    """A verifier that answers every response with a `Verdict`, whatever the response does to it.

    Attributes:
        verifier: called with a response and a gold.
        seconds: wall-clock time for one response; TIMEOUT after it.
        memory: bytes that the process may use for it; ERROR beyond that, as after any crash.
    """

    verifier: Verifier
    seconds: float = 5.0
    memory: int = 4 * 2**30
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _answers: int = field(default=-1, init=False)

    def __call__(self, response: str, gold: str) -> Verdict:
        """The verdict on a response.

        Raises:
            RuntimeError: the verifier cannot be started at all.
        """
        if self._process is None:
            self._start()
        answer = self._ask(json.dumps([response, gold]).encode() + b"\n", self.seconds)
        if answer is None or not answer.endswith(b"\n"):
            self.close()
        if answer is None:
            return Verdict.TIMEOUT
        return Verdict(answer.decode().strip()) if answer.endswith(b"\n") else Verdict.ERROR

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            os.close(self._answers)
            self._process = None

    def _start(self) -> None:
        what = json.dumps([canonical(self.verifier), imports(self.verifier), self.memory])
        self._answers, theirs = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs],
        )
        os.close(theirs)
        said = self._ask(b"", START_SECONDS)
        if said != READY:
            self.close()
            why = "" if said is None else said.decode(errors="replace")
            raise RuntimeError(f"{self.verifier} cannot be started in a process of its own: {why}")

    def _ask(self, text: bytes, seconds: float) -> bytes | None:
        """Writes a line and reads the answer; None is too late, and without a line end it died."""
        assert self._process is not None and self._process.stdin is not None
        stdin, deadline, answer = self._process.stdin.fileno(), time.monotonic() + seconds, b""
        while not answer.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            wanted = [stdin] if text else []
            readable, writable, _ = select.select([self._answers], wanted, [], left)
            if readable:
                part = os.read(self._answers, CHUNK)
                answer += part
                if not part:
                    break
            elif writable:
                try:
                    text = text[os.write(stdin, text[:CHUNK]) :]
                except BrokenPipeError:
                    break
            else:
                return None
        return answer


def main(answers: IO[bytes], form: str) -> None:
    """Serves verdicts until its standard input ends; the body of the process."""
    made_of, homes, memory = json.loads(form)
    if hasattr(ctypes.CDLL(None), "prctl"):  # Linux: it must not outlive a trainer that is killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    try:
        verifier = restore(made_of, homes)
    except Exception as error:
        answers.write(f"{type(error).__name__}: {error}".encode())
        raise
    with suppress(Exception):
        verifier(*WARM)
    memory += _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    answers.write(READY)
    for line in sys.stdin.buffer:
        try:
            verdict = verifier(*json.loads(line)).value
        except Exception:  # whatever a response can make it raise, one of them
            verdict = Verdict.ERROR.value
        answers.write(f"{verdict}\n".encode())


def _address_space() -> int:
    """Bytes that the process has reserved by now, most of them for libraries; 0 if not known."""
    sizes = Path("/proc/self/statm")
    pages = int(sizes.read_text().split()[0]) if sizes.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    with open(int(sys.argv[1]), "wb", buffering=0) as pipe:
        main(pipe, sys.argv[2])
