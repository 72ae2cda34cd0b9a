"""Two contestants, each in a process of its own, that take their steps in turn.

What else the machine does it then does to both, and neither finds the other's memory or threads in
its way. Used by `step.py` and `rollout.py`, which are given the same model and prompts by it, and
by `gpu.py`, which has them take their steps one after the other.
"""

import json
import multiprocessing
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from workbench import Data
from workbench.models import locate

PROMPTS, GROUP = 32, 8
MODEL, DATA = "arithmetic-1m", Data("arithmetic", train=PROMPTS)
KINDS = {  # of torch's operators, by what is in their names; the first that fits
    "attention": ("attention",),
    "matrix products": ("mm", "linear", "mkldnn"),
    "copies and casts": ("copy", "cat", "index", "gather", "clone", "fill", "zero"),
    "all other operators": ("",),
}


@dataclass(frozen=True)
class Step:
    """One step as its process saw it.

    Attributes:
        seconds: by the clock.
        processor: seconds that its threads computed, which a busy machine draws out less.
        tokens: of all responses.
        parts: seconds of its parts; by kind of operator where it was profiled.
        allocated: the most bytes of a GPU that its process ever had; 0 without one.
    """

    seconds: float
    processor: float
    tokens: int
    parts: dict[str, float]
    allocated: int

    @property
    def per_token(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class Turns:
    """A contestant's end: takes a step when it is told to, and says how long that took."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def wait(self) -> None:
        """Waits until the next step is due, and starts the clock; ends the process if none is."""
        order = self.connection.recv()
        if order == "end":
            sys.exit()
        self.profiler = torch.profiler.profile() if order == "profile" else None
        if self.profiler:
            self.profiler.start()
        self.began, self.before = time.perf_counter(), time.process_time()

    def done(self, tokens: int, parts: dict[str, float]) -> None:
        """Stops the clock and reports."""
        allocated = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            allocated = torch.cuda.max_memory_allocated()
        seconds, processor = time.perf_counter() - self.began, time.process_time() - self.before
        if self.profiler:
            self.profiler.stop()
            parts = _kinds(self.profiler)
        self.connection.send(Step(seconds, processor, tokens, parts, allocated))


def _kinds(profiler: Any) -> dict[str, float]:
    """Seconds in torch's operators, by kind; the rest of a step is Python and what is outside."""
    seconds: Counter[str] = Counter()
    for each in profiler.key_averages():
        if each.key.startswith(("aten::", "mkldnn", "autograd")):
            kind = next(k for k, names in KINDS.items() if any(n in each.key for n in names))
            seconds[kind] += each.self_cpu_time_total / 1e6
    return {kind: seconds[kind] for kind in KINDS}


class Side:
    """A contestant's process, as the one that compares sees it."""

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=body, args=(Turns(other), *arguments), daemon=True)
        self.process.start()
        other.close()

    def take(self, order: str = "step") -> Step:
        """Has it take one step: `profile` slows it down and says what operators take."""
        self.connection.send(order)
        return self.connection.recv()

    @property
    def peak(self) -> float:
        """The most megabytes it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = (line.split()[1] for line in status.splitlines() if "VmHWM" in line)
        return int(kilobytes) * 1024 / 1e6

    def end(self) -> None:
        """Has it end."""
        self.connection.send("end")
        self.process.join()


def model_in(folder: Path, ends: bool) -> str:
    """A copy of the model; where no response is to end, with a token for end that it never says."""
    copy = folder / MODEL
    shutil.copytree(locate(MODEL), copy)
    if not ends:
        for name, change in (
            ("generation_config.json", {"eos_token_id": 0}),
            ("tokenizer_config.json", {"eos_token": "<pad>"}),
        ):
            settings = json.loads((copy / name).read_text())
            (copy / name).write_text(json.dumps(settings | change))
    return str(copy)


def median(steps: Sequence[Step], field: str = "seconds") -> float:
    """Of one field of the steps."""
    return statistics.median(getattr(step, field) for step in steps)


def ratio(ours: Sequence[Step], theirs: Sequence[Step], field: str = "seconds") -> float:
    """How many times ours theirs takes: the median over steps that were taken side by side."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(getattr(b, field) / getattr(a, field) for a, b in pairs)


def shares(parts: dict[str, float], whole: float) -> str:
    """Milliseconds of each part and its share; what no part has is `the rest`."""
    parts = parts | {"the rest": whole - sum(parts.values())}
    return ", ".join(f"{k} {1000 * v:.0f} ms ({v / whole:.0%})" for k, v in parts.items())
