"""Trains the runs of a study in processes of this machine, several at once.

`ready` decides what starts next from values alone, `again` what is tried again; `Launcher` starts,
watches and stops. Only run directories say whether a run is done: an exit status of 0 without a
result is a failure.
"""

import json
import logging
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from workbench.launch.attempt import Attempt, Exit, kill_group, start
from workbench.launch.lease import Lease
from workbench.launch.retry import Watchdog, again
from workbench.launch.room import Slot, give_back, slots
from workbench.plan import Job, measurements_json, merged
from workbench.records import Row
from workbench.resources import Resources
from workbench.schema import Failure

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Event:
    """Something to show: a job entered a state, trained a step (`row`), or is at another part."""

    job: Job
    state: State
    reason: str = ""
    row: Row | None = None
    doing: str = ""


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

    alone: ClassVar[bool] = False  # whether no other may start runs of the folder meanwhile

    jobs: list[Job]
    resources: Resources
    root: Path
    command: Command | None = None
    poll: float = 0.2
    states: dict[Path, State] = field(init=False)
    stopping: bool = field(default=False, init=False)
    _places: dict[Path, int] = field(default_factory=dict, init=False)  # in jobs
    _signals: list[int] = field(default_factory=list, init=False)
    _attempts: list[Attempt] = field(default_factory=list, init=False)
    _held: dict[Path, tuple[Job, Watchdog]] = field(default_factory=dict, init=False)
    _failures: Counter[Path] = field(default_factory=Counter, init=False)
    _reduced: dict[Path, Resources] = field(default_factory=dict, init=False)
    _told: bool = field(default=False, init=False)
    _free: list[Slot] = field(init=False)

    def __post_init__(self) -> None:
        given, self.jobs, self.states = self.jobs, [], {}
        self._free = self._slots()
        self.add(given)

    def _slots(self) -> list[Slot]:
        """The room that there is at first."""
        return slots(self.resources)

    def add(self, jobs: Iterable[Job]) -> None:
        """Adds jobs, before `run` or while it waits to go on; one that is there is not run twice.

        What only a later job of a run asks for is made once the run is done.
        """
        for job in jobs:
            path = job.run.path
            number = self._places.setdefault(path, len(self.jobs))
            if number < len(self.jobs):
                self.jobs[number] = job = merged(self.jobs[number], job)
            else:
                self.jobs.append(job)
            if self.states.get(path, State.DONE) in ENDED:
                self.states[path] = State.DONE if job.done else State.WAITING

    def stop(self, job: Job, reason: str) -> None:
        """Gives a job up: its worker, if it has one, saves a checkpoint at its next step."""
        if self.states[job.run.path] is State.RUNNING:
            job.run.ask_to_stop(reason)
        elif self.states[job.run.path] not in ENDED:
            self._enter(job, State.STOPPED)

    @property
    def room(self) -> int:
        """How many more jobs could start now."""
        startable, _ = ready(self.jobs, self.states, len(self.jobs))
        return len(self._free) - len(startable)

    def run(self) -> Iterator[Event | None]:
        """Trains what is missing; yields each event, and None after every look at the processes.

        SIGINT and SIGTERM are passed on once, so that workers save a checkpoint; a second one
        kills them. Workers outlive a runner that is killed, and the next runner waits for them; it
        is no concern of theirs when that one is interrupted: they go on, and another run waits.

        Raises:
            Held: a cluster's driver, or a runner on another host, trains runs of the same folder.
        """
        free, lease = self._free, Lease(Path(self.root), self.alone)
        with lease.hold(), self._catching_signals():
            try:
                while any(state not in ENDED for state in self.states.values()):
                    self._end_if_lost(lease)
                    yield from self._pass_signals_on()
                    for attempt in [each for each in self._attempts if each.over]:
                        self._attempts.remove(attempt)
                        free.append(attempt.slot)
                        yield from self._progress(attempt)
                        yield self._ended(attempt)
                    yield from self._look_for_released()
                    yield from self._start(free)
                    for attempt in self._attempts:
                        yield from self._progress(attempt)
                    self._end_the_stalled()
                    yield None
                    self._wait()
            finally:
                self._leave_no_one_behind()

    @property
    def failed(self) -> list[Job]:
        """The jobs that did not come to their end."""
        return [job for job in self.jobs if self.states[job.run.path] is not State.DONE]

    def _start(self, free: list[Slot]) -> Iterator[Event]:
        startable, blocked = ready(self.jobs, self.states, len(free))
        for job in blocked:
            assert job.needs is not None, "only what needs another run is blocked"
            source = self._job(job.needs)
            yield self._enter(
                job, State.BLOCKED, f"{source.name}, which it starts from, has no result"
            )
        for job in startable:
            if job.done:  # by another runner, meanwhile
                yield self._enter(job, State.DONE)
            elif (source := self._lost_source(job)) is not None:
                yield self._enter(source, State.WAITING, f"lacks {', '.join(source.missing)}")
            elif job.run.held:
                yield self._wait_for_holder(job)
            elif (found := self._take(free)) is not None:
                yield self._begin(job, *found)
            elif not (self._attempts or self._told):
                self._told = True
                yield self._enter(job, State.WAITING, "for room: other runs have all of it")

    def _lost_source(self, job: Job) -> Job | None:
        """The run that a job starts from, where the checkpoint that it begins with is gone."""
        start = job.recipe.start
        if job.needs is None or start is None:
            return None
        source = self._job(job.needs)
        there = source.run.checkpoint_path(start.step).exists()
        return source if start.step in source.keep and not there else None

    def _take(self, free: list[Slot]) -> tuple[Slot, list[int]] | None:
        """The first free slot that no other runner of this machine has either, with its locks."""
        for slot in free:
            taken = slot.take()
            if taken is not None:
                free.remove(slot)
                return slot, taken
        return None

    def _begin(self, job: Job, slot: Slot, taken: list[int]) -> Event:
        make = self.command or self._worker_command
        try:
            attempt = self._open(job, slot, taken, make(job))
        except OSError as error:  # a full disk, or no such command: the other cells go on
            return self._enter(job, State.FAILED, str(error))
        finally:
            give_back(taken)  # the process has inherited them
        self._attempts.append(attempt)
        return self._enter(job, State.RUNNING)

    def _open(self, job: Job, slot: Slot, taken: list[int], command: list[str]) -> Attempt:
        """Starts the job's process in its slot."""
        return start(job, slot, taken, command, self._resources(job))

    def _resources(self, job: Job) -> Resources:
        return self._reduced.get(job.run.path, self.resources)

    def _worker_command(self, job: Job) -> list[str]:
        resources = json.dumps(asdict(self._resources(job)))
        command = [sys.executable, "-m", "workbench", "worker", str(job.run.path)]
        command += ["--root", str(self.root), "--resources", resources]
        command += ["--measurements", measurements_json(job)]
        command += ["--keep", ",".join(map(str, job.keep))]
        return [*command, "--probes", ",".join(job.run.ask(probe) for probe in job.probes)]

    def _progress(self, attempt: Attempt) -> Iterator[Event]:
        with suppress(ValueError):  # a broken record: the worker will refuse it, with the line
            for row in attempt.progress.rows():
                yield Event(attempt.job, State.RUNNING, row=row)
        if news := attempt.news:
            yield Event(attempt.job, State.RUNNING, doing=news)

    def _end_the_stalled(self) -> None:
        for attempt in self._attempts:
            attempt.end_if_stalled()
        for job, watchdog in self._held.values():
            holder = job.run.holder if watchdog.stalled else None
            if holder is not None:  # whose runner died, or has still to look at it
                kill_group(holder)

    def _ended(self, attempt: Attempt) -> Event:
        """Settles how an attempt ended, by its exit status and what it left in its directory."""
        job, code = attempt.job, attempt.process.returncode
        attempt.close()
        if job.done:
            now = self._job(job.run.path)  # which may ask for more by now
            return self._enter(now, State.DONE if now.done else State.WAITING)
        if code == Exit.HELD:
            return self._wait_for_holder(job)
        asked = job.run.stop_asked if code == Exit.INTERRUPTED else None
        if asked is not None:
            return self._enter(job, State.STOPPED, asked)
        kind, reason = attempt.judge(self.stopping)
        if self.stopping:
            stopped = "interrupted; the next run goes on from here"
            return self._enter(job, State.STOPPED, stopped if code == Exit.INTERRUPTED else reason)
        return self._again(attempt, kind, reason) or self._enter(job, State.FAILED, reason)

    def _again(self, attempt: Attempt, kind: str, reason: str) -> Event | None:
        """Lets a job be started once more, if that may end better."""
        job = attempt.job
        if self._lost_source(job) is not None:  # found to be corrupt, by this attempt or another
            kind = Failure.CORRUPT
        self._failures[job.run.path] += kind != Failure.PREEMPTED
        failures = self._failures[job.run.path]
        resources = again(kind, failures, attempt.resources, self._on_gpu(attempt.slot))
        if resources is None:
            return None
        less = "" if resources == attempt.resources else " with half the memory"
        self._reduced[job.run.path] = resources
        return self._enter(job, State.WAITING, f"{kind}: {reason}; trying again{less}")

    def _on_gpu(self, slot: Slot) -> bool:
        """Whether what runs in a slot trains on a GPU."""
        return bool(slot.gpus)

    def _wait_for_holder(self, job: Job) -> Event:
        return self._enter(job, State.HELD, f"{job.run.held_by} trains it; waiting for that")

    def _look_for_released(self) -> Iterator[Event]:
        """Runs that another runner held and has let go: done by it, or ours to go on with."""
        for job, _ in list(self._held.values()):
            if not job.run.held:
                yield self._enter(job, State.DONE if job.done else State.WAITING)

    def _job(self, path: Path) -> Job:
        """The job of a run directory."""
        return self.jobs[self._places[path]]

    def _enter(self, job: Job, state: State, reason: str = "") -> Event:
        self.states[job.run.path] = state
        if state is State.HELD:
            self._held[job.run.path] = job, Watchdog(job.run, self.resources.patience)
        else:
            self._held.pop(job.run.path, None)
        return Event(job, state, reason)

    def _wait(self) -> None:
        """Sleeps until a worker ends or it is time to look again."""
        if any(state not in ENDED for state in self.states.values()):
            ends = [each.ended for each in self._attempts if each.ended is not None]
            select.select(ends, [], [], self.poll)

    def _end_if_lost(self, lease: Lease) -> None:
        """Ends what trains in a store that is another's by now, where asking would leave a file."""
        if lease.lost and not self.stopping:
            log.error("another has taken %s: this one ends what it trains", self.root)
            self.stopping = True
            self._send(signal.SIGKILL)

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
                if self.states[job.run.path] is State.WAITING:
                    yield self._enter(job, State.STOPPED, "not started")
                elif self.states[job.run.path] is State.HELD:
                    goes_on = f"{job.run.held_by} goes on with it; a signal to that one stops it"
                    yield self._enter(job, State.STOPPED, goes_on)

    def _leave_no_one_behind(self) -> None:
        """Ends attempts that an error or an abandoned iterator left, after their checkpoint."""
        self._send(signal.SIGTERM)
        for attempt in self._attempts:
            try:
                attempt.process.wait(CHECKPOINT_SECONDS)
            except subprocess.TimeoutExpired:
                attempt.send(signal.SIGKILL)
                attempt.process.wait()

    def _send(self, number: int) -> None:
        for attempt in self._attempts:
            attempt.send(number)
