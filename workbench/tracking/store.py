"""Where MLflow keeps its runs: a store that is made whole or not at all, and its environment."""

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

from workbench.durable import fault, make_folder, move, remove
from workbench.processes import importing

# Our processes report nothing to anyone unless asked to, and an unreachable server is given up
# after seconds, not minutes: the mirror tries again later anyway. A server's eight processes for
# jobs of GenAI applications would take more of the machine than itself, for nothing of ours.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


# MLflow's pages begin in their view of GenAI applications and take the other from the address alone
# (3.17 reads no tag of the experiment for it).
TRAINING_VIEW = "?workflowType=machine_learning"
UI_PORT = 5000


def set_defaults() -> None:
    """Sets what MLflow reads from the environment, where the user has not."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def store_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or `mlflow.db` beside the tracking folder: MLflow's own default."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{quote(str(root.resolve().parent / 'mlflow.db'))}"


def is_remote(uri: str) -> bool:
    """Whether a store is a server's, with pages of its own."""
    return uri.startswith(("http://", "https://"))


def page_of(uri: str, port: int = UI_PORT) -> str:
    """Where MLflow's pages are: the server's own, or what `workbench ui` serves."""
    return uri.rstrip("/") if is_remote(uri) else f"http://127.0.0.1:{port}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for other stores."""
    prefix = "sqlite:///"
    return Path(unquote(uri.removeprefix(prefix))) if uri.startswith(prefix) else None


def ensure_store(uri: str, root: Path) -> None:
    """Makes a SQLite store that is not there, whole or not at all.

    Two processes that make its tables at once, or one that is killed meanwhile, leave a store that
    never works again: so it is made under another name, by one process, and renamed into place.
    """
    path = sqlite_path(uri)
    if path is None or is_there(path):
        return
    make_folder(path.parent)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_there(path):
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        for leftover in path.parent.glob(f".{path.name}.*.new*"):
            remove(leftover, "mlflow.db")  # of a process that died, for this one has the lock
        try:
            _make_tables(temporary, root)
            fault("mlflow.db.written")
            move(temporary, path, "mlflow.db")
        finally:
            for leftover in path.parent.glob(f"{temporary.name}*"):
                remove(leftover, "mlflow.db")


def is_there(path: Path) -> bool:
    """Whether a store is there; an empty file is none."""
    return path.exists() and (path.is_dir() or path.stat().st_size > 0)


def _make_tables(path: Path, root: Path) -> None:
    prepare_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{quote(str(path))}", str(root.resolve()))
    store.engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        # Readers (the UI) and the writer then do not wait for each other; the file remembers it.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def state_of(uri: str) -> list[list[int]] | None:
    """What differs once anything was written to a SQLite store; None where that cannot be known.

    A connection of this process that is open may still write at its end what others have read.
    """
    path = sqlite_path(uri)
    if path is None or not is_there(path):
        return None
    found = [each.stat() for each in (path, path.with_name(f"{path.name}-wal")) if each.exists()]
    return [[each.st_ino, each.st_size, each.st_mtime_ns] for each in found]


def forget_connections(uri: str) -> None:
    """Drops open connections to a file that was replaced: writes to it succeed and reach nobody."""
    if sqlite_path(uri) is None:
        return
    prepare_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore._engine_map.get(uri)
    if engine is not None:
        engine.dispose()


@cache
def prepare_mlflow() -> None:
    """Brings MLflow; keeps its notices of its set-up off the terminal, and its patience in seconds.

    A database that does not open is tried ten times with a doubling pause: for minutes.
    """
    with importing():
        from mlflow import MlflowClient  # noqa: F401  which callers import next
        from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 3
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def experiments(uri: str, names: Sequence[str]) -> dict[str, str]:
    """Identities of the studies' experiments, where they are in the store."""
    path = sqlite_path(uri)
    if path is not None and not is_there(path):
        return {}
    prepare_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = {name: client.get_experiment_by_name(name) for name in names}
    return {name: each.experiment_id for name, each in found.items() if each is not None}
