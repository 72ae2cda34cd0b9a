"""The MLflow pages that `workbench ui` serves, opened in a real headless Chromium.

WORKBENCH_SCREENSHOTS names a folder to keep a picture of each page in.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from small import make_study, record
from system import apt_install, attempt

from workbench import plan
from workbench.tracking import Mirror

pytestmark = pytest.mark.integration

QUESTION = "Do methods that mix demonstrations and rollouts beat either alone?"
STUDY = make_study("pages", arms=("SFT", "GRPO", "HPT"), seeds=[0], question=QUESTION)
PATIENCE = 300_000  # milliseconds that a page may take on a busy machine
CURVES = "path.js-line"  # what Plotly draws of a metric that has points


def chromium(own: str) -> str:
    """The system's Chromium, or else Playwright's own, installed where that works."""

    def found() -> str | None:
        return shutil.which("chromium") or (own if Path(own).exists() else None)

    if not found():
        apt_install("chromium")
    if not found():
        libraries = ["--with-deps"] if os.geteuid() == 0 else []
        attempt(sys.executable, "-m", "playwright", "install", *libraries, "chromium")
    path = found()
    if path is None:
        pytest.skip("no Chromium: neither apt nor Playwright could install it")
    return path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mirror]]:
    """The address that `workbench ui` prints for the study, once it is served, and its mirror."""
    root = tmp_path_factory.mktemp("project") / "mlruns"
    record(STUDY, root)
    mirror = Mirror(STUDY, root, plan.jobs(STUDY, root))
    assert mirror.close() == {}
    file = root.parent / "study.py"
    file.write_text("from test_ui import STUDY\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "workbench", "ui", str(file), "--root", str(root)]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*command, "--port", port],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as server:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        try:
            address = next(line for line in lines if line.startswith("pages: "))
            next(line for line in lines if "startup complete" in line)
            yield address.removeprefix("pages: ").strip(), mirror
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        path = chromium(playwright.chromium.executable_path)
        # Chromium's own sandbox does not start as root; the pages are ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of the test's own: one that still loads what it showed before changes its address."""
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


@pytest.fixture
def shoot(page: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Takes a picture of the page as the test leaves it."""
    yield
    folder = Path(os.environ.get("WORKBENCH_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"{request.node.name}.png")


def run_ids(mirror: Mirror, *names: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(mirror.uri)
    found = client.get_experiment_by_name(STUDY.name)
    assert found is not None
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([found.experiment_id])}
    return [runs[name] for name in names]


@pytest.mark.usefixtures("shoot")
def test_the_experiment_opens_with_its_question_and_its_runs(page, experiment):
    page.goto(experiment[0])
    for label in STUDY.recipes:
        page.get_by_text(f"{label} · seed 0", exact=True).first.wait_for()
    page.get_by_text(QUESTION).first.wait_for()


@pytest.mark.usefixtures("shoot")
def test_charts_have_a_curve_of_every_run_by_default(page, experiment):
    page.goto(f"{experiment[0]}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("policy/entropy")
    page.get_by_text("policy", exact=True).first.wait_for()  # the section of the group
    page.locator(CURVES).nth(len(STUDY.recipes) - 1).wait_for(state="attached")
    for curve in page.locator(CURVES).all():
        assert curve.get_attribute("d").count("L") > 10  # a line through many points


@pytest.mark.usefixtures("shoot")
def test_two_runs_are_compared(page, experiment):
    address, mirror = experiment
    pages, _, rest = address.partition("#/experiments/")
    chosen = quote(json.dumps(run_ids(mirror, "GRPO · seed 0", "HPT · seed 0")))
    experiments = quote(json.dumps([rest.partition("/")[0]]))
    page.goto(f"{pages}#/compare-runs?runs={chosen}&experiments={experiments}")
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    for name in ("GRPO · seed 0", "HPT · seed 0", "method.name"):
        page.get_by_text(name, exact=True).first.wait_for(state="attached")


@pytest.mark.usefixtures("shoot")
def test_an_artifact_opens(page, experiment):
    address, mirror = experiment
    (chosen,) = run_ids(mirror, "HPT · seed 0")
    runs, _, view = address.partition("?")
    page.goto(f"{runs}/{chosen}/artifacts/recipe.txt?{view}")
    page.get_by_text("method.name = HPT").first.wait_for()
