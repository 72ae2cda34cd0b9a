"""What follows an attempt that ended without a result, and how one that hangs is found out."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from workbench.records import Run
from workbench.resources import Resources
from workbench.schema import Failure


def again(kind: str, attempts: int, resources: Resources, on_gpu: bool) -> Resources | None:
    """What the next attempt may use; None where another one would end as this one did.

    Args:
        kind: why the attempt ended, a `Failure`.
        attempts: how many have ended so, preemptions aside.
        resources: what it had.
        on_gpu: whether it trained on a GPU.
    """
    if kind == Failure.PREEMPTED:
        return resources
    if attempts > resources.retries:
        return None
    if kind == Failure.MEMORY:
        return resources.halved(on_gpu)
    return resources if kind in (Failure.KILLED, Failure.CORRUPT, Failure.STALLED) else None


@dataclass
class Watchdog:
    """Says when a run has shown no sign of progress for longer than `patience` seconds."""

    run: Run
    patience: float
    _seen: object = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)

    @property
    def stalled(self) -> bool:
        """Whether the run's pulse has been the same for too long; by a clock that never jumps."""
        now, seen = time.monotonic(), self.run.pulse
        if self._since == 0.0 or seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since > self.patience


def memory_kills() -> int:
    """Processes that the kernel ended for want of memory since it started; 0 where it won't say."""
    counters = Path("/proc/vmstat")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
