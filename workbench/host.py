"""What a study takes of a machine beside its GPUs: disk for checkpoints, and memory.

P is the parameters of a model, as in `workbench.footprint`. An evaluation writes no weights: it
reads the last checkpoint where it lies. Records, and their copies in MLflow, are small beside one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from workbench.footprint import Line, memory, shape_of
from workbench.plan import Job
from workbench.recipe import Recipe
from workbench.resources import Resources
from workbench.schema import File

CHECKPOINT = 12  # bytes a parameter: its weight and AdamW's two moments, in float32


def disk(jobs: Sequence[Job], resources: Resources, cells: int = 1) -> list[Line]:
    """What checkpoints will take that are not there yet, of runs that are not finished.

    So many cells at once write one more, before they remove an older one. Of models whose shape is
    not known here nothing is said.
    """
    runs: Counter[tuple[int, int, str]] = Counter()
    for job in jobs:
        shape = shape_of(job.recipe.base)
        if shape is not None and job.recipe.method is not None and not job.run.finished:
            count, which = _kept(job, resources)
            runs[shape.parameters, count, which] += 1
    lines = [
        Line(
            "checkpoints",
            number * count * CHECKPOINT * p,
            f"{number} runs x {count} ({which}) x {CHECKPOINT} P, P = {p:,}",
        )
        for (p, count, which), number in runs.items()
    ]
    largest, writing = max((p for p, _, _ in runs), default=0), min(cells, runs.total())
    written = f"{writing} at once x {CHECKPOINT} P"
    one_more = Line("checkpoints being written", writing * CHECKPOINT * largest, written)
    return [*lines, one_more] if lines else []


def _kept(job: Job, resources: Resources) -> tuple[int, str]:
    """How many checkpoints a run has in the end beside those that are there, and which."""
    recipe = job.recipe
    kept = {
        "newest": resources.keep_last,
        "best": 1,
        "asked for": sum(step != recipe.steps for step in job.keep),
        "to go back to": int(recipe.optimizer.nonfinite == "rollback"),
    }
    there = len(list((job.run.path / File.CHECKPOINTS).glob("step-*")))
    which = ", ".join(f"{number} {what}" for what, number in kept.items() if number)
    less = f"; {there} are there" if there else ""
    return max(0, min(recipe.steps, sum(kept.values())) - there), which + less


def host(recipes: Mapping[str, Recipe], resources: Resources, on_gpu: bool) -> Line | None:
    """What a cell takes of the machine's memory at most; None where no shape is known here.

    Beside GPUs it is while weights are read, in float32 and whole by every process, for training
    or for an evaluation, or while a checkpoint is written; without any it is what training takes.
    """
    found = [_host(recipe, resources, on_gpu) for recipe in recipes.values()]
    return max((line for line in found if line), key=lambda line: line.bytes, default=None)


def _host(recipe: Recipe, resources: Resources, on_gpu: bool) -> Line | None:
    shape, n = shape_of(recipe.base), resources.processes
    if shape is None:
        return None
    p = shape.parameters
    if not on_gpu:
        peak = memory(recipe, resources, shape, None).peak
        return Line("memory", n * peak, f"{n} processes x what training holds at the peak")
    read = Line("memory", 4 * n * p, f"{n} processes x 4 P, weights while they are read")
    # Shards are put together in it before the first file, else a file's tensors are copied to it.
    written = CHECKPOINT if n > 1 else 8
    parts = "weights and moments" if n > 1 else "moments"
    write = Line("memory", written * p, f"{written} P, {parts} while a checkpoint is written")
    return max(read, write, key=lambda line: line.bytes)
