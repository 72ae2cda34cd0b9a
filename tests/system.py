"""What tests ask of the system: programs, installed where it lets them, and its processes."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 600  # that an installation may take; one without a network ends by itself, or then


def apt_install(package: str) -> None:
    """Has apt install a package, where there is apt and this process may; else does nothing."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        attempt("apt-get", "update")
        attempt("apt-get", "install", "-y", "--no-install-recommends", package)


def attempt(*command: str) -> None:
    """Runs a command that may fail: what it was to install is there after it, or is not."""
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)


def wait_for_end(process: int) -> None:
    """Until that process, which need not be one of this one's, has ended."""
    while alive(process):
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether there is such a process on Linux; one that ended and was not asked about is none."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
