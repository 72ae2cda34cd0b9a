"""Room for cells on this machine: GPUs by UUID and shares of the cores, each for one at a time.

A slot is a locked file that the cell's process inherits, so that no two studies share one, and a
cell that outlives its runner keeps its own. The kernel frees it the moment that process dies.
"""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workbench.durable import make_folder
from workbench.provenance import cores, gpus
from workbench.resources import NOT_SPREAD, Lacking, Resources

FOLDER = "WORKBENCH_SLOTS"  # environment: where the locks lie, unless in the folder for temporaries


@dataclass(frozen=True)
class Slot:
    """Room for one cell: a share of the cores, and GPUs by UUID where there are any."""

    name: str
    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()

    @property
    def locks(self) -> list[str]:
        """What nothing else may hold."""
        return [f"gpu-{uuid}" for uuid in self.gpus] or [f"core-{n}" for n in self.cores]

    def environment(self, threads: int) -> dict[str, str]:
        """What its process adds to this one's environment."""
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        return {**dict.fromkeys(counts, str(threads)), **visible}

    def take(self) -> list[int] | None:
        """Locks it and returns the files to hand to the cell's process; None: it is in use."""
        taken: list[int] = []
        for name in self.locks:
            descriptor = _lock(name)
            if descriptor is None:
                give_back(taken)
                return None
            taken.append(descriptor)
        return taken


def give_back(taken: Sequence[int]) -> None:
    """Closes this process's hold on a slot; a process that inherited it keeps it."""
    for descriptor in taken:
        os.close(descriptor)


def slots(resources: Resources) -> list[Slot]:
    """One slot for each set of GPUs, or else for each share of the cores.

    Raises:
        Lacking: more GPUs are asked for than there are, or an engine over several without any.
    """
    found = () if resources.device == "cpu" else gpus()
    if resources.device == "cuda" and not found:
        raise Lacking("Resources.device is 'cuda', but there is no GPU; choose auto or cpu")
    if found and resources.gpus > len(found):
        raise Lacking(
            f"Resources.gpus is {resources.gpus}, but there are {len(found)}; "
            f"use at most {len(found)}"
        )
    if found:
        sets = zip(*[iter(found)] * resources.gpus, strict=False)  # what is left over stays idle
        return [Slot(_names(each), tuple(uuid for uuid, _ in each)) for each in sets]
    if resources.tensor_parallel > 1:
        spread = f"Resources.tensor_parallel is {resources.tensor_parallel}"
        raise Lacking(f"{spread}, {NOT_SPREAD}, and there is no GPU; use tensor_parallel=1")
    share = min(resources.threads * resources.processes, cores())
    shares = range(0, cores() - share + 1, share)
    return [Slot(f"cpu {n}", cores=tuple(range(n, n + share))) for n in shares]


def _names(found: tuple[tuple[str, str], ...]) -> str:
    return " + ".join(name for _, name in found)


def _lock(name: str) -> int | None:
    folder = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / "workbench-slots")
    make_folder(folder)
    with suppress(OSError):
        folder.chmod(0o1777)  # shared by the users of the machine
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
