"""Runs read back from a real MLflow, from a file and from a server, are the runs that were."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from small import make_study, record

from analysis import fetch, histories
from analysis import load as loading
from analysis.page import Links
from analysis.tracked import links
from workbench import plan
from workbench.schema import Tag
from workbench.tracking import (
    TRAINING_VIEW,
    Mirror,
    ensure_store,
    experiments,
    log_report,
    store_uri,
)
from workbench.tracking.store import DEFAULTS

STUDY = make_study("tracked", arms=("base", "SFT", "HPT", "SFT->GRPO"), seeds=(0, 1))
FRAMES = ("history", "evaluations", "questions", "budget")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded runs in a tracking folder, with one that is not finished."""
    folder = tmp_path_factory.mktemp("tracked") / "mlruns"
    record(STUDY, folder, skip=(("HPT", 1),))
    return folder


@pytest.fixture(scope="module")
def file_uri(root: Path) -> str:
    uri = store_uri(root)
    ensure_store(uri, root)
    assert Mirror(STUDY, root, plan.jobs(STUDY, root), uri=uri).close() == {}
    return uri


@pytest.fixture(scope="module")
def server_uri(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on the loopback address that keeps artifacts itself and hands them out."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    ensure_store(store, folder)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(command, env={**os.environ, **DEFAULTS}, **quiet) as server:
        try:
            uri = f"http://127.0.0.1:{port}"
            _wait_for(f"{uri}/health", server)
            assert Mirror(STUDY, root, plan.jobs(STUDY, root), uri=uri).close() == {}
            yield uri
        finally:
            server.terminate()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server for {address} ended with {server.returncode}")


@pytest.fixture(params=["file", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_uri")


def assert_same_runs(one: loading.Runs, other: loading.Runs) -> None:
    assert one.labels == other.labels
    assert len(one.missing) == len(other.missing) == 1
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


def test_runs_from_mlflow_are_those_of_the_run_directories(
    uri: str, root: Path, tmp_path: Path
) -> None:
    assert fetch(STUDY, uri, tmp_path) == tmp_path
    assert_same_runs(loading.runs(STUDY, root), loading.runs(STUDY, tmp_path))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_run_is_copied_once(file_uri: str, tmp_path: Path, monkeypatch) -> None:
    fetch(STUDY, file_uri, tmp_path)
    monkeypatch.setattr(MlflowClient, "download_artifacts", lambda *_: pytest.fail("a download"))
    fetch(STUDY, file_uri, tmp_path)
    assert loading.runs(STUDY, tmp_path).labels == ("base", "SFT", "HPT", "SFT->GRPO")


def test_metric_histories_are_the_same_frame_as_the_records(uri: str, root: Path) -> None:
    found = histories(uri, STUDY.name)
    ours = loading.runs(STUDY, root).history
    keys = ["label", "seed", "step"]
    found, ours = (f.sort_values(keys, ignore_index=True) for f in (found, ours))
    pd.testing.assert_frame_equal(found, ours, check_like=True)


def test_a_run_whose_artifacts_are_gone_still_has_its_history(
    file_uri: str, root: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(MlflowClient, "list_artifacts", lambda *_: [])
    found = loading.runs(STUDY, fetch(STUDY, file_uri, tmp_path))
    pd.testing.assert_frame_equal(found.history, loading.runs(STUDY, root).history)
    assert found.evaluations.empty and found.questions.empty
    assert any("evaluations are missing and left out" in note for note in found.notes)


def test_runs_that_others_logged_have_their_metrics_names_and_places(file_uri: str) -> None:
    client = MlflowClient(file_uri)
    experiment = client.create_experiment("theirs")
    for loss in (0.5, 0.25):
        run = client.create_run(experiment, run_name="trl").info.run_id
        client.log_metric(run, "loss", loss, timestamp=10, step=1)
        client.log_metric(run, "loss", loss / 2, timestamp=30, step=2)
        client.log_metric(run, "eval/accuracy", 1.0, timestamp=20, step=2)
        client.log_metric(run, "eval/accuracy", 0.5, timestamp=40, step=2)  # logged again, later
    found = histories(file_uri, "theirs")
    assert found[["label", "seed", "step", "timestamp", "loss"]].values.tolist() == [
        ["trl", 0, 1, 10, 0.5],
        ["trl", 0, 2, 40, 0.25],
        ["trl", 1, 1, 10, 0.25],
        ["trl", 1, 2, 40, 0.125],
    ]
    assert found["eval/accuracy"].tolist()[1::2] == [0.5, 0.5]


def test_an_experiment_that_is_not_there_is_refused_with_the_nearest(
    file_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no experiment 'trackd'; did you mean tracked"):
        histories(file_uri, "trackd")
    with pytest.raises(ValueError, match="no experiment 'small'"):
        fetch(make_study(), file_uri, tmp_path)


def test_links_lead_to_the_experiment_and_each_run(file_uri: str, tmp_path: Path) -> None:
    found = links(STUDY, file_uri, "http://127.0.0.1:5000/")
    identity = experiments(file_uri, [STUDY.name])[STUDY.name]
    page, view = f"http://127.0.0.1:5000/#/experiments/{identity}/runs", TRAINING_VIEW
    assert found.experiment == page + view
    assert {("SFT", 0), ("SFT", 1), ("base", 0), ("HPT", 0)} <= set(found.runs)
    for address in found.runs.values():
        run = MlflowClient(file_uri).get_run(address.removeprefix(f"{page}/").removesuffix(view))
        assert run.data.tags[Tag.STUDY] == STUDY.name
    assert links(make_study(), file_uri, "http://x") == Links()
    assert links(STUDY, f"sqlite:///{tmp_path / 'none.db'}", "http://x") == Links()
    assert not (tmp_path / "none.db").exists()


def test_a_report_is_one_run_whose_artifacts_it_is(uri: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("first")
    assert log_report(STUDY, tmp_path, uri)
    (tmp_path / "report.html").write_text("second")
    assert log_report(STUDY, tmp_path, uri)
    client = MlflowClient(uri)
    identity = experiments(uri, [STUDY.name])[STUDY.name]
    (run,) = client.search_runs([identity], f"tags.`{Tag.REPORT}` = '{STUDY.name}'")
    assert run.info.status == "FINISHED"
    found = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(found).read_text() == "second"
    assert not log_report(make_study(), tmp_path, uri)


@pytest.fixture(autouse=True)
def _no_open_connections() -> Iterator[None]:
    """Stores are cached by address; pytest would see their connections close one day, somewhere."""
    yield
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()
