"""Grades where it can be stopped: a verifier in a process of its own, with limits.

Algebra on what a model wrote can take for ever, bring a parser down, or print a gigabyte. The
process reads texts as lines of JSON and answers each with one verdict on a pipe of its own; what it
prints goes nowhere, and its memory is limited. One that is late is killed, and the next is started.
What counts is the processor time that it takes, so that a verdict is the same on a busy machine,
as long as it gets a quarter of a core; one that waits for something else is late by the clock.

A thread waits for each process, so that answers are graded while more of them are drawn.
"""

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Condition, Thread
from typing import IO
from zlib import crc32

from workbench.identity import canonical, imports, restore
from workbench.problems.verifier import Verdict, Verifier
from workbench.processes import end_with_parent
from workbench.provenance import cores

MOST = 8  # processes of one verifier
WORTH_A_PROCESS = 16  # responses that wait: one more takes a second or two to start
PATIENCE = 4  # times its processor time that a response may take by the clock
LOOK = 1.0  # seconds without an answer after which whoever waits for one is told that it goes on
START_SECONDS = 300.0  # to import what it needs, on a busy machine
CHUNK = select.PIPE_BUF  # what a pipe that can be written takes at once without blocking
READY = b"ready\n"


_allowed = [MOST]  # the one number that `allow` sets


def allow(processes: int) -> None:
    """Lets verifiers have so many processes: cores that this one may use."""
    _allowed[0] = processes


@lru_cache(maxsize=8)
def graders(verifier: Verifier) -> "Graders":
    """What training grades with: a verifier's processes, until the one that asks ends."""
    found = Graders(verifier, min(MOST, cores(), *_allowed))
    atexit.register(found.close)
    return found


@dataclass(eq=False)
class Graders:
    """Several processes of one verifier, each with one response at a time.

    A verifier that interprets nothing needs none: it answers where it is asked.

    Attributes:
        verifier, seconds, memory: see `Isolated`.
        processes: how many there may be; as many start as there is work for.
    """

    verifier: Verifier
    processes: int
    seconds: float = 5.0
    memory: int = 4 * 2**30
    # By process what it begins with; why none can be started; and the lock of it all.
    _waiting: dict["Isolated", deque["Asked"]] = field(default_factory=dict, init=False)
    _threads: list[Thread] = field(default_factory=list, init=False)
    _broken: Exception | None = field(default=None, init=False)
    _changed: Condition = field(default_factory=Condition, init=False)

    def __call__(self, answers: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdicts on responses with their golds; raises what `said` does."""
        return self.said(self.ask(*each) for each in answers)

    def ask(self, response: str, gold: str) -> "Future[Verdict]":
        """A verdict to be: it is found while whoever asks does other things.

        Raises:
            RuntimeError: the verifier could not be started for an earlier one.
        """
        asked = Asked(response, gold)
        if not self.verifier.interprets:
            asked.verdict.set_result(self.verifier(response, gold))
            return asked.verdict
        with self._changed:
            if self._broken is not None:
                raise self._broken
            there, waiting = len(self._waiting), sum(map(len, self._waiting.values()))
            if there < min(self.processes, 1 + waiting // WORTH_A_PROCESS):
                self._start()
            # Where many wait, a gold's answers are one process's, which then parses it once.
            queues = list(self._waiting.values())
            queues[crc32(gold.encode(errors="surrogatepass")) % len(queues)].append(asked)
            self._changed.notify()
        return asked.verdict

    def said(
        self, asked: Iterable["Future[Verdict]"], get_on: Callable[[], object] = bool
    ) -> list[Verdict]:
        """The verdicts that were asked for, once they are there.

        `get_on` is called once a second until then; what it raises ends them all.

        Raises:
            RuntimeError: the verifier cannot be started at all.
        """
        try:
            missing = set(asked := list(asked))
            while missing:
                get_on()
                found, missing = wait(missing, LOOK, FIRST_EXCEPTION)
                for each in found:
                    each.result()  # may raise
            return [each.result() for each in asked]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the processes, and lets go of what was asked of them."""
        with self._changed:
            for isolated, waiting in self._waiting.items():
                isolated.end()
                _give_up(waiting, CancelledError())
            threads, self._threads, self._waiting, self._broken = self._threads, [], {}, None
            self._changed.notify_all()
        for thread in threads:
            thread.join()

    def _start(self) -> None:
        isolated = Isolated(self.verifier, memory=self.memory)
        thread = Thread(target=self._work, args=[isolated], daemon=True)
        thread.start()
        self._waiting[isolated] = deque()
        self._threads.append(thread)

    def _work(self, isolated: "Isolated") -> None:
        """Has a process answer what waits for it, and then for others, until it is ended."""
        while asked := self._next(isolated):
            isolated.seconds = self.seconds
            found: Verdict | Exception
            try:
                found = isolated(asked.response, asked.gold)
            except Exception as error:  # for whoever waits for a verdict
                found = error
            with self._changed:
                if isolated.ended:
                    asked.verdict.set_exception(CancelledError())
                elif isinstance(found, Verdict):
                    asked.verdict.set_result(found)
                else:
                    self._broken = found
                    asked.verdict.set_exception(found)
                    for waiting in self._waiting.values():
                        _give_up(waiting, found)
        isolated.close()

    def _next(self, isolated: "Isolated") -> "Asked | None":
        with self._changed:
            self._changed.wait_for(lambda: isolated.ended or any(self._waiting.values()))
            if isolated.ended:
                return None
            return (self._waiting[isolated] or max(self._waiting.values(), key=len)).popleft()


@dataclass(frozen=True, eq=False)
class Asked:
    """A response with its gold, and the verdict on it, once it is there."""

    response: str
    gold: str
    verdict: "Future[Verdict]" = field(default_factory=Future)


def _give_up(waiting: deque[Asked], why: Exception) -> None:
    while waiting:
        waiting.popleft().verdict.set_exception(why)


@dataclass(eq=False)
class Isolated:
    """A verifier that answers every response with a `Verdict`, whatever the response does to it.

    Attributes:
        verifier: called with a response and a gold.
        seconds: of processor time for one response, and `PATIENCE` times as many by the clock;
            TIMEOUT after either.
        memory: bytes that the process may use for it; ERROR beyond that, as after any crash.
        ended: whether it is to answer no more.
    """

    verifier: Verifier
    seconds: float = 5.0
    memory: int = 4 * 2**30
    ended: bool = field(default=False, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _answers: int = field(default=-1, init=False)

    def __call__(self, response: str, gold: str) -> Verdict:
        """The verdict on a response; when its process is late or dies, the next call has another.

        Linux ends the process with the thread that called when it was started.

        Raises:
            RuntimeError: the verifier cannot be started at all.
        """
        process = self._process or self._start()
        text = json.dumps([response, gold, self.seconds]).encode() + b"\n"
        said, late = self._ask(process, text, PATIENCE * self.seconds)
        if said.endswith(b"\n"):
            return Verdict(said.decode().strip())
        self.close()
        late |= process.returncode == -signal.SIGPROF
        return Verdict.TIMEOUT if late else Verdict.ERROR

    def end(self) -> None:
        """Has the thread that is in a call leave it, with a verdict that means nothing.

        That thread is to call `close`.
        """
        self.ended = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            os.close(self._answers)
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        what = json.dumps([canonical(self.verifier), imports(self.verifier), self.memory])
        self._answers, theirs = os.pipe()
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs), what],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs],
            )
        except BaseException:
            os.close(self._answers)
            raise
        finally:
            os.close(theirs)
        if self.ended:  # in the meantime
            process.kill()
        said, _ = self._ask(process, b"", START_SECONDS)
        if said != READY:
            self.close()
            why = said.decode(errors="replace")
            raise RuntimeError(f"{self.verifier} cannot be started in a process of its own: {why}")
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], text: bytes, seconds: float
    ) -> tuple[bytes, bool]:
        """What it answers to a text, a line unless it dies or is late; and whether it is late."""
        assert process.stdin is not None
        asking, deadline, said = process.stdin.fileno(), time.monotonic() + seconds, b""
        while not said.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                return said, True
            readable, writable, _ = select.select([self._answers], [asking] * bool(text), [], left)
            if readable:
                part = os.read(self._answers, CHUNK)
                said += part
                if not part:
                    break
            elif writable:
                try:
                    text = text[os.write(asking, text[:CHUNK]) :]
                except BrokenPipeError:
                    break
        return said, False


def main(answers: IO[bytes], form: str) -> None:
    """Serves verdicts until its standard input ends; the body of the process."""
    made_of, homes, memory = json.loads(form)
    end_with_parent()
    try:
        verifier = restore(made_of, homes)
    except Exception as error:
        answers.write(f"{type(error).__name__}: {error}".encode())
        raise
    for response, gold in verifier.examples:
        with suppress(Exception):
            verifier(response, gold)
    memory += _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    answers.write(READY)
    for line in sys.stdin.buffer:
        response, gold, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process, whatever it does
        try:
            verdict = verifier(response, gold).value
        except Exception:  # whatever a response can make it raise, one of them
            verdict = Verdict.ERROR.value
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(f"{verdict}\n".encode())


def _address_space() -> int:
    """Bytes that the process has reserved by now, most of them for libraries; 0 if not known."""
    sizes = Path("/proc/self/statm")
    pages = int(sizes.read_text().split()[0]) if sizes.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    with open(int(sys.argv[1]), "wb", buffering=0) as pipe:
        main(pipe, sys.argv[2])
