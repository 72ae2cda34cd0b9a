"""A verifier that hangs on some responses delays a step by its limit and is counted."""

import dataclasses
import os
from pathlib import Path

import pytest

from workbench.problems import Verdict, Verifier
from workbench.problems.isolation import graders
from workbench.training.sampling import grade, sample
from workbench.training.statistics import rollout_statistics
from workbench.training.tally import Tally


class HangsOnDigits(Verifier):
    """Never comes back from a response with one of some digits in it."""

    digits: str

    def __call__(self, response: str, gold: str) -> Verdict:
        while any(digit in response for digit in self.digits):
            pass
        return Verdict.WRONG


def test_a_step_goes_on_when_grading_hangs(
    small, trainer_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    trainer = trainer_of(small)
    problems = list(trainer.data.train[:2])
    rollouts = sample(trainer, problems, 1)
    texts = [trainer.policy.decode(r.tokens) for each in rollouts for r in each]
    digit = min("0123456789", key=lambda d: abs(sum(d in text for text in texts) - 2))
    hanging = sum(digit in text for text in texts)
    assert 0 < hanging < len(texts)
    verifier = HangsOnDigits(digit)
    trainer.data = dataclasses.replace(trainer.data, verifier=verifier)
    graders(verifier).seconds = 1
    tally = Tally()
    rollout_statistics(grade(trainer, problems, rollouts), tally)
    graders(verifier).close()
    counted = tally.metrics()
    assert counted["verdict/timeout"] == hanging
    assert counted["verdict/wrong"] == len(texts) - hanging
    assert counted["verdict/ungradable"] == hanging / len(texts)
