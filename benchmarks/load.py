"""How long it takes to load the histories of 200 runs, 50 metrics and 200 steps, after imports.

python benchmarks/load.py
"""

import random
import tempfile
import time
from pathlib import Path

import analysis
from workbench import Data, Evaluation, Recipe, Study, plan, upge
from workbench.compact import write_tables
from workbench.records import write_lines
from workbench.schema import File
from workbench.tracking.points import write_compact

RUNS, METRICS, STEPS = 200, 50, 200


def record(study: Study, root: Path) -> None:
    """Writes every run's record with numbers of the length that trainers write."""
    numbers = random.Random(0)
    keys = [f"group_{n % 7}/metric_{n}" for n in range(METRICS)]
    for job in plan.jobs(study, root):
        job.run.create(job.recipe, job.seed)
        rows = [
            {"step": step, "timestamp": 1_700_000_000_000 + step}
            | {key: numbers.random() for key in keys}
            for step in range(1, STEPS + 1)
        ]
        write_lines(job.run.path / File.METRICS, rows)
        job.run.finish({"steps": STEPS})


def timed(study: Study, root: Path) -> str:
    """Seconds to find the runs and read their histories, and how large the frame is."""
    began = time.perf_counter()
    history = analysis.runs(study, root).history
    seconds = time.perf_counter() - began
    assert history.shape == (RUNS * STEPS, METRICS + 4)
    return f"{seconds:.2f} s"


def main() -> None:
    """Prints the seconds from run directories, with tables beside their lines and without."""
    base = Recipe("arithmetic-1m", Data("arithmetic"), upge.sft(), steps=STEPS)
    study = Study("many", {"SFT": base}, range(RUNS), Evaluation(suites=("chain",)))
    with tempfile.TemporaryDirectory() as folder:
        root, compact = Path(folder) / "mlruns", Path(folder) / "compact"
        record(study, root)
        print(f"{RUNS} runs x {METRICS} metrics x {STEPS} steps:", end=" ")
        print(f"lines alone {timed(study, root)},", end=" ", flush=True)
        for job in plan.jobs(study, root):
            write_tables(job.run, job.run.path)  # as a worker does when a run ends
            copy = compact / job.run.path.relative_to(root)
            copy.mkdir(parents=True)
            write_compact(job, copy)
        print(f"run directories {timed(study, root)}, compact copies {timed(study, compact)}")


if __name__ == "__main__":
    main()
