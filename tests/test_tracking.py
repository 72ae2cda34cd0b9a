"""The mirror, with a real MLflow store: exact, replayable, and never in the way of training."""

import math
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from small import record_probe

from workbench import plan, provenance, upge
from workbench.plan import Job
from workbench.recipe import Data, Evaluation, Probe, Recipe
from workbench.records import new_file
from workbench.schema import File, Tag
from workbench.study import Study
from workbench.tracking import (
    Mirror,
    ensure_store,
    experiments,
    points,
    sqlite_path,
    store_uri,
)

RECIPE = Recipe("arithmetic-1m", Data("arithmetic"), steps=3).using(upge.sft())
EVALUATION = Evaluation(samples=12, suites=("chain", "words"))
STUDY = Study("mirrored", {"SFT": RECIPE}, evaluation=EVALUATION, question="Does it show?")


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    ensure_store(store_uri(folder / "mlruns"), folder / "mlruns")
    return folder / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, made_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracking folder beside a fresh store; making its tables each time would take seconds."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(made_store, tmp_path / "mlflow.db")
    return tmp_path / "mlruns"


def job_of(root: Path, study: Study = STUDY) -> Job:
    (job,) = plan.jobs(study, root)
    return job


def train(job: Job, steps: int = 3) -> None:
    job.run.create(job.recipe, job.seed)
    for step in range(1, steps + 1):
        row = {"step": step, "timestamp": 1000 * step, "time/step": 2.0, "reward/mean": step / 10}
        job.run.append(File.METRICS, row)
        job.run.append(File.QUESTIONS, {"step": step, "questions": ["a"], "correct": [1]})


def evaluate(job: Job, correct: int = 3) -> None:
    for measurement in job.measurements:
        count = {"problem": "p", "level": 1, "samples": measurement.samples, "correct": correct,
                 "tokens": 120, "truncated": 0, "ungradable": 0}  # fmt: skip
        with new_file(job.run.evaluation_path(measurement)) as handle:
            pd.DataFrame([count, {**count, "correct": 0}]).to_parquet(handle)


def finish(job: Job) -> None:
    train(job)
    provenance.record(job.run)
    rollouts = job.run.path / File.ROLLOUTS
    rollouts.mkdir()
    table = pd.DataFrame({"step": [1], "question": ["1+1"], "response": ["a\n\\boxed{2}"]})
    table.to_parquet(rollouts / "step-000001.parquet")
    job.run.finish({"steps": 3})
    evaluate(job)


def mirror(job: Job, study: Study = STUDY, **options: Any) -> dict[str, str]:
    """Shows a job, and says what is not shown."""
    return Mirror(study, _root_of(job), [job], **options).close()


def _root_of(job: Job) -> Path:
    return job.run.path.parents[2]


def client(root: Path) -> MlflowClient:
    return MlflowClient(store_uri(root))


def shown(root: Path, name: str = "mirrored") -> MlflowRun:
    found = runs(root, name)
    assert len(found) == 1
    return found[0]


def runs(root: Path, name: str = "mirrored") -> list[MlflowRun]:
    identity = experiments(store_uri(root), [name])[name]
    return list(client(root).search_runs([identity]))


def stored_points(root: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(root.parent / "mlflow.db")) as connection:
        query = "select key, step, timestamp, value, is_nan from metrics order by 1, 2, 3, 4"
        return connection.execute(query).fetchall()


# --- what a finished cell looks like ---


def test_a_finished_cell_shows_recipe_history_curves_and_files(root: Path) -> None:
    job = job_of(root)
    finish(job)
    assert mirror(job) == {}
    run = shown(root)
    assert run.info.run_name == "SFT · seed 0"
    assert run.info.status == "FINISHED"
    assert run.data.params["label"] == "SFT"
    assert run.data.params["steps"] == "3"
    assert run.data.params["data.name"] == "arithmetic"
    tags = run.data.tags
    assert (tags[Tag.SEED], tags[Tag.OUTCOME], tags[Tag.STUDY]) == ("0", "finished", "mirrored")
    history = client(root).get_metric_history(run.info.run_id, "reward/mean")
    assert [(p.step, p.timestamp, p.value) for p in history] == [
        (1, 1000, 0.1),
        (2, 2000, 0.2),
        (3, 3000, 0.3),
    ]
    curve = client(root).get_metric_history(run.info.run_id, "passk/chain")
    assert [p.step for p in curve] == [1, 2, 4, 8, 12]
    assert [p.value for p in curve][::4] == [0.125, 0.5]
    metrics = run.data.metrics
    assert metrics["eval/chain/pass_at_1"] == metrics["eval/avg/pass_at_1"] == 0.125
    assert metrics["eval/words/pass_at_1"] == metrics["eval/avg_ood/pass_at_1"] == 0.125
    assert metrics["eval/chain/length"] == 10


def test_artifacts_hold_what_a_reader_without_the_folder_needs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(root)
    finish(job)
    mirror(job)
    run = shown(root)
    folder = Path(client(root).download_artifacts(run.info.run_id, ""))
    assert str(folder).startswith(str(root / "artifacts" / "mirrored"))
    assert (folder / "recipe.txt").read_text().splitlines()[2] == str(RECIPE)
    assert pd.read_parquet(folder / "history.parquet")["reward/mean"].tolist() == [0.1, 0.2, 0.3]
    names = {p.name for p in folder.rglob("*.parquet")}
    assert {
        "questions.parquet",
        *(job.run.evaluation_path(m).name for m in job.measurements),
    } < names
    assert {p.name for p in folder.glob("*.json")} == {
        "spec.json",
        "provenance.json",
        "result.json",
        "rollouts.json",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(root))  # load_table knows no other way
    table = MlflowClient().load_table(run.info.experiment_id, "rollouts.json")
    assert table["response"].tolist() == ["a\n\\boxed{2}"]


def test_the_experiment_holds_the_question_and_is_in_mlflows_own_default_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(root)
    finish(job)
    mirror(job)
    found = client(root).get_experiment_by_name("mirrored")
    assert found is not None
    assert found.tags["mlflow.note.content"] == "Does it show?"
    monkeypatch.chdir(root.parent)
    assert sqlite_path(mlflow.get_tracking_uri()) == sqlite_path(store_uri(root))


def test_probes_are_shown_once_as_metrics_and_as_a_table(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped = upge.grpo(mask=upge.RatioClip(0.2, high=0.28))
    first = Probe((upge.rloo(), clipped), step=3, mu=(0.0, 0.1))
    probes = (first, replace(first, distance=2), replace(first, seed=1))
    study = replace(STUDY, probes=probes)
    job = job_of(root, study)
    finish(job)
    (job.run.path / File.CHECKPOINTS / "step-000003").mkdir(parents=True)
    for number, probe in enumerate(probes):
        record_probe(job.run, probe, variance=2.0 + number)
    mirror(job, study)
    before = stored_points(root)
    found = {key: (value, step) for key, step, _, value, _ in before if key.startswith("probe/")}
    assert found["probe/rloo/variance"] == (2.0, 3)
    assert found["probe/rloo/off_policy_2/variance"] == (3.0, 3)
    assert found["probe/rloo/bias2"] == (pytest.approx(1.0 + 1.0 - 2 * 0.5), 3)
    assert found["probe/rloo/mse"][0] == pytest.approx(3.0)
    assert found["probe/rloo/cosine"][0] == pytest.approx(0.5)
    assert found["probe/rloo/error"][0] == pytest.approx(1 - 0.25 / 3)
    assert found["probe/rloo/noise_scale"][0] == pytest.approx(2.0)
    assert len(found) == 2 * 2 * 6  # methods, distances, statistics: of two seeds the first
    run = shown(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(root))  # load_table knows no other way
    table = MlflowClient().load_table(run.info.experiment_id, "probes.json")
    assert len(table) == 3 * 2 * 2  # probes, truths, methods
    assert set(table["mu"]) == {0.0, 0.1} and {"cosine_low", "cosine_high"} <= set(table)
    monkeypatch.setattr(Mirror, "_is_complete", lambda *_: False)
    mirror(job, study)
    assert stored_points(root) == before


# --- replay ---


def test_a_replay_adds_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(root)
    finish(job)
    mirror(job)
    before = stored_points(root)
    monkeypatch.setattr(Mirror, "_is_complete", lambda *_: False)
    assert mirror(job) == {}
    assert stored_points(root) == before
    assert len(runs(root)) == 1


def test_a_finished_and_shown_cell_costs_no_writes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(root)
    finish(job)
    mirror(job)
    for name in (
        "log_batch",
        "create_run",
        "log_artifacts",
        "set_terminated",
        "set_experiment_tag",
    ):
        monkeypatch.setattr(MlflowClient, name, lambda *_, **__: pytest.fail("a write"))
    assert mirror(job) == {}


def test_steps_run_again_add_no_timings_and_a_difference_raises_the_alarm(root: Path) -> None:
    job = job_of(root)
    train(job)
    mirror(job)
    stamps = job.run.rewind(1)
    for step, reward in ((2, 0.2), (3, 0.9)):
        row = {"step": step, "timestamp": stamps[step], "time/step": 7.0, "reward/mean": reward}
        job.run.append(File.METRICS, row)
    assert points.replay_difference(job) == 3
    job.run.finish({})
    evaluate(job)
    mirror(job)
    found = [(key, step, value) for key, step, _, value, _ in stored_points(root)]
    assert [p for p in found if p[0] == "time/step"] == [("time/step", s, 2.0) for s in (1, 2, 3)]
    assert ("reward/mean", 2, 0.2) in found
    assert shown(root).data.tags["workbench.nondeterministic_replay"] == "step 3"


def test_an_identical_replay_raises_no_alarm(root: Path) -> None:
    job = job_of(root)
    train(job)
    job.run.rewind(1)
    for step in (2, 3):
        row = {"step": step, "timestamp": 1, "time/step": 9.0, "reward/mean": step / 10}
        job.run.append(File.METRICS, row)
    assert points.replay_difference(job) is None


def test_what_is_not_finite_becomes_nan_and_is_counted(root: Path) -> None:
    job = job_of(root)
    train(job, steps=0)
    row = {"step": 1, "timestamp": 5, "loss/total": math.inf, "policy/entropy": math.nan}
    job.run.append(File.METRICS, {**row, "reward/mean": None, "length/all": 3})
    mirror(job)
    found = {(key, value, bool(nan)) for key, _, _, value, nan in stored_points(root)}
    assert found == {
        ("loss/total", 0.0, True),
        ("policy/entropy", 0.0, True),
        ("nonfinite/loss/total", 1.0, False),
        ("nonfinite/policy/entropy", 1.0, False),
        ("length/all", 3.0, False),
    }


def test_another_evaluation_replaces_the_run_because_points_cannot_be_removed(root: Path) -> None:
    job = job_of(root)
    finish(job)
    mirror(job)
    more = replace(STUDY, evaluation=Evaluation(samples=4, suites=("chain",)))
    job = job_of(root, more)
    evaluate(job, correct=4)
    assert mirror(job, more) == {}
    run = shown(root)
    curve = client(root).get_metric_history(run.info.run_id, "passk/chain")
    assert [(p.step, p.value) for p in curve] == [(1, 0.5), (2, 0.5), (4, 0.5)]
    assert "passk/words" not in run.data.metrics
    assert len(client(root).get_metric_history(run.info.run_id, "reward/mean")) == 3


def test_a_renamed_arm_is_shown_under_its_new_name_alone(root: Path) -> None:
    job = job_of(root)
    finish(job)
    mirror(job)
    renamed = replace(STUDY, arms={"SFT again": RECIPE})
    mirror(job_of(root, renamed), renamed)
    assert shown(root).data.params["label"] == "SFT again"


def test_a_run_that_is_replaced_while_it_trains_has_every_point(root: Path) -> None:
    job = job_of(root)
    train(job, steps=2)
    jobs = [job]
    living = Mirror(STUDY, root, jobs)
    living.sync()
    jobs[0] = replace(job, label="SFT again")
    living.sync()
    assert living.close() == {}
    history = client(root).get_metric_history(shown(root).info.run_id, "reward/mean")
    assert [point.step for point in history] == [1, 2]


def test_long_values_are_cut_with_a_notice_and_all_parameters_arrive(root: Path) -> None:
    job = replace(job_of(root), label="x" * 7000)
    found = points.parameters(job)["label"]
    assert len(found) == points.PARAM_LIMIT
    assert found.endswith("(cut; recipe.txt has all of it)")
    chain = RECIPE
    for _ in range(4):  # a recipe that starts from a recipe: some hundred fields
        chain = RECIPE.start_from(chain)
    deep = Study("mirrored", {"deep": chain}, evaluation=EVALUATION)
    last = plan.jobs(deep, root)[-1]
    finish(last)
    assert mirror(last, deep) == {}
    assert shown(root).data.params == points.parameters(last)
    assert len(shown(root).data.params) > 100


# --- status ---


def test_a_status_is_healed_from_the_directory(root: Path) -> None:
    job = job_of(root)
    train(job, steps=2)
    with job.run.claim():
        mirror(job)
        assert shown(root).info.status == "RUNNING"
    mirror(job)  # the lock is free and there is no result: whoever trained it is gone
    assert shown(root).info.status == "KILLED"
    job.run.fail("killed", "the worker was ended by SIGKILL")
    mirror(job)
    run = shown(root)
    assert run.info.status == "FAILED"
    assert run.data.tags[Tag.OUTCOME] == "failed: the worker was ended by SIGKILL"
    with job.run.claim():
        mirror(job)
        assert shown(root).info.status == "RUNNING"
    job.run.finish({})
    mirror(job)
    assert shown(root).info.status == "FAILED"  # trained, and not measured
    evaluate(job)
    mirror(job)
    assert shown(root).info.run_id == run.info.run_id
    assert (shown(root).info.status, shown(root).data.tags[Tag.OUTCOME]) == ("FINISHED", "finished")


def test_a_run_that_only_mlflow_calls_finished_is_not(root: Path) -> None:
    job = job_of(root)
    train(job)
    mirror(job)
    client(root).set_terminated(shown(root).info.run_id, "FINISHED")
    job.run.fail("error", "no luck")
    mirror(job)
    assert shown(root).info.status == "FAILED"


# --- the store ---

MAKE = """
import sys
from pathlib import Path
from workbench.tracking import ensure_store
ensure_store(sys.argv[1], Path(sys.argv[2]))
"""


def test_several_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    root = tmp_path / "new" / "mlruns"
    command = [sys.executable, "-c", MAKE, store_uri(root), str(root)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    job = job_of(root)
    finish(job)
    assert mirror(job) == {}
    assert not list(root.parent.glob("*.new*"))
    with closing(sqlite3.connect(root.parent / "mlflow.db")) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


OUTAGES = {
    "garbage": lambda path: path.write_bytes(b"not a database" * 100),
    "a folder in its place": _directory,
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_is_told_once_and_made_good_later(
    outage: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(root)
    finish(job)
    path = root.parent / "mlflow.db"
    kept = path.read_bytes()
    OUTAGES[outage](path)
    broken = Mirror(STUDY, root, [job], patience=0)
    broken.sync()
    broken.sync()
    assert list(broken.close()) == ["SFT · seed 0"]
    told = [r for r in caplog.records if "training goes on" in r.getMessage()]
    assert len(told) == 1
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(kept)
    assert mirror(job) == {}
    assert shown(root).info.status == "FINISHED"


def test_a_store_that_refuses_writes_stops_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(root)
    finish(job)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("attempt to write a readonly database")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        assert "readonly" in mirror(job)["SFT · seed 0"]
    assert mirror(job) == {}
    assert len([p for p in stored_points(root) if p[0] == "reward/mean"]) == 3


def test_what_fails_between_two_requests_costs_a_step_none_of_its_times(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(root)
    train(job, steps=0)
    # Seven points a step: a thousand of them end between its `time/step` and its `time/update`.
    values = {"loss/total": 1, "reward/mean": 0, "length/all": 3, "time/rollout": 1.0}
    times = {"time/grade": 0.1, "time/step": 2.0, "time/update": 0.9}
    for step in range(1, 200):
        job.run.append(File.METRICS, {"step": step, "timestamp": step, **values, **times})
    log, sent = MlflowClient.log_batch, []

    def fail_once(client: MlflowClient, run: str, metrics: Any = (), **more: Any) -> None:
        sent.extend([len(metrics)] * bool(metrics))
        if len(sent) == 2:
            sent.append(0)
            raise OSError("the server is gone")
        log(client, run, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_once)
    living = Mirror(STUDY, root, [job], patience=0)
    living.sync()
    assert living.problems != {}
    assert living.close() == {}
    recorded = [p for row in job.run.rows() for p in points.points(row)]
    assert stored_points(root) == sorted((p.key, p.step, p.timestamp, p.value, 0) for p in recorded)


def test_rows_are_in_one_batch_each_unless_they_are_larger() -> None:
    rows = [
        [points.Point(f"m/{n}", 0.0, 0, row) for n in range(size)]
        for row, size in enumerate([2, 3, 1, 0, 9, 2])
    ]
    found = list(points.batches(rows, 4))
    assert [[point.step for point in batch] for batch in found] == [
        [0, 0], [1, 1, 1, 2], [4, 4, 4, 4], [4, 4, 4, 4], [4, 5, 5]]  # fmt: skip


def test_a_server_that_is_not_there_stops_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    job = job_of(root)
    finish(job)
    assert list(mirror(job, uri="http://127.0.0.1:9")) == ["SFT · seed 0"]


def test_a_store_deleted_while_we_look_is_made_and_filled_again(root: Path) -> None:
    job = job_of(root)
    finish(job)
    living = Mirror(STUDY, root, [job], patience=0)
    living.sync()
    assert len(runs(root)) == 1
    (root.parent / "mlflow.db").unlink()
    assert living.close() == {}
    assert len([p for p in stored_points(root) if p[0] == "reward/mean"]) == 3


def test_a_broken_record_hides_no_other_cell(root: Path) -> None:
    study = replace(STUDY, seeds=(0, 1, 2))
    jobs = plan.jobs(study, root)
    for job in jobs:
        finish(job)
    (jobs[1].run.path / File.METRICS).write_text("not json\n{}\n")
    problems = Mirror(study, root, jobs).close()
    assert list(problems) == ["SFT · seed 1"]
    finished = {run.data.tags[Tag.SEED] for run in runs(root) if run.info.status == "FINISHED"}
    assert finished == {"0", "2"}


def test_two_runners_of_a_study_make_one_run_for_a_cell(root: Path) -> None:
    job = job_of(root)
    finish(job)
    one, other = Mirror(STUDY, root, [job]), Mirror(STUDY, root, [job])
    one.sync()
    other.sync()
    assert one.close() == other.close() == {}
    assert len(runs(root)) == 1


def test_a_live_run_is_followed_from_a_thread(root: Path) -> None:
    job = job_of(root)
    living = Mirror(STUDY, root, [job], interval=0.05)
    living.start()
    finish(job)
    assert living.close() == {}
    assert shown(root).info.status == "FINISHED"


@pytest.fixture(autouse=True)
def _no_open_connections() -> Iterator[None]:
    """Stores are cached by address; pytest would see their connections close one day, somewhere."""
    yield
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()
