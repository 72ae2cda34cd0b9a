"""Can one CPU thread make, in under half an hour, a base model that leaves something to learn?

    python -m studies.base_model /tmp/arithmetic-1m     # pretrain, measure, compare with the record
    python -m studies.base_model --check FOLDER         # measure and compare a model that exists

Wanted: a model that knows the digit facts and a short worked format, whose Pass@64 is far above its
Pass@1, and that almost never works the right side of an expression first.

Answer: yes, but for nesting. In 23 minutes: every digit fact, Pass@1 of 63% on chains of two and
24% on chains of four operations (Pass@64 is 100% on both), 29% in words, 30% on equations, and
about half of the answers worked. Precedence, nesting and their composition stay at 0.0% (Pass@64
at most 2.5%): more nesting was wanted, since half of those problems agree with working from the
left.
"""

import logging
import sys
from pathlib import Path

import torch

from workbench.problems.habit import Glimpses, Mixture
from workbench.training.pretrain import Architecture, Pretraining, check, rebuild

recipe = Pretraining(
    seed=0,
    tokens=3_840_000,
    rows=4,
    row_length=128,
    learning_rate=2e-3,
    warmup=0.02,
    weight_decay=0.01,
    gradient_norm=1.0,
    primer=20_000,
    mixture=Mixture(
        products=0.09,
        parentheses=0.06,
        words=0.07,
        equations=0.04,
        direct=0.38,
        long_worked=0.30,
        wrong_steps=0.20,
    ),
    rare=Glimpses(rare=0.35, precedence=0.45, nesting=0.35, direct=0.25),
    rare_tokens=2_304_000,
    rare_learning_rate=1.5e-3,
    architecture=Architecture(
        layers=4, width=128, heads=4, hidden=512, positions=512, initial_deviation=0.08
    ),
)


def main(arguments: list[str]) -> None:
    """Rebuilds the base model unless `--check` is given; exits with 1 if it is not the same."""
    *options, folder = arguments or [""]
    if not folder or options not in ([], ["--check"]):
        raise SystemExit("usage: python -m studies.base_model [--check] FOLDER")
    torch.set_num_threads(1)  # as the record was made: sums over threads differ in the last bits
    if not options:
        rebuild(recipe, Path(folder))
    comparisons = check(Path(folder))
    for comparison in comparisons:
        logging.info("%s", comparison)
    sys.exit(not all(comparison.same for comparison in comparisons))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
