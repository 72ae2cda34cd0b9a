"""How long `workbench run` takes when all 200 cells of a study are finished.

python benchmarks/rerun.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from workbench.durable import new_file
from workbench.plan import Job, jobs
from workbench.schema import File
from workbench.studyfile import load

STUDY = """
from workbench import Data, Evaluation, Optimizer, Recipe, Study, upge

base = Recipe("arithmetic-1m", Data("arithmetic"), method=upge.sft(), steps=40)
rates = [base.using(upge.sft(), optimizer=Optimizer(1e-4 * n)) for n in range(1, 41)]
study = Study("many", rates, seeds=range(5), evaluation=Evaluation(samples=16, problems=20))
"""


def finish(job: Job) -> None:
    """Writes the records of a cell as if it had been trained."""
    job.run.create(job.recipe, job.seed)
    with new_file(job.run.path / File.METRICS, "w") as handle:
        for step in range(41):
            values = ", ".join(f'"group/metric_{n}": {step / (n + 1)}' for n in range(10))
            handle.write(f'{{"step": {step}, "timestamp": {step}, {values}}}\n')
    problems = [f"p{n}" for n in range(20)]
    for measurement in job.measurements:
        counts = dict.fromkeys(("level", "correct", "tokens", "truncated", "ungradable"), [1] * 20)
        table = pa.table({"problem": problems, "samples": [16] * 20, **counts})
        with new_file(job.run.evaluation_path(measurement)) as handle:
            parquet.write_table(table, handle)
    job.run.finish({"steps": 40, "sampled_tokens": 0, "trained_tokens": 1, "seconds": 1.0})


def main() -> None:
    """Makes the study, runs it once to mirror it, and then three times for the clock."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "many.py"
        file.write_text(STUDY)
        found = jobs(load(file).studies["study"], Path(folder) / "mlruns")
        for job in found:
            finish(job)
        for word in ("mirrored in", *["again in"] * 3):
            began = time.perf_counter()
            command = [sys.executable, "-m", "workbench", "run", str(file)]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            print(f"{len(found)} finished cells, {word} {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
