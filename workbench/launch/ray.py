"""Trains the runs of a study on an existing Ray cluster; the only file that imports ray.

Ray places each worker by its processors and GPUs and starts it again when its node is lost; the
worker is the same command as on one machine, and goes on from the run's checkpoint. All nodes see
the tracking folder under the same path, and have this package installed.
"""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError

from workbench.launch.attempt import Attempt, failure_time
from workbench.launch.local import Launcher
from workbench.launch.room import Slot
from workbench.plan import Job
from workbench.processes import end_with_parent
from workbench.resources import Resources
from workbench.schema import File

log = logging.getLogger(__name__)

RETRIES = 20  # of one worker whose node was lost; what the worker itself says is never retried
LOST = "the node was lost more often than a worker is started again"


def connect() -> None:
    """Joins the cluster at RAY_ADDRESS, or the one that this machine belongs to.

    Raises:
        ValueError: there is none.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {address}; start one with `ray start --head`, or set "
            "RAY_ADDRESS"
        ) from error


def needs(resources: Resources) -> dict[str, float]:
    """What Ray reserves for one worker: GPUs where the cluster has any and the study may use them.

    Raises:
        ValueError: the study wants a GPU and no node has one.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if resources.device == "cuda" and not gpus:
        raise ValueError("Resources.device is 'cuda', but no node of the Ray cluster has a GPU")
    wanted = resources.gpus if gpus and resources.device != "cpu" else 0
    return {"num_cpus": resources.threads * resources.processes, "num_gpus": wanted}


def room(resources: Resources) -> list[Slot]:
    """One slot for each worker that the cluster has place for."""
    reserved, there = needs(resources), ray.cluster_resources()
    counts = [there.get("CPU", 0) // reserved["num_cpus"]]
    counts += [there["GPU"] // reserved["num_gpus"]] if reserved["num_gpus"] else []
    return [Slot(f"ray {n}") for n in range(max(1, int(min(counts))))]


@ray.remote
def _work(command: list[str], environment: dict[str, str], output: str) -> int:
    """Runs one worker on a node, ends whatever it leaves behind, and returns its exit status."""
    with open(output, "ab") as handle:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],  # each node has its own Python
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=end_with_parent,  # a lost node must not go on training
        )
    code = process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return code


@dataclass
class RayProcess:
    """A worker somewhere in the cluster, as the launcher sees a process."""

    job: Job
    reference: "ray.ObjectRef[int]"
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, once it has one."""
        return self._settled(0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            TimeoutExpired: it goes on after so many seconds.
        """
        code = self._settled(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a worker on Ray", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Asks it to stop; no signal goes from node to node, so it is asked by a file.

        One that cannot be asked is ended, and goes on from its checkpoint.
        """
        if number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.job.run.ask_to_stop(f"{signal.Signals(number).name} to the driver")
            except OSError as error:  # a full disk, or another driver's store by now
                log.warning("%s cannot be asked to stop: %s", self.job.name, error)
                self.kill_all()

    def kill_all(self) -> None:
        """Ends it at once, wherever it is."""
        if self.returncode is None:
            ray.cancel(self.reference, force=True)

    def _settled(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            done, _ = ray.wait([self.reference], timeout=timeout)
            if done:
                self.returncode = self._result()
        return self.returncode

    def _result(self) -> int:
        try:
            return ray.get(self.reference)
        except RayError as error:
            log.warning("%s: %s", self.job.name, error)
            return -signal.SIGKILL


@dataclass
class RayLauncher(Launcher):
    """Runs jobs to their end on a Ray cluster; the store is this driver's alone meanwhile."""

    alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        connect()
        super().__post_init__()

    def _slots(self) -> list[Slot]:
        return room(self.resources)

    def _on_gpu(self, slot: Slot) -> bool:
        return needs(self.resources)["num_gpus"] > 0  # which of them, Ray says to the worker alone

    def _open(self, job: Job, slot: Slot, taken: list[int], command: list[str]) -> Attempt:
        job.run.create(job.recipe, job.seed)
        job.run.withdraw_stop()
        resources = self._resources(job)
        environment = slot.environment(resources.threads)
        for name in ("PYTHONPATH", "CUDA_DEVICE_ORDER"):
            environment |= {name: os.environ[name]} if name in os.environ else {}
        task = _work.options(max_retries=RETRIES, **needs(resources))  # type: ignore[attr-defined]
        reference = task.remote(command, environment, str(job.run.path / File.LOG))
        return Attempt(job, slot, resources, RayProcess(job, reference), failure_time(job), None)
