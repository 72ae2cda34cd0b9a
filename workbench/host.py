"""What a study takes of a machine beside its GPUs: disk for checkpoints, and memory.

P is the parameters of a model, as in `workbench.footprint`. An evaluation writes no weights: it
reads the last checkpoint where it lies. Records, and their copies in MLflow, are small beside one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from workbench.footprint import Line, Shape, memory, shape_of, total
from workbench.plan import Job
from workbench.recipe import Probe, Recipe
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


def host(
    recipes: Mapping[str, Recipe], resources: Resources, on_gpu: bool, probes: Sequence[Probe] = ()
) -> Line | None:
    """What a cell takes of the machine's memory at most; None where no shape is known here.

    Beside GPUs it is while weights are read, in float32 and whole by every process, for training,
    an evaluation or a probe, or while a checkpoint is written; without any it is what training
    takes, or a probe, which comes after it.
    """
    lines: list[Line] = []
    for recipe in recipes.values():
        shape = shape_of(recipe.base)
        if shape is not None and on_gpu:
            lines += _beside_gpus(shape.parameters, resources.processes)
        elif shape is not None:
            lines += _without_gpus(recipe, resources, shape, probes)
    return max(lines, key=lambda line: line.bytes, default=None)


def _without_gpus(
    recipe: Recipe, resources: Resources, shape: Shape, probes: Sequence[Probe]
) -> tuple[Line, Line]:
    n = resources.processes
    trained = memory(recipe, resources, shape, None)
    probed = memory(recipe, resources, shape, None, probes).probe
    said = ", ".join(f"{line.what} {line.formula}" for line in probed)
    return (
        Line("memory", n * trained.peak, f"{n} processes x what training holds at the peak"),
        Line("memory", total(probed), f"what a probe holds, in one process: {said}"),
    )


def _beside_gpus(p: int, n: int) -> tuple[Line, Line]:
    read = Line("memory", 4 * n * p, f"{n} processes x 4 P, weights while they are read")
    # Shards are put together in it before the first file, else a file's tensors are copied to it.
    written = CHECKPOINT if n > 1 else 8
    parts = "weights and moments" if n > 1 else "moments"
    write = Line("memory", written * p, f"{written} P, {parts} while a checkpoint is written")
    return read, write
