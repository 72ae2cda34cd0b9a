"""The fault points that a run's worker passes in its life, and those that commands pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import RECIPE, attempt

from workbench import Validation, replace
from workbench.records import Run


def new(name: str) -> list[str]:
    """The points of a file that is written whole."""
    return [f"{name}.{stage}" for stage in ("begun", "written", "renamed")]


def lines(name: str) -> list[str]:
    """The points of a record: the second line of it, so that there is one before."""
    return [f"{name}.{stage}:2" for stage in ("torn", "appended")]


KILLED_EARLIER = "metrics.jsonl.appended:3"  # recorded, and its checkpoint not yet saved
AGAIN = [2]  # a step whose checkpoint a finished run keeps neither as the best nor as the last

# The points of the store that MLflow keeps its runs in.
STORE = ["mlflow.db.written", "mlflow.db.moved", "mlflow.db.removed"]

# What came before the attempt that is killed, what it is asked for, and the points that it passes.
LIVES = {
    "from its beginning": [
        *new("spec.json"),
        *new("provenance.json"),
        *new("data.json"),
        *lines("metrics.jsonl"),
        *lines("questions.jsonl"),
        *new("rollouts"),
        *new("checkpoints"),
        *new("progress.json"),
        *new("manifest.json"),
        "checkpoints.hidden",
        "checkpoints.removed",
        *new("history.parquet"),
        *new("questions.parquet"),
        *new("result.json"),
        *new("evaluations"),
    ],
    "after a kill": [
        *new("metrics.dropped.jsonl"),
        *new("metrics.jsonl"),
        *new("questions.dropped.jsonl"),
        *new("questions.jsonl"),
        "rollouts.removed",
    ],
    "recorded while the next step is drawn": [
        *lines("metrics.jsonl"),
        *lines("questions.jsonl"),
        *new("rollouts"),
    ],
    "measured in parts": [*new("counted"), *new("evaluations"), "counted.removed"],
    "with an error": new("failure.json"),
    "after an error": ["failure.json.removed"],
    "with a probe": [*new("asked"), *new("probes")],
    "for a checkpoint": ["checkpoints.moved", "again.hidden", "again.removed"],
    "with a flipped bit": ["checkpoints.hidden", "checkpoints.removed", "checkpoints.moved"],
}


# The attempt that is over when the one of that life begins, and how it ended.
BEFORE: dict[str, tuple[dict[str, Any], int]] = {
    "after a kill": ({"fault": KILLED_EARLIER}, -9),
    "after an error": ({"tokens": 0}, 1),
    "with a probe": ({}, 0),
    "for a checkpoint": ({}, 0),
    "with a flipped bit": ({}, 0),
}
# What the attempt of that life is asked for.
ASKED: dict[str, dict[str, Any]] = {
    "recorded while the next step is drawn": {  # no checkpoint waits for the lines of the others
        "recipe": replace(RECIPE, validation=Validation(every=3, samples=1, problems=1)),
        "checkpoint_every": 3,
    },
    "measured in parts": {"at_once": 2},
    "with an error": {"tokens": 0},
    "with a probe": {"probed": True},
    "for a checkpoint": {"keep": AGAIN},
    "with a flipped bit": {"keep": [RECIPE.steps]},
}


def flip(path: Path) -> None:
    """Flips one bit of a checkpoint's weights."""
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


# What becomes of the run between the two.
BETWEEN: dict[str, Callable[[Run], None]] = {
    "with a flipped bit": lambda run: flip(run.checkpoint_path(RECIPE.steps)),
}


def live(life: str, run: Run, **more: Any) -> int:
    """The attempt of that life, as `harness.attempt`."""
    return attempt(run, **ASKED.get(life, {}), **more)


# The points that the process of a command passes, by when, each in the order in which one process
# after the other dies at them.
COMMANDS = {
    "run": {
        "as it takes the store and its runs": [
            *new(".runner.json"),
            *new("asked"),
            *new("spec.json"),
        ],
        "as a worker dies": new("failure.json"),
        "as it makes MLflow's store": STORE[:2],
        "as it shows its runs": [
            "mlflow.create_experiment",
            "mlflow.set_experiment_tag",
            "mlflow.create_run",
            "mlflow.log_batch",
            "mlflow.log_batch:2",
            "mlflow.log_batch:3",
            *new("history.parquet"),
            "mlflow.log_artifacts",
            "mlflow.set_terminated",
        ],
        "as it reports": [
            *new("tables"),
            *new("report.html"),
            "mlflow.log_artifacts",
            *new("drawn"),
        ],
    },
    "search": {
        "as it asks and reports": [
            "trials.jsonl.torn:2",
            "trials.jsonl.appended",
            *new("figures"),
            "tables.written:4",  # the winner has three, then come those of the search
            "figures.written:2",
        ],
    },
    "export": {
        "as it copies": [*new("trials.jsonl"), *new("history.parquet"), *new("provenance.json")],
    },
    "report": {"as it copies from MLflow": new("tracked")},
    "report again": {"as it copies anew": ["tracked.hidden", "tracked.removed"]},
}
