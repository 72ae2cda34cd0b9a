"""One training step without the loop's records, as several tests take it."""

import dataclasses

from workbench.problems import Verdict
from workbench.training.sampling import grade, sample
from workbench.training.scoring import collate
from workbench.training.statistics import batch_statistics, rollout_statistics
from workbench.training.tally import Tally
from workbench.training.update import update


def by_turns(sequence, row):
    """Every second rollout is right, but none of the first question: gradients are never zero."""
    if sequence.demonstration:
        return sequence
    right = row % 2 and sequence.question
    return dataclasses.replace(sequence, verdict=Verdict.CORRECT if right else Verdict.WRONG)


def one_step(trainer, precise=True):
    """One training step without the loop's records; returns its sequences, batch and metrics."""
    if precise:
        trainer.policy.model.double()
    tally = Tally()
    problems = list(trainer.data.train[: trainer.recipe.questions])
    graded = grade(trainer, problems, sample(trainer, problems, 1))
    sequences = [by_turns(s, row) for row, s in enumerate(graded)]
    rollout_statistics(sequences, tally)
    batch = collate(trainer, sequences)
    update(trainer, sequences, batch, tally)
    batch_statistics(trainer.method, sequences, batch, tally)
    return sequences, batch, tally.metrics()
