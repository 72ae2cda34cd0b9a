"""What the live gradient statistics cost: whole training steps with and without them, alternating.

    python benchmarks/gradient_stats.py

Prints processor seconds of each kind of step, the overhead as a share of a whole step, and that of
the update alone. GRPO, HPT and LUFFY at their defaults on the embedded model, one thread.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from workbench import Data, Optimizer, Recipe, replace, upge
from workbench.records import run_of
from workbench.resources import Resources
from workbench.training.sampling import grade, sample
from workbench.training.scoring import collate
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer, open_checkpoint
from workbench.training.update import update

STEPS = 12


def main() -> None:
    """Measures and prints."""
    torch.set_num_threads(1)
    base = Recipe("arithmetic-1m", Data("arithmetic", train=600))
    frozen = replace(base, optimizer=Optimizer(learning_rate=0.0))  # every step the same work
    for method in (upge.grpo(), upge.hpt(), upge.luffy()):
        off, on = (opened(frozen.using(method, gradient_blocks=blocks)) for blocks in (1, 8))
        pairs = [(seconds(off, step), seconds(on, step)) for step in range(1, STEPS + 1)][1:]
        for place, what in enumerate(("whole step", "update")):
            without = [pair[0][place] for pair in pairs]
            having = [pair[1][place] for pair in pairs]
            each = [b / a - 1 for a, b in zip(without, having, strict=True)]
            print(
                f"{method.label:5} {what:10} without {statistics.median(without):.3f} s, with "
                f"{statistics.median(having):.3f} s, overhead {statistics.median(each):+.1%} "
                f"(median of {len(each)} pairs, {min(each):+.1%} to {max(each):+.1%})"
            )


def opened(recipe: Recipe) -> Trainer:
    """A trainer at the beginning of a run of its own."""
    run = run_of(Path(tempfile.mkdtemp()), recipe, 0)
    run.create(recipe, 0)
    return open_checkpoint(run, 0, Resources())


def seconds(trainer: Trainer, step: int) -> tuple[float, float]:
    """Processor seconds of a whole training step, and of its update."""
    problems = list(trainer.data.train[16 * step : 16 * step + 16])
    began = time.process_time()
    sequences = grade(trainer, problems, sample(trainer, problems, step))
    batch = collate(trainer, sequences)
    middle = time.process_time()
    update(trainer, sequences, batch, Tally())
    return time.process_time() - began, time.process_time() - middle


if __name__ == "__main__":
    main()
