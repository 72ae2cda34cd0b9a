"""Grades where it can be stopped: a verifier in a process of its own, under a wall-clock limit.

Algebra on what a model wrote can take for ever, bring a parser down, or print a gigabyte. The
process reads texts as lines of JSON and answers each with one verdict on a pipe of its own; what it
prints goes nowhere, and its memory is limited. One that is late is killed, and the next is started.
"""

import atexit
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO
from zlib import crc32

from workbench.identity import canonical, imports, restore
from workbench.problems.verifier import Verdict, Verifier
from workbench.processes import end_with_parent
from workbench.provenance import cores

MOST = 8  # processes of one verifier
WORTH_A_PROCESS = 16  # responses at a time: one more takes a second or two to start
LOOK = 1.0  # seconds without an answer after which whoever waits for one is told that it goes on
START_SECONDS = 300.0  # to import what it needs, on a busy machine
CHUNK = select.PIPE_BUF  # what a pipe that can be written takes at once without blocking
READY = b"ready\n"


_allowed = [MOST]  # the one number that `allow` sets


def allow(processes: int) -> None:
    """Lets verifiers have so many processes: cores that this one may use, idle while it waits."""
    _allowed[0] = processes


def verdicts(
    verifier: Verifier,
    answers: Sequence[tuple[str, str]],
    get_on: Callable[[], object] = bool,
) -> list[Verdict]:
    """The verdicts on responses with their golds, as training asks for them.

    Several at a time, in processes of their own, if the verifier interprets what it reads; `get_on`
    is then called between answers, and at least once a second, and what it raises ends the call.
    """
    if not verifier.interprets:
        return [verifier(response, gold) for response, gold in answers]
    return graders(verifier)(answers, get_on)


@lru_cache(maxsize=8)
def graders(verifier: Verifier) -> "Graders":
    """The processes of a verifier, which live as long as the one that asks."""
    found = Graders(verifier, min(MOST, cores(), *_allowed))
    atexit.register(found.close)
    return found


@dataclass
class Graders:
    """Several processes of one verifier, each with one response at a time.

    Attributes:
        verifier, seconds, memory: see `Isolated`.
        processes: how many there may be; as many start as there is work for.
    """

    verifier: Verifier
    processes: int
    seconds: float = 5.0
    memory: int = 4 * 2**30
    _all: list["Isolated"] = field(default_factory=list, init=False)

    def __call__(
        self, answers: Sequence[tuple[str, str]], get_on: Callable[[], object] = bool
    ) -> list[Verdict]:
        """The verdicts on responses with their golds; raises what `Isolated` and `get_on` do."""
        wanted = min(self.processes, -(-len(answers) // WORTH_A_PROCESS))
        while len(self._all) < wanted:
            self._all.append(Isolated(self.verifier, memory=self.memory))
        # A gold's answers go to one process, which then parses it once; one that has no more helps.
        waiting: list[deque[int]] = [deque() for _ in range(wanted)]
        for place, (_, gold) in enumerate(answers):
            waiting[crc32(gold.encode(errors="surrogatepass")) % wanted].append(place)
        try:
            found = self._grade(answers, waiting, get_on)
        except BaseException:
            self.close()  # answers that nobody waits for any more must not meet the next call
            raise
        return [found[place] for place in range(len(answers))]

    def _grade(
        self,
        answers: Sequence[tuple[str, str]],
        waiting: list[deque[int]],
        get_on: Callable[[], object],
    ) -> dict[int, Verdict]:
        """The verdicts by place; `waiting` has the places that each process begins with."""
        busy: dict[int, int] = {}  # the place of the response that each process has
        found: dict[int, Verdict] = {}
        while len(found) < len(answers):
            for number, isolated in enumerate(self._all[: len(waiting)]):
                mine = waiting[number] or max(waiting, key=len)
                if number not in busy and mine:
                    busy[number] = mine.popleft()
                    isolated.seconds = self.seconds
                    isolated.begin(*answers[busy[number]])
            exchange([self._all[number] for number in busy])
            get_on()
            for number in [number for number in busy if self._all[number].done]:
                found[busy.pop(number)] = self._all[number].end()
        return found

    def close(self) -> None:
        """Ends the processes."""
        while self._all:
            self._all.pop().close()


@dataclass(eq=False)
class Isolated:
    """A verifier that answers every response with a `Verdict`, whatever the response does to it.

    It is asked by `begin`, `exchange` until it is `done`, and `end`; or called, which is all of it.

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
    _next: bytes = field(default=b"", init=False)  # what it is asked when it has started
    _text: bytes = field(default=b"", init=False)  # what is still to be written to it
    _answer: bytes = field(default=b"", init=False)  # what it has said
    _died: bool = field(default=False, init=False)
    _deadline: float = field(default=0.0, init=False)

    def __call__(self, response: str, gold: str) -> Verdict:
        """The verdict on a response; raises what `end` does."""
        self.begin(response, gold)
        while not self.done:
            exchange([self])
        return self.end()

    def begin(self, response: str, gold: str) -> None:
        """Asks for the verdict on a response, once the process is there."""
        text = json.dumps([response, gold]).encode() + b"\n"
        if self._process is None:
            self._start()
            self._next = text
        else:
            self._ask(text, self.seconds)

    @property
    def done(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self._said or self._died or time.monotonic() >= self._deadline

    def end(self) -> Verdict:
        """The verdict; a process that is late or dead is ended, and the next ask starts another.

        Raises:
            RuntimeError: the verifier cannot be started at all.
        """
        if self._said:
            return Verdict(self._answer.decode().strip())
        self.close()
        if self._next:
            why = self._answer.decode(errors="replace")
            raise RuntimeError(f"{self.verifier} cannot be started in a process of its own: {why}")
        return Verdict.ERROR if self._died else Verdict.TIMEOUT

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            os.close(self._answers)
            self._process = None

    @property
    def _said(self) -> bool:
        return self._answer.endswith(b"\n") and not self._next

    @property
    def _stdin(self) -> int:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin.fileno()

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
        self._ask(b"", START_SECONDS)

    def _ask(self, text: bytes, seconds: float) -> None:
        self._text, self._answer, self._died = text, b"", False
        self._deadline = time.monotonic() + seconds

    def _move(self, readable: bool, writable: bool) -> None:
        """Reads some of its answer, or writes some of what it is asked."""
        if readable:
            part = os.read(self._answers, CHUNK)
            self._answer += part
            self._died = not part
            if self._next and self._answer == READY:
                text, self._next = self._next, b""
                self._ask(text, self.seconds)
        elif writable:
            try:
                self._text = self._text[os.write(self._stdin, self._text[:CHUNK]) :]
            except BrokenPipeError:
                self._died = True


def exchange(asked: Sequence[Isolated]) -> None:
    """Reads and writes what can be, once; waits for that, but not beyond a deadline or a `LOOK`."""
    left = max(0.0, min(each._deadline for each in asked) - time.monotonic())
    reading = {each._answers: each for each in asked}
    writing = {each._stdin: each for each in asked if each._text}
    readable, writable, _ = select.select(list(reading), list(writing), [], min(left, LOOK))
    for each in asked:
        each._move(each._answers in readable, each._text != b"" and each._stdin in writable)


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
