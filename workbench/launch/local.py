"""Trains the runs of a study in processes of this machine, several at once.

`ready` decides what starts next from values alone; `Launcher` starts, watches and stops. Only run
directories say whether a run is done: an exit status of 0 without a result is a failure.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from workbench.launch.follow import Follow
from workbench.plan import Job, measurements_json
from workbench.provenance import cores, gpus
from workbench.records import Row
from workbench.resources import Resources
from workbench.schema import File


class State(Enum):
    """Where a job of this launch stands."""

    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"  # another runner trains it: waited for, never run twice
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"  # the run that it starts from ended without a result
    STOPPED = "stopped"  # interrupted, or never started because of an interrupt


CHECKPOINT_SECONDS = 60.0  # what a worker gets to save its state before it is killed

ENDED = {State.DONE, State.FAILED, State.BLOCKED, State.STOPPED}


class Exit:
    """What a worker's exit status means."""

    DONE = 0
    ERROR = 1
    HELD = 3
    INTERRUPTED = 130


@dataclass(frozen=True)
class Event:
    """Something to show: a job entered a state, or, with a row, trained a step."""

    job: Job
    state: State
    reason: str = ""
    row: Row | None = None


@dataclass(frozen=True)
class Slot:
    """Room for one cell: a share of the cores, or one GPU by UUID."""

    name: str
    gpu: str | None = None

    def environment(self, threads: int) -> dict[str, str]:
        """What its process adds to this one's environment."""
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        visible = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        return {**dict.fromkeys(counts, str(threads)), **visible}


def slots(resources: Resources) -> list[Slot]:
    """One slot for each GPU, or else for each share of the cores.

    Raises:
        ValueError: `cuda` is asked for and there is no GPU.
    """
    found = () if resources.device == "cpu" else gpus()
    if resources.device == "cuda" and not found:
        raise ValueError("Resources.device is 'cuda', but there is no GPU; choose auto or cpu")
    if found:
        return [Slot(name, uuid) for uuid, name in found]
    return [Slot(f"cpu {n}") for n in range(max(1, cores() // resources.threads))]


def ready(
    jobs: Sequence[Job], states: Mapping[Path, State], free: int
) -> tuple[list[Job], list[Job]]:
    """What to start now in so many free slots, in order, and what can no longer be started."""
    startable, blocked = [], []
    for job in jobs:
        if states[job.run.path] is not State.WAITING:
            continue
        source = State.DONE if job.needs is None else states[job.needs]
        if source is State.DONE:
            startable.append(job)
        elif source in ENDED:
            blocked.append(job)
    return startable[:free], blocked


Command = Callable[[Job], list[str]]


@dataclass(frozen=True)
class Worker:
    """A started process; `failure` is the time of the failure that an earlier attempt left."""

    job: Job
    slot: Slot
    process: subprocess.Popen[bytes]
    failure: int
    progress: Follow


@dataclass
class Launcher:
    """Runs jobs to their end, one process each.

    Attributes:
        jobs: each after the one that it starts from.
        resources: what each may use.
        root: the tracking folder.
        command: makes a job's command line; the worker unless told otherwise.
        poll: seconds between two looks at the processes.
    """

    jobs: Sequence[Job]
    resources: Resources
    root: Path
    command: Command | None = None
    poll: float = 0.2
    states: dict[Path, State] = field(init=False)
    stopping: bool = field(default=False, init=False)
    _signals: list[int] = field(default_factory=list, init=False)
    _workers: list[Worker] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.states = {job.run.path: State.DONE if job.done else State.WAITING for job in self.jobs}

    def run(self) -> Iterator[Event | None]:
        """Trains what is missing; yields each event, and None after every look at the processes.

        SIGINT and SIGTERM are passed on once, so that workers save a checkpoint; a second one
        kills them. Workers outlive a runner that is killed, and the next runner waits for them.
        """
        free = slots(self.resources)
        with self._catching_signals():
            try:
                while any(state not in ENDED for state in self.states.values()):
                    yield from self._pass_signals_on()
                    for worker in [w for w in self._workers if w.process.poll() is not None]:
                        self._workers.remove(worker)
                        free.append(worker.slot)
                        yield from self._progress(worker)
                        yield self._ended(worker)
                    yield from self._look_for_released()
                    yield from self._start(free)
                    for worker in self._workers:
                        yield from self._progress(worker)
                    yield None
                    if self._workers or State.HELD in self.states.values():
                        time.sleep(self.poll)
            finally:
                self._leave_no_one_behind()

    @property
    def failed(self) -> list[Job]:
        """The jobs that did not come to their end."""
        return [job for job in self.jobs if self.states[job.run.path] is not State.DONE]

    def _start(self, free: list[Slot]) -> Iterator[Event]:
        startable, blocked = ready(self.jobs, self.states, len(free))
        for job in blocked:
            source = next(j for j in self.jobs if j.run.path == job.needs)
            yield self._enter(
                job, State.BLOCKED, f"{source.name}, which it starts from, has no result"
            )
        for job in startable:
            if job.run.held:
                yield self._enter(job, State.HELD, "another process trains it; waiting for that")
                continue
            self._workers.append(self._spawn(job, free.pop(0)))
            yield self._enter(job, State.RUNNING)

    def _spawn(self, job: Job, slot: Slot) -> Worker:
        job.run.create(job.recipe, job.seed)
        make = self.command or self._worker_command
        environment = {**os.environ, **slot.environment(self.resources.threads)}
        with open(job.run.path / File.LOG, "ab") as output:
            process = subprocess.Popen(
                make(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the workers through us alone
            )
        progress = Follow(job.run.path / File.METRICS)
        return Worker(job, slot, process, _failure_stamp(job), progress)

    def _worker_command(self, job: Job) -> list[str]:
        command = [sys.executable, "-m", "workbench", "worker", str(job.run.path)]
        command += ["--root", str(self.root), "--resources", json.dumps(asdict(self.resources))]
        command += ["--measurements", measurements_json(job)]
        command += ["--keep", ",".join(map(str, job.keep))]
        return [*command, "--probes", ",".join(job.run.ask(probe) for probe in job.probes)]

    def _progress(self, worker: Worker) -> Iterator[Event]:
        rows = worker.progress.rows()
        for row in rows:
            yield Event(worker.job, State.RUNNING, row=row)

    def _ended(self, worker: Worker) -> Event:
        """Settles how a worker ended, by its exit status and what it left in its directory."""
        job, code = worker.job, worker.process.returncode
        _kill_group(worker.process.pid)  # nothing that it started may outlive it in its slot
        if job.done:
            return self._enter(job, State.DONE)
        if code == Exit.HELD:
            return self._enter(job, State.HELD, "another process trains it; waiting for that")
        if code == Exit.INTERRUPTED:
            return self._enter(job, State.STOPPED, "interrupted; the next run goes on from here")
        if code != Exit.ERROR or _failure_stamp(job) == worker.failure:
            kind = "interrupted" if self.stopping else "killed" if code < 0 else "error"
            job.run.fail(kind, _describe_exit(code, job))
        state = State.STOPPED if self.stopping else State.FAILED
        return self._enter(job, state, (job.run.failure or {}).get("reason", ""))

    def _look_for_released(self) -> Iterator[Event]:
        """Runs that another runner held and has let go: done by it, or ours to go on with."""
        for job in self.jobs:
            if self.states[job.run.path] is State.HELD and not job.run.held:
                yield self._enter(job, State.DONE if job.done else State.WAITING)

    def _enter(self, job: Job, state: State, reason: str = "") -> Event:
        self.states[job.run.path] = state
        return Event(job, state, reason)

    # --- signals ---

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.signal(n, lambda got, _: self._signals.append(got)) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_signals_on(self) -> Iterator[Event]:
        while self._signals:
            number = self._signals.pop(0)
            self._send(signal.SIGKILL if self.stopping else number)
            self.stopping = True
        if self.stopping:
            for job in self.jobs:
                if self.states[job.run.path] in (State.WAITING, State.HELD):
                    yield self._enter(job, State.STOPPED, "not started")

    def _leave_no_one_behind(self) -> None:
        """Ends workers that an error or an abandoned iterator left, after their checkpoint."""
        self._send(signal.SIGTERM)
        for worker in self._workers:
            try:
                worker.process.wait(CHECKPOINT_SECONDS)
            except subprocess.TimeoutExpired:
                _kill_group(worker.process.pid)
                worker.process.wait()

    def _send(self, number: int) -> None:
        """Signals each worker; a kill reaches its whole session."""
        for worker in self._workers:
            if worker.process.poll() is not None:
                continue
            if number == signal.SIGKILL:
                _kill_group(worker.process.pid)
            else:
                worker.process.send_signal(number)


def _failure_stamp(job: Job) -> int:
    path = job.run.path / File.FAILURE
    return path.stat().st_mtime_ns if path.exists() else 0


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _describe_exit(code: int, job: Job) -> str:
    """Why a worker that left no reason ended, as far as its exit status and its log can say."""
    log = job.run.path / File.LOG
    if code < 0:
        return f"the worker was ended by {signal.Signals(-code).name}; its output is in {log}"
    if code == Exit.DONE:
        return f"the worker ended without {', '.join(job.missing)}; its output is in {log}"
    return f"the worker exited with status {code}: {_last_line(log)}"


def _last_line(path: Path, most: int = 300) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1][:most] if lines else "it wrote nothing"
