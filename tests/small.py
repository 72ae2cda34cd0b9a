"""A small study with run directories of deterministic, plausible numbers that nothing trained."""

from math import exp
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from workbench.plan import measurements
from workbench.problems.loaders import load
from workbench.recipe import Data, Evaluation, Objective, Probe, Recipe
from workbench.records import Run, run_of, write_lines
from workbench.schema import File
from workbench.study import Cell, Study


class Named(Objective):
    """A method by name, for records that nothing trained."""

    name: str

    @property
    def label(self) -> str:
        return self.name

    @property
    def samples_rollouts(self) -> bool:
        return self.name != "SFT"

    @property
    def needs_demonstrations(self) -> bool:
        return False


# Final skill, speed of learning, share of demonstrations: enough to tell arms apart.
ARMS = {
    "base": (-1.6, 1.0, None),
    "SFT": (0.2, 3.0, 1.0),
    "GRPO": (0.0, 2.0, 0.0),
    "SFT->GRPO": (0.5, 2.0, 0.0),
    "LUFFY": (0.45, 2.5, 0.125),
    "SRFT": (0.4, 2.2, 0.125),
    "HPT": (1.1, 2.6, 0.3),
}
STEPS = 60
SUITES = ("chain", "nesting", "composed", "words")


def make_study(name: str = "small", arms: tuple[str, ...] = tuple(ARMS), **fields: object) -> Study:
    """A study of those arms over four suites, 16 samples a problem and 64 on `composed`."""
    first = Recipe("arithmetic-1m", Data("arithmetic"), steps=STEPS, updates_per_batch=2)
    recipes = {arm: first.using(None if arm == "base" else Named(arm)) for arm in arms}
    if "SFT->GRPO" in arms:
        recipes["SFT->GRPO"] = recipes["SFT->GRPO"].start_from(first.using(Named("SFT")))
    evaluation = Evaluation(samples=16, more=(("composed", 64),), suites=SUITES)
    return Study(name, recipes, **{"seeds": range(3), "evaluation": evaluation, **fields})


def record(study: Study, root: Path, skip: tuple[tuple[str, int], ...] = ()) -> None:
    """Writes every cell's run directory, but for those that are skipped."""
    for cell in study.cells:
        if (cell.label, cell.seed) not in skip and not (
            cell.recipe.method is None and cell.seed > 0
        ):
            record_run(study, cell, run_of(root, cell.recipe, cell.seed))


def record_run(study: Study, cell: Cell, run: Run) -> None:
    random = np.random.default_rng([cell.seed, *cell.label.encode()])
    run.create(cell.recipe, cell.seed)
    if cell.recipe.method is not None:
        record_training(cell, run, random)
    skill = ARMS[cell.label][0] + random.normal(0, 0.12)
    for measurement in measurements(study, cell.recipe):
        record_evaluation(cell, run, measurement.suite, (measurement, skill, random))
    run.finish({"steps": STEPS})


def record_training(cell: Cell, run: Run, random: np.random.Generator) -> None:
    skill, speed, offline = ARMS[cell.label]
    assert offline is not None
    lines, questions = [], []
    for step in range(1, STEPS + 1):
        share = 1 - exp(-speed * step / STEPS)
        solved = 1 / (1 + exp(1.6 - (1.6 + skill) * share))
        noisy = float(np.clip(solved + random.normal(0, 0.03), 0, 1))
        row = {
            "step": step,
            "timestamp": 1_700_000_000_000 + 1000 * step,
            "reward/mean": noisy,
            "policy/entropy": 0.2 + 0.8 * (1 - share) + random.normal(0, 0.02),
            "length/all": 40 + 40 * share + random.normal(0, 2),
            "length/wrong": None if step % 7 == 0 else 50.0,
            "offline/questions": (gated := offline if offline != 0.3 else 0.7 * (1 - share) + 0.1),
            "offline/sequences": gated / (gated + 8 * (1 - gated)),
            "optim/gradient_norm": 0.3 + exp(random.normal(-1, 0.4)),
            "ratio/clip_fraction": abs(random.normal(0.02, 0.005)),
            "policy/kl_old": abs(random.normal(2e-4, 4e-5)),
            "budget/sampled_tokens": 0.0 if cell.label == "SFT" else 9_000.0 * step,
            "budget/trained_tokens": 5_000.0 * step,
            "time/step": 1.5,
        }
        if step % 10 == 0:
            row["validation/pass_at_1"] = noisy * 0.95
            row |= {f"validation/level_{n}": max(0.0, noisy - 0.08 * n) for n in range(1, 6)}
        lines.append(row)
        questions.append(
            {
                "step": step,
                "epoch": 0,
                "questions": [f"q{step}", f"q{step + 1}"],
                "levels": [step % 5 + 1, (step + 1) % 5 + 1],
                "correct": [None, None] if cell.label == "SFT" else [3, 8],
                "rollouts": 8,
                "alpha": [0.0, 1.0],
                "beta": [1.0, 0.0],
            }
        )
    write_lines(run.path / File.METRICS, lines)
    write_lines(run.path / File.QUESTIONS, questions)


def record_evaluation(cell: Cell, run: Run, suite: str, with_: tuple) -> None:
    measurement, skill, random = with_
    found = {s.name: s for s in load(cell.recipe.data).suites}[suite]
    # Hardness belongs to the problem, so that arms are compared on the same ones.
    hardness = np.random.default_rng(list(suite.encode())).normal(
        0.6 * SUITES.index(suite), 1.3, 40
    )
    chance = 1 / (1 + np.exp(hardness - skill))
    problems = found.problems[:40]
    n = measurement.samples
    frame = pd.DataFrame(
        {
            "problem": [problem.id for problem in problems],
            "level": [problem.level for problem in problems],
            "samples": n,
            "correct": random.binomial(n, chance[: len(problems)]),
            "tokens": n * 50,
            "truncated": n // 8,
            "ungradable": 0,
        }
    )
    path = run.evaluation_path(measurement)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)


def record_probe(run: Run, probe: Probe, variance: float) -> None:
    """A table as a probe leaves it, of three groups of questions that agree."""
    same = {"step": probe.step, "distance": probe.distance, "band_low": -1.0, "band_high": 1.0,
            "solve_rate": 0.5, "questions": 4, "inner": 0.5, "square": 1.0, "truth_square": 1.0,
            "variance": variance, "within": 1.0}  # fmt: skip
    rows = [
        {**same, "mu": mu, "method": method.label, "left_out": left_out}
        for mu in probe.mu
        for method in probe.methods
        for left_out in (-1, 0, 1, 2)
    ]
    note = {"sketch_error": "0.01", "reference_sketch_error": "0.02"}
    path = run.probe_path(probe)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(note), path)
