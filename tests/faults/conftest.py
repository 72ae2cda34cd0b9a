"""Runs that others are compared with, or that they go on from: each is made once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import attempt
from lives import BEFORE, BETWEEN, live

from workbench.records import Run

Make = Callable[[str], Run]


@pytest.fixture(scope="session")
def _before(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Run] = {}

    def of(life: str) -> Run:
        if life not in made:
            made[life] = Run(tmp_path_factory.mktemp("before") / "seed-0")
            fields, status = BEFORE[life]
            assert attempt(made[life], **fields) == status
        return made[life]

    return of


@pytest.fixture
def begun(tmp_path: Path, _before: Make) -> Make:
    """A run of the test's own at the beginning of a life: a copy of one that came so far."""

    def of(life: str) -> Run:
        run = Run(tmp_path / "seed-0")
        _begin(run, life, _before)
        return run

    return of


def _begin(run: Run, life: str, before: Make) -> None:
    if life in BEFORE:
        shutil.copytree(before(life).path, run.path)
    if life in BETWEEN:
        BETWEEN[life](run)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, _before: Make) -> Make:
    """The run that each life leads to, with the points that it passed."""
    made: dict[str, Run] = {}

    def of(life: str) -> Run:
        if life not in made:
            made[life] = run = Run(tmp_path_factory.mktemp("whole") / "seed-0")
            _begin(run, life, _before)
            assert live(life, run) == (1 if life == "with an error" else 0)
        return made[life]

    return of
