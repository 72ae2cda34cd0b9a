"""Where the time of the quickstart goes: of the whole command, and of each cell.

    python benchmarks/quickstart.py            # a Markdown table

`workbench run studies/quickstart.py` in an empty folder, by the clock; what each cell took of it is
read from its records: seconds of the parts of its steps, and by when its files were written those
of the suites that it was measured on and the rest (start, loading, grading, checkpoints). Cells run
side by side, so that they add up to more than the command; what follows the last one is drawing.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workbench.plan import jobs
from workbench.records import Run
from workbench.schema import File
from workbench.studyfile import load

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.py"
PARTS = ("time/rollout", "time/estimate", "time/update", "time/validation")


def main() -> None:
    """Runs it and prints."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        command = [sys.executable, "-m", "workbench", "run", str(STUDY)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        took = time.time() - began
        (study,) = load(STUDY).studies.values()
        cells = jobs(study, Path(folder) / "mlruns")
        print("| cell | rollouts | scores | updates | validation | suites | rest | together |")
        print("| --- " + "| ---: " * 7 + "|")
        rows = {job.label: seconds(job.run) for job in cells}
        rows["together"] = [sum(each) for each in zip(*rows.values(), strict=True)]
        for label, parts in rows.items():
            print("|", " | ".join([label, *(f"{part:.1f}" for part in [*parts, sum(parts)])]), "|")
        last = max(written(job.run, File.EVALUATIONS) for job in cells)
        print(f"the command: {took:.1f} s, {began + took - last:.1f} s of it after the last cell")


def seconds(run: Run) -> list[float]:
    """Of its steps by part, of the suites, and of what is neither."""
    rows = run.rows()
    steps = [sum(row.get(part, 0.0) for row in rows) for part in PARTS]
    finished, measured = written(run, File.RESULT), written(run, File.EVALUATIONS)
    begun = written(run, File.PROVENANCE)
    return [*steps, measured - finished, finished - begun - sum(steps)]


def written(run: Run, what: str) -> float:
    """When a file was written, or the last one of a folder."""
    path = run.path / what
    return max(each.stat().st_mtime for each in (path, *path.glob("*.parquet")) if each.is_file())


if __name__ == "__main__":
    main()
