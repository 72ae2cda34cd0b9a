"""One attempt at a run: a process in a slot, how it is ended, and why it ended."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from workbench.launch.follow import Follow
from workbench.launch.retry import Watchdog, memory_kills
from workbench.launch.room import Slot
from workbench.plan import Job
from workbench.processes import how_it_ended
from workbench.resources import Resources
from workbench.schema import Failure, File

TRACEBACK_SECONDS = 0.5  # what a process that hangs gets to write down where


class Exit:
    """What a worker's exit status means."""

    DONE = 0
    ERROR = 1
    HELD = 3
    INTERRUPTED = 130


class Process(Protocol):
    """A started worker, wherever it runs: the part of `subprocess.Popen` that a launch needs."""

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill_all(self) -> None:
        """Ends it and everything that it started, at once."""


class LocalProcess(subprocess.Popen[bytes]):
    """A worker on this machine, the leader of a session of its own."""

    def kill_all(self) -> None:
        """Ends the whole session."""
        kill_group(self.pid)


@dataclass
class Attempt:
    """A process that was started for a job.

    Attributes:
        earlier: the time of the failure that an earlier attempt left.
        ended: becomes readable when the process ends; None where the system has no such thing.
        kills: how many processes the kernel had ended for want of memory before.
        stalled: whether it was ended because it made no progress.
        said: what it was last said to be at.
    """

    job: Job
    slot: Slot
    resources: Resources
    process: Process
    earlier: int
    ended: int | None
    progress: Follow = field(init=False)
    said: str = field(default="", init=False)
    watchdog: Watchdog = field(init=False)
    kills: int = field(default_factory=memory_kills)
    stalled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.progress = Follow(self.job.run.path / File.METRICS)
        self.said = self.job.run.doing  # of an earlier attempt: no news
        self.watchdog = Watchdog(self.job.run, self.resources.patience)

    @property
    def over(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    @property
    def news(self) -> str:
        """What the process is at, if that is not what it was; empty otherwise."""
        before, self.said = self.said, self.job.run.doing
        return self.said if self.said != before else ""

    def send(self, number: int) -> None:
        """Signals the process; a kill reaches all that it started."""
        if self.over:
            return
        if number == signal.SIGKILL:
            self.process.kill_all()
        else:
            self.process.send_signal(number)

    def end_if_stalled(self) -> None:
        """Ends a process that makes no progress, with where it hangs in its log."""
        if not self.stalled and self.watchdog.stalled:
            self.stalled = True
            self.send(signal.SIGUSR1)
            time.sleep(TRACEBACK_SECONDS)
            self.send(signal.SIGKILL)

    def close(self) -> None:
        """Leaves nothing in the slot that the process started and that outlived it."""
        self.process.kill_all()
        if self.ended is not None:
            os.close(self.ended)

    def judge(self, stopping: bool) -> tuple[str, str]:
        """Why the process ended, a `Failure` and words; recorded unless it did so itself."""
        run, code = self.job.run, self._code
        told = run.failure if failure_time(self.job) != self.earlier else None
        if told is not None and code == Exit.INTERRUPTED:
            return Failure.INTERRUPTED if stopping else Failure.PREEMPTED, told["reason"]
        if told is not None and code == Exit.ERROR:
            return told["kind"], told["reason"]
        kind, reason = self._kind(stopping), _describe_exit(code, self.job)
        if kind == Failure.STALLED:
            reason = f"no progress in {self.resources.patience:.0f} s; {reason}"
        elif kind == Failure.MEMORY:
            reason = f"the kernel ended a process for want of memory; {reason}"
        with suppress(OSError):  # a full disk must not end the other cells: the reason is told
            run.fail(kind, reason)
        return kind, reason

    @property
    def _code(self) -> int:
        code = self.process.returncode
        assert code is not None, "only a process that has ended is judged"
        return code

    def _kind(self, stopping: bool) -> str:
        code = self._code
        if self.stalled:
            return Failure.STALLED
        if stopping:
            return Failure.INTERRUPTED
        if code == Exit.INTERRUPTED:
            return Failure.PREEMPTED
        if code == -signal.SIGKILL and memory_kills() > self.kills:
            return Failure.MEMORY
        return Failure.KILLED if code < 0 else Failure.ERROR


def start(
    job: Job, slot: Slot, taken: Sequence[int], command: Sequence[str], resources: Resources
) -> Attempt:
    """Starts a job's process in a slot; it inherits the slot's locks.

    Raises:
        OSError: its directory cannot be written, or there is no such command.
    """
    job.run.create(job.recipe, job.seed)
    job.run.withdraw_stop()
    earlier = failure_time(job)
    environment: Mapping[str, str] = {**os.environ, **slot.environment(resources.threads)}
    with open(job.run.path / File.LOG, "ab") as output:
        process = LocalProcess(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=taken,
            start_new_session=True,  # Ctrl-C reaches the processes through us alone
        )
    ended = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    return Attempt(job, slot, resources, process, earlier, ended)


def kill_group(leader: int) -> None:
    """Kills a process that leads a session, and all in it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def failure_time(job: Job) -> int:
    """When the failure that is recorded was, in nanoseconds; 0 if there is none."""
    path = job.run.path / File.FAILURE
    return path.stat().st_mtime_ns if path.exists() else 0


def _describe_exit(code: int, job: Job) -> str:
    """Why a worker that left no reason ended, as far as its exit status and its log can say."""
    log = job.run.path / File.LOG
    if code < 0:
        return f"the worker {how_it_ended(code)}; its output is in {log}"
    if code == Exit.DONE:
        return f"the worker ended without {', '.join(job.missing)}; its output is in {log}"
    return f"the worker {how_it_ended(code)}: {_last_line(log)}"


def _last_line(path: Path, most: int = 300) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1][:most] if lines else "it wrote nothing"
