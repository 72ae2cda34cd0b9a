"""The mirror of run directories in MLflow: it can be replayed, and it never stops training.

A point is stored with the timestamp of its record, so that showing it again adds nothing; MLflow
runs are found by tags. MLflow is imported only once the mirror talks to it.
"""

import fcntl
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workbench.durable import make_folder
from workbench.identity import fingerprint
from workbench.launch.follow import Follow
from workbench.plan import Job, Status, status
from workbench.records import Run, read_json
from workbench.schema import File, Tag
from workbench.study import Search, Study
from workbench.tracking.store import (
    ensure_store,
    forget_connections,
    is_there,
    prepare_mlflow,
    set_defaults,
    sqlite_path,
    store_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from workbench.tracking.points import Point

log = logging.getLogger(__name__)

NOTE = "mlflow.note.content"
NONDETERMINISTIC = "workbench.nondeterministic_replay"
TERMINAL = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "trained": "FAILED",
    "interrupted": "KILLED",
}
BATCH_METRICS, BATCH_PARAMS = 1000, 100  # the most that one MLflow request takes


@dataclass
class Shown:
    """What MLflow has of a job, as far as this process knows."""

    id: str
    state: str
    tags: dict[str, str]
    params: dict[str, str]
    timed_until: int = -1


@dataclass
class Mirror:
    """Shows the runs of a study in MLflow; every failure is logged once and made good later.

    Attributes:
        study: becomes the experiment; of a search, its trials are the runs.
        root: the tracking folder; artifacts lie in it unless a server keeps them.
        jobs: what to show; more may be added while it runs.
        uri: of the store; `store_uri(root)` unless given.
        interval: seconds between two looks at the run directories.
        patience: seconds before a store that failed is tried again.
    """

    study: Study | Search
    root: Path
    jobs: Sequence[Job]
    uri: str = ""
    interval: float = 5.0
    patience: float = 30.0
    problems: dict[str, str] = field(default_factory=dict, init=False)
    complete: set[Path] = field(default_factory=set, init=False)
    _follows: dict[Path, Follow] = field(default_factory=dict, init=False)
    _shown: dict[tuple[str, str], Shown] = field(default_factory=dict, init=False)
    _client: "MlflowClient | None" = field(default=None, init=False)
    _experiment: str = field(default="", init=False)
    _lock: IO[Any] | None = field(default=None, init=False)
    _retry_at: float = field(default=0.0, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        set_defaults()
        self.root = self.root.resolve()
        self.uri = self.uri or store_uri(self.root)

    def start(self) -> None:
        """Mirrors from a thread until `close`."""
        self._thread = threading.Thread(target=self._loop, name="mirror", daemon=True)
        self._thread.start()

    def close(self) -> dict[str, str]:
        """Catches up, and says for each job that is not fully shown why not."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._retry_at = 0.0
        self.sync()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        return dict(self.problems)

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.sync()
            self._stop.wait(self.interval)

    def sync(self) -> None:
        """Shows what is new in the run directories; never raises."""
        if time.monotonic() < self._retry_at:
            return
        if self._client is not None and self._store_is_gone():
            self._client = None
            self.complete.clear()
        left = self._left()
        if not left:
            return
        try:
            if not self._connect():
                return  # another runner of this study mirrors it
        except Exception as error:  # whatever a store can raise: training goes on without it
            self._fail(dict.fromkeys((job.name for job in left), _first_line(error)))
            return
        self._fail(self._push_all(self._left()))

    def _left(self) -> list[Job]:
        """Jobs with a record that is not known to be shown whole."""
        return [job for job in self.jobs if job.run.path not in self.complete and _has_begun(job)]

    def _push_all(self, jobs: list[Job]) -> dict[str, str]:
        """Pushes each job; two failures in a row mean that the store is gone, not that job."""
        problems: dict[str, str] = {}
        in_a_row = 0
        for job in jobs:
            if in_a_row == 2:
                problems[job.name] = "not tried: the store failed twice before it"
                continue
            try:
                self._push(job)
                in_a_row = 0
            except Exception as error:  # see sync
                in_a_row += 1
                problems[job.name] = _first_line(error)
                self._follows.pop(job.run.path, None)  # its rows are pushed again, from the start
        return problems

    def _fail(self, problems: dict[str, str]) -> None:
        if problems:
            reason = next(iter(problems.values()))
            if not self.problems:
                log.warning("MLflow (%s) is behind, training goes on: %s", self.uri, reason)
            self._client = None
            self._retry_at = time.monotonic() + self.patience
        self.problems = problems

    # --- connecting ---

    def _connect(self) -> bool:
        """Whether this process has the store and is the one that mirrors the study."""
        if self._client is not None:
            return True
        if not self._claim():
            return False
        forget_connections(self.uri)
        ensure_store(self.uri, self.root)
        prepare_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        self._experiment = self._open_experiment(client)
        self._shown = dict(self._search(client))
        self._follows.clear()
        self._client = client
        self._end_what_nobody_trains()
        self.complete = {job.run.path for job in self.jobs if self._is_complete(job)}
        return True

    def _store_is_gone(self) -> bool:
        path = sqlite_path(self.uri)
        return path is not None and not is_there(path)

    def _claim(self) -> bool:
        """One mirror a study: two would each make a run for the same cell."""
        if self._lock is not None:
            return True
        make_folder(self.root)
        handle = open(self.root / f".mirror-{self.study.name}.lock", "w")  # noqa: SIM115 held
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return False
        self._lock = handle
        return True

    def _open_experiment(self, client: "MlflowClient") -> str:
        name = self.study.name
        found = client.get_experiment_by_name(name)
        if found is None:
            # An absolute place, so that artifacts do not land where the command was typed; a server
            # chooses its own.
            served = self.uri.startswith(("http://", "https://", "databricks"))
            location = None if served else (self.root / "artifacts" / name).as_uri()
            identity = client.create_experiment(name, artifact_location=location)
            found = client.get_experiment(identity)
        elif found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        for key, value in {NOTE: self.study.question[:8000], Tag.STUDY: name}.items():
            if value and found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return found.experiment_id

    def _search(self, client: "MlflowClient") -> Iterator[tuple[tuple[str, str], Shown]]:
        token = None
        while True:
            page = client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                shown = Shown(run.info.run_id, run.info.status, dict(tags), dict(run.data.params))
                yield (tags.get(Tag.CELL, ""), tags.get(Tag.SEED, "")), shown
            token = page.token
            if not token:
                return

    def _end_what_nobody_trains(self) -> None:
        """Ends MLflow runs of cells that have left the study and whose process is gone."""
        mine = {_key(job) for job in self.jobs}
        for key, shown in self._shown.items():
            directory = shown.tags.get(Tag.DIRECTORY)
            if key in mine or shown.state != "RUNNING" or directory is None:
                continue
            if not Run(Path(directory)).held:
                outcome = "interrupted: its process is gone, and the study has left it out"
                self._set_tags(shown, {Tag.OUTCOME: outcome})
                self._api.set_terminated(shown.id, "KILLED")
                shown.state = "KILLED"

    # --- one job ---

    def _is_complete(self, job: Job) -> bool:
        from workbench.tracking.points import evaluation_identity

        shown = self._shown.get(_key(job))
        if shown is None or shown.state != "FINISHED":
            return False
        wanted = {
            Tag.OUTCOME: "finished",
            Tag.LABEL: job.label,
            Tag.EVALUATION: evaluation_identity(job),
        }
        return wanted.items() <= shown.tags.items() and job.done

    def _is_outdated(self, job: Job, shown: Shown) -> bool:
        """Whether it shows what cannot be changed in MLflow: another label, another evaluation."""
        from workbench.tracking.points import evaluation_identity

        evaluation = evaluation_identity(job)
        wanted = {Tag.LABEL: job.label, Tag.EVALUATION: evaluation}
        return not wanted.items() <= {Tag.EVALUATION: evaluation, **shown.tags}.items()

    def _push(self, job: Job) -> None:
        from workbench.tracking import points

        now = status(job)
        shown = self._show(job)
        follow = self._follows.setdefault(job.run.path, Follow(job.run.path / File.METRICS))
        rows = follow.rows()
        self._log_points(shown.id, [points.points(row, shown.timed_until) for row in rows])
        shown.timed_until = max([shown.timed_until, *(row["step"] for row in rows)])
        if now.kind in TERMINAL:
            self._settle(job, shown, now, changed=bool(rows))
        elif now.kind == "running" and shown.state != "RUNNING":
            self._api.update_run(shown.id, status="RUNNING")
            shown.state = "RUNNING"

    @property
    def _api(self) -> "MlflowClient":
        assert self._client is not None
        return self._client

    def _show(self, job: Job) -> Shown:
        """The MLflow run of a job, made if it is not there, with all its parameters."""
        from workbench.tracking import points

        shown = self._shown.get(_key(job))
        if shown is not None and self._is_outdated(job, shown):
            self._api.delete_run(shown.id)
            self._follows.pop(job.run.path, None)  # everything in it is replayed from the records
            shown = None
        if shown is None:
            tags = {
                Tag.STUDY: self.study.name,
                Tag.LABEL: job.label,
                Tag.CELL: fingerprint(job.recipe),
                Tag.SEED: str(job.seed),
                Tag.DIRECTORY: str(job.run.path),
                NOTE: _note(job),
            }
            began = int((job.run.path / File.SPEC).stat().st_mtime * 1000)
            run = self._api.create_run(self._experiment, began, tags, job.name)
            shown = Shown(run.info.run_id, "RUNNING", tags, {})
        elif shown.timed_until < 0 and shown.state != "FINISHED":
            history = self._api.get_metric_history(shown.id, "time/step")
            shown.timed_until = max((point.step for point in history), default=-1)
        self._shown[_key(job)] = shown
        self._log_params(shown, points.parameters(job))
        return shown

    def _log_params(self, shown: Shown, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        new = [Param(k, v) for k, v in params.items() if k not in shown.params]
        for start in range(0, len(new), BATCH_PARAMS):
            self._api.log_batch(shown.id, params=new[start : start + BATCH_PARAMS])
        shown.params |= params

    def _log_points(self, run: str, rows: Iterable[list["Point"]]) -> None:
        from mlflow.entities import Metric

        from workbench.tracking.points import batches

        for batch in batches(rows, BATCH_METRICS):
            self._api.log_batch(run, metrics=[Metric(*point) for point in batch])

    def _settle(self, job: Job, shown: Shown, now: Status, *, changed: bool) -> None:
        """Ends the MLflow run as the directory says it ended, with its artifacts."""
        from workbench.tracking import points

        outcome = now.kind if now.kind == "finished" else f"{now.kind}: {now.detail}"[:5000]
        if not changed and shown.tags.get(Tag.OUTCOME) == outcome != "finished":
            return
        tags = {Tag.OUTCOME: outcome, **_provenance_tags(job)}
        if now.kind == "finished":
            # Before the points: if these stop half-way, the tag says which evaluation they are of.
            self._set_tags(shown, {Tag.EVALUATION: points.evaluation_identity(job)})
            measured = points.evaluation_points(job) + points.probe_points(job)
            self._log_points(shown.id, [[point] for point in measured])
        difference = points.replay_difference(job)
        if difference is not None:
            tags[NONDETERMINISTIC] = f"step {difference}"
        tags |= self._log_artifacts(job, shown)
        self._api.set_terminated(shown.id, TERMINAL[now.kind])
        shown.state = TERMINAL[now.kind]
        self._set_tags(shown, tags)  # last: `finished` there means that nothing is missing
        if now.kind == "finished":
            self.complete.add(job.run.path)

    def _log_artifacts(self, job: Job, shown: Shown) -> dict[str, str]:
        from workbench.tracking import points

        with tempfile.TemporaryDirectory() as folder:
            points.write_artifacts(job, Path(folder))
            self._api.log_artifacts(shown.id, folder)
            found = [name for name in points.TABLES if (Path(folder) / name).exists()]
        tables = [{"path": name, "type": "table"} for name in found]
        return {"mlflow.loggedArtifacts": json.dumps(tables)} if tables else {}

    def _set_tags(self, shown: Shown, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        new = {key: value for key, value in tags.items() if shown.tags.get(key) != value}
        if new:
            self._api.log_batch(shown.id, tags=[RunTag(key, value) for key, value in new.items()])
            shown.tags |= new


def _has_begun(job: Job) -> bool:
    return (job.run.path / File.SPEC).exists() and status(job).kind != "waiting"


def _key(job: Job) -> tuple[str, str]:
    return fingerprint(job.recipe), str(job.seed)


def _note(job: Job) -> str:
    same = f"The same estimator as: {', '.join(job.also)}.\n\n" if job.also else ""
    return f"{same}```python\n{job.recipe}\n```"[:8000]


def _provenance_tags(job: Job) -> dict[str, str]:
    path = job.run.path / File.PROVENANCE
    attempts = read_json(path)["attempts"] if path.exists() else []
    if not attempts:
        return {}
    last = attempts[-1]
    known = {
        Tag.COMMIT: last.get("commit"),
        "mlflow.source.git.commit": last.get("commit"),
        Tag.DIRTY: last.get("diff"),
        Tag.DEVICES: ", ".join(last.get("devices", ())),
        Tag.PACKAGES: ", ".join(f"{name} {v}" for name, v in last.get("packages", {}).items()),
    }
    return {tag: value for tag, value in known.items() if value}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
