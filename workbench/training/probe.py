"""The probe: bias and variance of many estimators at one checkpoint of a real model.

What `exact` enumerates is measured here: all methods on common rollouts, gradients through a sketch
whose error is measured as it goes, moments without bias and with jackknife intervals over the
questions.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from torch import Tensor

from workbench import upge
from workbench.durable import new_file
from workbench.problems import Problem
from workbench.recipe import Probe, replace
from workbench.records import Run
from workbench.rollout import Request
from workbench.schema import File
from workbench.training.gradient import Sketch
from workbench.training.policy import Policy
from workbench.training.randomness import seed_of
from workbench.training.sampling import answered, grade, prompt_of, sample
from workbench.training.scoring import collate, score_rows, unscored
from workbench.training.sequences import Sequence
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer
from workbench.training.update import update
from workbench.upge import replicates
from workbench.upge.replicates import Found, Sample

log = logging.getLogger(__name__)

EVERY = 16  # gradients of which one is compared with its sketch
SAME = 0  # the seed of what is measured: probes that differ in their own measure one truth
TOLD = 64  # sequences after which people are told how far it is

Watch = Callable[[int, int], object]


def probe(run: Run, trainer: Trainer, plan: Probe, get_on: Callable[[], object] = bool) -> None:
    """Measures the trainer's checkpoint and records the moments.

    The trainer's policy is moved by `plan.distance` optimizer steps and of no use after that.
    `get_on` is called before every gradient; where it raises, the probe leaves nothing.
    """
    began = time.perf_counter()

    def watch(done: int, of: int) -> None:
        get_on()
        if done % TOLD == 0:
            where = f"probe of step {plan.step}, distance {plan.distance}"
            run.tell(f"{where}: {done:,} of {of:,} sequences")

    problems = _drawn(trainer, plan)
    log.info("probe at step %d, distance %d: %s", plan.step, plan.distance, plan.cost)
    old = _answers(trainer, problems, plan, "rollouts", plan.replicates * plan.rollouts)
    old_batch = _score(trainer, old)
    if plan.distance:
        _move(trainer, plan)
    gradients = PolicyGradients(trainer.policy, old, plan.sketch, watch)
    batch = _score(trainer, old) if plan.distance else old_batch
    before = {"old_logprobs": old_batch.logprobs, "old_entropy": old_batch.old_entropy}
    batch = dataclasses.replace(batch, **before)
    here = Sample(batch, _steps(old, plan), gradients)
    truth = reference = None
    if plan.distance:
        answers = _answers(trainer, problems, plan, "reference", plan.replicates * plan.rollouts)
        truth = PolicyGradients(trainer.policy, answers, plan.sketch, watch)
        reference = Sample(_score(trainer, answers), _steps(answers, plan), truth)
    rates = _solve_rates(trainer, problems, plan)
    found = list(_measure(trainer, plan, here, reference, rates))
    note = {
        "probe": str(plan),
        "sketch_error": f"{gradients.sketch_error:.4f}",
        "reference_sketch_error": f"{(truth or gradients).sketch_error:.4f}",
        "seconds": f"{time.perf_counter() - began:.0f}",
    }
    log.info(
        "probe done in %s s, sketch error %s, of the reference %s",
        note["seconds"],
        note["sketch_error"],
        note["reference_sketch_error"],
    )
    with new_file(run.probe_path(plan), point=File.PROBES) as handle:
        table = pa.Table.from_pylist(found).replace_schema_metadata(note)
        parquet.write_table(table, handle, compression="zstd")


# --- gradients ------------------------------------------------------------------------------------


@dataclass
class PolicyGradients:
    """Gradients of single sequences of a real policy, through a sketch.

    Attributes:
        policy: the current one; its parameters must not change while this is used.
        sequences: by row.
        size: of the sketch; None keeps gradients whole.
        watch: told before every sequence how many are done, and of how many.
        errors: of squared lengths in the sketch against the whole gradient, relative, of some.
        gradients: how many were taken, of how many rows.
    """

    policy: Policy
    sequences: list[Sequence]
    size: int | None
    watch: Watch
    errors: list[float] = field(default_factory=list)
    gradients: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        self._parameters = list(self.policy.model.parameters())
        self._sketch = Sketch(self._parameters, self.size)

    def __call__(self, row: int, weights: Tensor) -> Tensor:
        """See `replicates.Gradients`."""
        self.watch(self.rows, len(self.sequences))
        self.rows += 1
        if not len(weights):
            return torch.zeros(0, self._sketch.size, device=self.policy.device)
        layout = self.policy.lay_out([self.sequences[row]])
        logprobs = self.policy.score(layout).logprobs[0]
        return torch.stack([self._one(logprobs, each[: len(logprobs)]) for each in weights])

    def _one(self, logprobs: Tensor, weights: Tensor) -> Tensor:
        whole = torch.autograd.grad(
            logprobs, self._parameters, weights, retain_graph=True, allow_unused=True
        )
        found = self._sketch(whole)
        self.gradients += 1
        if self.gradients % EVERY == 1:
            square = sum(float(g.square().sum()) for g in whole if g is not None)
            self.errors.append(float(found @ found) / square - 1)
        return found

    @property
    def sketch_error(self) -> float:
        """Root mean square of the relative error of a squared length, as measured."""
        return float(np.sqrt(np.mean(np.square(self.errors)))) if self.errors else 0.0


# --- samples --------------------------------------------------------------------------------------


def _drawn(trainer: Trainer, plan: Probe) -> list[Problem]:
    """Training questions at random, by the probe's seed, and none that the policy is moved by."""
    others = len(trainer.data.train) - trainer.recipe.questions
    count = others if others >= plan.questions else len(trainer.data.train)
    random = Random(seed_of(plan.seed, "probe", "questions"))
    return [
        trainer.data.train[place] for place in sorted(random.sample(range(count), plan.questions))
    ]


def _answers(
    trainer: Trainer,
    problems: list[Problem],
    plan: Probe,
    name: str,
    samples: int,
    *,
    seed: int | None = None,
    demonstrations: bool = True,
) -> list[Sequence]:
    """Graded rollouts of the policy as it is; after each question's own its demonstration, or not.

    Rollouts of one name are drawn independently of those of another, by the probe's seed or a
    given one.
    """
    seed = plan.seed if seed is None else seed
    requests = [
        Request(prompt_of(trainer, p), samples, seed_of(seed, "probe", name, p.id))
        for p in problems
    ]
    return grade(trainer, problems, answered(trainer, problems, requests), demonstrations)


def _score(trainer: Trainer, sequences: list[Sequence]) -> upge.TokenBatch:
    """All sequences as a batch, under the policy as it is."""
    batch = unscored(trainer, sequences)
    score_rows(trainer, sequences, batch, list(range(len(sequences))))
    return batch


def _steps(sequences: list[Sequence], plan: Probe) -> list[Tensor]:
    """The rows of each replicate: its group of every question's rollouts, and demonstrations."""
    rows: list[list[int]] = [[] for _ in range(plan.replicates)]
    place: dict[int, int] = {}
    for row, sequence in enumerate(sequences):
        if sequence.demonstration:
            for each in rows:
                each.append(row)
        else:
            number = place.get(sequence.question, 0)
            rows[number // plan.rollouts].append(row)
            place[sequence.question] = number + 1
    return [torch.tensor(each) for each in rows]


def _solve_rates(trainer: Trainer, problems: list[Problem], plan: Probe) -> Tensor:
    """The current policy's solve rate of each question, from answers that nothing else uses."""
    samples = plan.difficulty_samples
    answers = _answers(
        trainer, problems, plan, "difficulty", samples, seed=SAME, demonstrations=False
    )
    right = torch.zeros(len(problems))
    for sequence in answers:
        right[sequence.question] += sequence.correct
    return right / samples


def _move(trainer: Trainer, plan: Probe) -> None:
    """Takes the policy `distance` optimizer steps along, over one batch, as training would."""
    recipe = trainer.recipe
    along = plan.along or recipe.method
    moving = replace(recipe, method=along, updates_per_batch=plan.distance)
    moved = Trainer(**{**vars(trainer), "recipe": moving})
    problems = list(trainer.data.train[-recipe.questions :])
    sequences = grade(moved, problems, sample(moved, problems, seed_of(SAME, "distance")))
    update(moved, sequences, collate(moved, sequences), Tally())


# --- results --------------------------------------------------------------------------------------


def _measure(
    trainer: Trainer, plan: Probe, here: Sample, reference: Sample | None, rates: Tensor
) -> Iterator[dict[str, object]]:
    """Rows of the table: all questions (`left_out` -1), then without each group of them."""
    bands = _bands(plan, rates)
    methods = [m for m in plan.methods if isinstance(m, upge.Method)]
    truths = [replicates.unbiased(mu) for mu in plan.mu]
    strata = [chosen for _, _, chosen in bands]
    moments = replicates.measure(methods, truths, here, reference, strata, trainer.recipe.questions)
    for method, truth, place, found in moments:
        low, high, chosen = bands[place]
        same = {
            "method": methods[method].label,
            "step": plan.step,
            "distance": plan.distance,
            "mu": plan.mu[truth],
            "band_low": low,
            "band_high": high,
            "solve_rate": float(rates[chosen].mean()),
            "questions": int(chosen.sum()),
        }
        yield from ({**same, **row} for row in _rows(found))


def _bands(plan: Probe, rates: Tensor) -> list[tuple[float, float, Tensor]]:
    """All questions, then each band: above its lower end, up to its upper; the first is 0 alone."""
    edges = [-1.0, *plan.bands, 1.0]
    found = [(-1.0, 1.0, torch.ones_like(rates, dtype=torch.bool))]
    for low, high in pairwise(edges):
        chosen = (rates > low) & (rates <= high)
        count = int(chosen.sum())
        if count >= replicates.LEAST_QUESTIONS:
            found.append((low, high, chosen))
        elif count:
            log.info("%d with a solve rate above %g to %g: too few for a band", count, low, high)
    return found


def _rows(found: Found) -> Iterator[dict[str, object]]:
    names = ("inner", "square", "truth_square", "variance", "within")
    columns = [getattr(found, name) for name in names]
    for place, values in enumerate(zip(*columns, strict=True)):
        yield {"left_out": place - 1, **dict(zip(names, map(float, values), strict=True))}
