"""What the live gradient statistics cost, as a share of a whole training step.

    python benchmarks/gradient_stats.py        # 11 steps of each method; --steps, --draws

A step is sampled and graded once, for the statistics have no part in that, and updated from five
times with them and five times without, alternating. Prints processor seconds and the overhead, of a
whole step and of the update alone; then how far `grad/variance` of one step, an estimate by random
signs and layers drawn at random, moves with these: its deviation over `--draws` updates. GRPO, HPT
and LUFFY at their defaults on the embedded model, one thread.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from workbench import Data, Optimizer, Recipe, replace, upge
from workbench.records import run_of
from workbench.resources import Resources
from workbench.training.opening import open_checkpoint
from workbench.training.sampling import grade, sample
from workbench.training.scoring import collate
from workbench.training.sequences import Sequence
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer
from workbench.training.update import update


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--draws", type=int, default=30, help="at least 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Recipe("arithmetic-1m", Data("arithmetic", train=600))
    frozen = replace(base, optimizer=Optimizer(learning_rate=0.0))  # every step the same work
    for method in (upge.grpo(), upge.hpt(), upge.luffy()):
        off, on = (opened(frozen.using(method, gradient_blocks=blocks)) for blocks in (1, 8))
        off.sketch = Nothing()  # type: ignore[assignment]
        found = [measured(off, on, step) for step in range(options.steps + 1)][1:]
        before, without, having = (statistics.median(each) for each in zip(*found, strict=True))
        for what, base in (("whole step", before + without), ("update", without)):
            each = [(b - a) / (base - without + a) for _, a, b in found]
            print(
                f"{method.label:5} {what:10} without {base:.3f} s, with "
                f"{base + having - without:.3f} s, overhead {statistics.median(each):+.1%} "
                f"(median of {len(each)} steps, {min(each):+.1%} to {max(each):+.1%})"
            )
        sequences = drawn(on, 0)
        each = [variance(on, sequences) for _ in range(options.draws)]
        share = statistics.stdev(each) / statistics.mean(each)
        print(f"{method.label:5} grad/variance of one step: deviation {share:.1%} of the mean")


class Nothing:
    """In place of a sketch: without statistics there are not even the norms of the streams."""

    size = 1

    def __call__(self, gradients: object) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(1)


def opened(recipe: Recipe) -> Trainer:
    """A trainer at the beginning of a run of its own."""
    run = run_of(Path(tempfile.mkdtemp()), recipe, 0)
    run.create(recipe, 0)
    return open_checkpoint(run, 0, Resources())


def measured(off: Trainer, on: Trainer, step: int) -> tuple[float, float, float]:
    """Processor seconds of a step: up to the update, and of that without and with statistics."""
    began = time.process_time()
    sequences = drawn(off, step)
    collate(off, sequences)
    before = time.process_time() - began
    pairs = [(updated(off, sequences), updated(on, sequences)) for _ in range(5)]
    without, having = (statistics.median(each) for each in zip(*pairs, strict=True))
    return before, without, having


def drawn(trainer: Trainer, step: int) -> list[Sequence]:
    """The graded sequences of a step."""
    problems = list(trainer.data.train[16 * step : 16 * step + 16])
    return grade(trainer, problems, sample(trainer, problems, step))


def variance(trainer: Trainer, sequences: list[Sequence]) -> float:
    """`grad/variance` of an update, which changes nothing and draws anew."""
    tally = Tally()
    update(trainer, sequences, collate(trainer, sequences), tally)
    return tally.metrics()["grad/variance"]


def updated(trainer: Trainer, sequences: list[Sequence]) -> float:
    """Processor seconds of an update."""
    batch = collate(trainer, sequences)
    began = time.process_time()
    update(trainer, sequences, batch, Tally())
    return time.process_time() - began


if __name__ == "__main__":
    main()
