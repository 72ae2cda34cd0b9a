"""The only module that writes what must survive: files whole or not at all, lines synced.

Every function returns once its write is durable, and has fault points on the way: with
`WORKBENCH_FAULT=name[:n]` the process kills itself at the n-th passage of that point (the first
unless told). A point is named after what is written and how far it is, `result.json.renamed`, so
that a new write has its points by itself.

    new_file, new_folder    .begun, .written (whole, under another name), .renamed
    append                  .torn (half a line), .appended
    remove, remove_tree     .hidden (trees only), .removed
    move                    .moved

A disk that is full (or a quota, or a limit on file sizes) is a `DiskFull`, which names the path and
the bytes; whatever was there before is still there. A process whose claim another has taken since
writes nothing more: see `fenced`.
"""

import errno
import logging
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

FAULT = "WORKBENCH_FAULT"
passed: Counter[str] = Counter()  # fault points of this process, by how often it came by


def fault(point: str) -> None:
    """A place where the process may be made to die as if its machine had."""
    passed[point] += 1
    name, _, nth = os.environ.get(FAULT, "").partition(":")
    if point == name and passed[point] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)


class DiskFull(OSError):
    """A write for which there is no room; what was there before is still there."""

    def __init__(self, path: Path, written: int) -> None:
        free = shutil.disk_usage(_existing(path)).free
        super().__init__(
            errno.ENOSPC,
            f"no room for {path}: {written:,} bytes of it were written and {free:,} bytes are free "
            "(a quota or a limit on file sizes may allow less); free some space and run again",
        )

    def __str__(self) -> str:
        return str(self.strerror)


class Fenced(OSError):
    """A write that is refused, because another process has taken what this one had claimed."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            errno.ESTALE, f"{path} is not written: another process has taken over since"
        )

    def __str__(self) -> str:
        return str(self.strerror)


_claims: list[Callable[[], bool]] = []  # of this process: whether each is its own still


@contextmanager
def fenced(mine: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, this process writes durably only as long as `mine()` is true.

    A process may sleep (its machine did, its network was cut) until others count it as gone. When
    it wakes up, its claim is looked at before each write becomes visible. What cannot be closed
    from here is the moment between that look and the write.
    """
    _claims.append(mine)
    try:
        yield
    finally:
        _claims.remove(mine)


def _refuse_if_fenced(path: Path) -> None:
    if not all(mine() for mine in _claims):
        raise Fenced(path)


@contextmanager
def new_file(path: Path, mode: str = "wb", point: str = "") -> Iterator[IO[Any]]:
    """A file that appears under its name whole and synced, or not at all.

    `point` names its fault points where the file's own name varies.

    Raises:
        DiskFull: there is no room for it.
        Fenced: another process has taken over since.
    """
    point = point or path.name
    with _in_the_making(path) as temporary:
        with open(temporary, mode) as handle:
            fault(f"{point}.begun")
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        fault(f"{point}.written")
        _refuse_if_fenced(path)
        os.replace(temporary, path)
    fault(f"{point}.renamed")
    sync(path.parent)


@contextmanager
def new_folder(path: Path, point: str) -> Iterator[Path]:
    """A folder of files that appears under its name whole and synced, instead of any before it.

    Raises:
        DiskFull: there is no room for it.
        Fenced: another process has taken over since.
    """
    with _in_the_making(path) as temporary:
        temporary.mkdir()
        fault(f"{point}.begun")
        yield temporary
        for each in (*temporary.rglob("*"), temporary):
            sync(each)
        fault(f"{point}.written")
        _refuse_if_fenced(path)
        if path.exists():
            remove_tree(path, point)
        os.replace(temporary, path)
    fault(f"{point}.renamed")
    sync(path.parent)


def append(path: Path, line: bytes, point: str = "") -> None:
    """Appends one line and syncs it; a torn line left by a crash is cut off first.

    Raises:
        DiskFull: there is no room for it; the file is as it was.
        Fenced: another process has taken over since; the file is its.
    """
    point = point or path.name
    _refuse_if_fenced(path)
    make_folder(path.parent)
    with open(path, "ab+", buffering=0) as handle:
        whole = _cut_torn_line(handle, path)
        try:
            _write(handle, line[: len(line) // 2])
            fault(f"{point}.torn")
            _refuse_if_fenced(path)
            _write(handle, line[len(line) // 2 :])
            os.fsync(handle.fileno())
        except Fenced:
            raise
        except OSError as error:
            written = handle.seek(0, os.SEEK_END) - whole
            handle.truncate(whole)
            if _is_full(error):
                raise DiskFull(path, written) from error
            raise
    fault(f"{point}.appended")
    if whole == 0:  # the first line: its file may be new
        sync(path.parent)


def remove(path: Path, point: str = "") -> None:
    """Removes a file, if it is there."""
    if path.exists():
        _refuse_if_fenced(path)
        path.unlink(missing_ok=True)
        fault(f"{point or path.name}.removed")
        sync(path.parent)


def remove_tree(path: Path, point: str) -> None:
    """Removes a folder in one visible step: it is renamed out of sight first."""
    _refuse_if_fenced(path)
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    fault(f"{point}.hidden")
    sync(path.parent)
    shutil.rmtree(hidden)
    fault(f"{point}.removed")


def move(source: Path, target: Path, point: str) -> None:
    """Renames a file or a folder within one file system."""
    _refuse_if_fenced(target)
    make_folder(target.parent)
    os.replace(source, target)
    fault(f"{point}.moved")
    sync(target.parent)
    sync(source.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Makes durable what a file holds, or which names are in a directory and which are gone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, pattern: str = "**/.*") -> None:
    """Removes what processes that died left half written or half removed in a folder."""
    for path in list(folder.glob(pattern)):
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or (found[1] != "removed" and is_alive(int(found[1]))):
            continue
        log.info("removing %s, which a process that died left behind", path)
        _discard(path)


_LEFTOVER = re.compile(r"\..+\.(\d+|removed)")


def is_alive(process: int) -> bool:
    """Whether there is a process of that number on this machine, whosever it is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def _in_the_making(path: Path) -> Iterator[Path]:
    """A hidden name beside the path, under which this process makes it; nothing stays there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make_folder(path.parent)
        yield temporary
    except Exception as error:
        if _is_full(error):
            raise DiskFull(path, _size(temporary)) from error
        raise
    finally:
        _discard(temporary)


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_full(error: BaseException) -> bool:
    """Whether an error means that there is no room; some libraries say it in words only.

    Those in Rust do, and MLflow, whose downloads fail in threads.
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in codes
    return any(f"{said} {code}" in str(error) for said in ("os error", "[Errno") for code in codes)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _write(handle: IO[bytes], data: bytes) -> None:
    while data:  # a raw write may take a part only
        data = data[handle.write(data) :]


def _cut_torn_line(handle: IO[bytes], path: Path) -> int:
    """Cuts off what follows the last line break; returns the size that is left."""
    size = handle.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    handle.seek(size - 1)
    if handle.read(1) == b"\n":
        return size
    handle.seek(0)
    whole = handle.read(size).rfind(b"\n") + 1
    log.warning("%s: cut off a torn last line of %d bytes", path, size - whole)
    handle.truncate(whole)
    return whole
