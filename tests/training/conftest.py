"""A trainer on the shipped model, small enough for a second a step."""

from pathlib import Path

import pytest
import torch

from workbench import Data, Recipe, Sampling, Validation, upge
from workbench.records import Run, run_of
from workbench.resources import Resources
from workbench.training.opening import open_trainer
from workbench.training.trainer import Trainer


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture
def threads():
    """Sets how many torch has; that is one number for the process."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def small() -> Recipe:
    return Recipe(
        "arithmetic-1m",
        Data("arithmetic", train=20),
        steps=4,
        questions=4,
        rollouts=4,
        sampling=Sampling(max_tokens=48),
        validation=Validation(every=2, samples=1, problems=5),
        method=upge.hpt(),
    )


@pytest.fixture
def open_run(tmp_path: Path):
    def make(recipe: Recipe, seed: int = 0) -> Run:
        run = run_of(tmp_path / "mlruns", recipe, seed)
        run.create(recipe, seed)
        return run

    return make


@pytest.fixture
def trainer_of(open_run):
    def make(recipe: Recipe, resources: Resources = Resources()) -> Trainer:
        return open_trainer(open_run(recipe), resources)

    return make
