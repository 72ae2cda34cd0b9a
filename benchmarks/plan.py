"""How long it takes to plan 1,000 cells, after imports.

python benchmarks/plan.py
"""

import tempfile
import time
from pathlib import Path

from workbench import Data, Recipe, Study, grid, upge
from workbench.plan import cost, jobs, status
from workbench.problems import loaders
from workbench.validate import validate


def main() -> None:
    """Declares, validates and plans a study of 200 arms and 5 seeds, and prints the seconds."""
    base = Recipe("arithmetic-1m", Data("arithmetic"), updates_per_batch=2)
    estimators = grid(
        upge.Estimator,
        mask=[upge.RatioClip(0.05 * n) for n in range(1, 11)],
        denominator=[upge.CurrentPolicy(), upge.OldPolicy(), upge.Unit(), upge.Capped(2.0)],
        advantage=[upge.GroupCentered(), upge.GroupNormalized(), upge.Signed(), upge.Reward()],
        likelihood=[upge.Plain()],
    )
    loaders.load(base.data)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        study = Study("many", [base.using(e) for e in estimators], seeds=range(7))
        declared = time.perf_counter()
        validate(study)
        found = jobs(study, Path(folder))
        waiting = sum(status(job).kind == "waiting" for job in found)
        cost(found, Path(folder))
        planned = time.perf_counter()
    print(f"{waiting} cells: declared in {declared - began:.2f} s, ", end="")
    print(f"planned in {planned - declared:.2f} s")


if __name__ == "__main__":
    main()
