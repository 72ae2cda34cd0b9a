"""A stand-in for the worker: a few lines that write a run directory as the real one does."""

import sys
from pathlib import Path

from workbench.launch.local import Launcher
from workbench.plan import Job
from workbench.recipe import Data, Recipe
from workbench.records import run_of
from workbench.resources import Resources

WORKER = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from workbench.records import Held, Run, write_json

run, behaviours, other = Run(Path(sys.argv[1])), sys.argv[2].split(), Path(sys.argv[3])
attempts = run.path / "attempts"

def stop(*_):
    run.fail("interrupted", "asked to stop")
    os._exit(130)

def work():
    if run.finished:  # by another, just before this one could claim it
        return
    began = attempts.read_text().splitlines() if attempts.exists() else []
    behaviour = behaviours[min(len(began), len(behaviours) - 1)]
    with open(attempts, "a") as log:
        print(behaviour, file=log)
    if behaviour == "forgets":
        return
    if behaviour == "fails":
        run.fail("error", "out of luck")
        sys.exit(1)
    if behaviour == "preempted":
        run.fail("interrupted", "asked to stop")
        sys.exit(130)
    if behaviour in ("memory", "disk"):
        run.fail(behaviour, "too much of it")
        sys.exit(1)
    if behaviour == "breaks":
        raise RuntimeError("no record of this")
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "sleeps":
        signal.signal(signal.SIGINT, stop)
    if behaviour in ("deaf", "hangs"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR1)
    if behaviour == "hangs":
        time.sleep(60)
    run.append("metrics.jsonl", {"step": 1, "timestamp": 1, "reward/mean": 0.5})
    if behaviour in ("sleeps", "deaf"):
        time.sleep(60)
    if behaviour == "meets":  # ends only if the other one runs at the same time
        deadline = time.monotonic() + 300
        while not (other / "metrics.jsonl").exists():
            assert time.monotonic() < deadline, "the other one never ran"
            time.sleep(0.02)
    if behaviour == "slow":
        time.sleep(1)
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    run.finish({"steps": 1, "environment": {name: os.environ.get(name) for name in names}})

try:
    with run.claim():
        work()
except Held:
    sys.exit(3)
"""


class Stand:
    """Jobs with a behaviour each, and the command that behaves so."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.behaviours: dict[Path, tuple[str, Path]] = {}
        self.script = root / "stand_in.py"
        self.script.write_text(WORKER)

    def job(self, label: str, behaviour: str = "trains", needs: Job | None = None) -> Job:
        """A job that behaves so; several words are one for each attempt, the last for the rest."""
        recipe = Recipe(f"model-{label}", Data("arithmetic"))
        run = run_of(self.root, recipe, 0)
        self.behaviours[run.path] = (behaviour, self.root)
        return Job(label, recipe, 0, run, needs=needs.run.path if needs else None)

    def meet(self, one: Job, other: Job) -> None:
        self.behaviours[one.run.path] = ("meets", other.run.path)
        self.behaviours[other.run.path] = ("meets", one.run.path)

    def command(self, job: Job) -> list[str]:
        behaviour, other = self.behaviours[job.run.path]
        return [sys.executable, str(self.script), str(job.run.path), behaviour, str(other)]

    def attempts(self, job: Job) -> list[str]:
        """What its attempts did, in order."""
        return (job.run.path / "attempts").read_text().splitlines()

    def launcher(self, *jobs: Job, retries: int = 0, patience: float = 600) -> Launcher:
        resources = Resources(device="cpu", retries=retries, patience=patience)
        return Launcher(jobs, resources, self.root, self.command, poll=0.02)
