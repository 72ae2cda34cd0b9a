"""What `run` shows while it works: a live table of bars, or plain lines where nobody watches."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from workbench.launch import Event
from workbench.launch.local import State
from workbench.plan import Job, steps_of
from workbench.records import Row

STYLES = {State.DONE: "green", State.FAILED: "bold red", State.BLOCKED: "red", State.HELD: "yellow",
          State.WAITING: "yellow"}  # fmt: skip
WORDS = {State.RUNNING: "started", State.DONE: "finished"}
QUIET = 10.0  # seconds between two plain lines of one cell


@dataclass
class Latest:
    """The last that is known of a cell that trains."""

    job: Job
    began: float = field(default_factory=time.monotonic)
    step: int = 0
    values: Row = field(default_factory=dict)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10))
    said: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        """Takes a step's metrics; a value that a step lacks stays what it was."""
        self.step = row["step"]
        self.values |= {key: value for key, value in row.items() if value is not None}
        if row.get("time/step") is not None:
            self.seconds.append(row["time/step"])

    @property
    def text(self) -> str:
        """Reward, validation and what is left, as far as they are known."""
        parts = [
            f"{word} {self.values[key]:.3f}"
            for word, key in (("reward", "reward/mean"), ("validation", "validation/pass_at_1"))
            if key in self.values
        ]
        left = steps_of(self.job.recipe) - self.step
        if left <= 0:
            return "  ".join([*parts, "measuring"])
        if self.seconds:
            parts.append(f"{clock(left * sum(self.seconds) / len(self.seconds))} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """A duration for people: `45 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bars(console: Console) -> Progress:
    name, note = (TextColumn(f"{{task.{field}}}", markup=False) for field in _SHOWN)
    columns = (name, BarColumn(), MofNCompleteColumn(), note)
    return Progress(*columns, console=console, transient=True)


_SHOWN = ("description", "fields[note]")


@dataclass
class Display:
    """Shows the events of a launch on a console."""

    console: Console
    jobs: Sequence[Job]
    _latest: dict[str, Latest] = field(default_factory=dict, init=False)
    _bars: dict[str, TaskID] = field(default_factory=dict, init=False)
    _progress: Progress | None = field(default=None, init=False)
    _all: TaskID = field(default=TaskID(0), init=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            progress = _bars(self.console)
            name, total, done = self._overall()
            self._all = progress.add_task(name, total=total, completed=done, note="")
            progress.start()
            self._progress = progress
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _overall(self) -> tuple[str, int, int]:
        """What the first bar counts, of how many, and how many there are already."""
        return "runs", len(self.jobs), sum(job.done for job in self.jobs)

    def _counted(self, event: Event) -> bool:
        """Whether an event moves the first bar on."""
        return event.state is State.DONE

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        if event.row is not None:
            self._trained(event.job, event.row)
        elif event.doing:
            self._says(event.job, event.doing)
        else:
            self._entered(event)

    def _trained(self, job: Job, row: Row) -> None:
        latest = self._latest[job.name]
        latest.add(row)
        if self._progress is not None:
            bar = self._bars[job.name]
            self._progress.update(bar, completed=latest.step, note=latest.text)
        elif time.monotonic() - latest.said > QUIET:
            latest.said = time.monotonic()
            self._say(job, f"step {latest.step}/{steps_of(job.recipe)}  {latest.text}")

    def _says(self, job: Job, doing: str) -> None:
        if self._progress is not None:
            self._progress.update(self._bars[job.name], note=doing)
        else:
            self._say(job, doing)

    def _entered(self, event: Event) -> None:
        job = event.job
        if event.state is State.RUNNING:
            self._latest[job.name] = Latest(job)
            if self._progress is not None:
                total = steps_of(job.recipe) or None
                self._bars[job.name] = self._progress.add_task(job.name, total=total, note="")
                return
        elif self._progress is not None:
            if job.name in self._bars:
                self._progress.remove_task(self._bars.pop(job.name))
            self._progress.advance(self._all, self._counted(event))
        self._say(job, self._sentence(event), STYLES.get(event.state, ""))

    def _sentence(self, event: Event) -> str:
        word = WORDS.get(event.state, event.state.value)
        if event.state is State.DONE and event.job.name in self._latest:
            latest = self._latest[event.job.name]
            took = clock(time.monotonic() - latest.began)
            score = latest.values.get("validation/pass_at_1")
            return f"{word} in {took}" + (f"  validation {score:.3f}" if score is not None else "")
        return f"{word}: {event.reason}" if event.reason else word

    def _say(self, job: Job, sentence: str, style: str = "") -> None:
        self.console.print(Text(f"{job.name}  {sentence}", style=style))
