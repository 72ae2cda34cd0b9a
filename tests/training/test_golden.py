"""Short trainings repeat the metrics that are stored here: no change moves results unnoticed.

Weights are float64, so that another processor or another order of sums changes the last of sixteen
digits and no sampled token. The tolerance is ten times what float32 throughout, or weights that are
off by 1e-6 of themselves, were seen to do. A change that is meant to change results remakes them:

    python tests/training/test_golden.py
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch

from workbench import Data, Optimizer, Recipe, Sampling, Validation, replace, upge
from workbench.records import run_of
from workbench.resources import Resources
from workbench.schema import WALL_CLOCK
from workbench.training.loop import train
from workbench.training.opening import open_trainer

STORED = Path(__file__).with_name("golden.json")
TOLERANCE = {"rel": 1e-3, "abs": 1e-5}
METHODS = ("grpo", "ppo", "hpt")

RECIPE = Recipe(
    "arithmetic-1m",
    Data("arithmetic", train=600),
    steps=3,
    questions=6,
    rollouts=6,
    updates_per_batch=2,
    sampling=Sampling(max_tokens=48),
    optimizer=Optimizer(learning_rate=1e-4),
    validation=Validation(every=3, samples=1, problems=5),
)


def trajectory(method: str, root: Path) -> list[dict[str, float | None]]:
    """The metrics of each step, but for those of the clock."""
    recipe = replace(RECIPE, method=upge.NAMED[method]())
    run = run_of(root, recipe, 0)
    run.create(recipe, 0)
    trainer = open_trainer(run, Resources(device="cpu"))
    trainer.policy.model.double()
    train(trainer, run)
    dropped = ("timestamp", *WALL_CLOCK)
    return [{k: v for k, v in row.items() if not k.startswith(dropped)} for row in run.rows()]


@pytest.mark.parametrize("method", METHODS)
def test_a_training_repeats_its_stored_metrics(method: str, tmp_path: Path) -> None:
    found, stored = trajectory(method, tmp_path), json.loads(STORED.read_text())[method]
    assert len(found) == len(stored) == 1 + RECIPE.steps  # step 0 is before training
    for row, wanted in zip(found, stored, strict=True):
        assert row == pytest.approx(wanted, **TOLERANCE), f"step {row['step']}"


def remake() -> None:
    """Stores what the code computes now."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        stored = {method: trajectory(method, Path(root)) for method in METHODS}
    STORED.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    remake()
