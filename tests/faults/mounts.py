"""Mounts that end with the process that made them, however it ends."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Something mounted at a place while the block runs; skips the test where nothing can be."""
    if not private_mounts():
        pytest.skip("only root can mount, and only where the system lets it")
    subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@lru_cache(maxsize=1)
def private_mounts() -> bool:
    """Gives this process, and what it starts from now on, mounts of its own; whether it could."""
    new_namespace = 0x20000  # CLONE_NEWNS
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(new_namespace) != 0:
        return False
    alone = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    return alone.returncode == 0
