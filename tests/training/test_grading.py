"""A verifier that hangs on some responses delays a step by its limit and is counted."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
from pyarrow import parquet

from workbench import Validation, replace
from workbench.problems import Verdict, Verifier
from workbench.problems.isolation import graders
from workbench.recipe import Measurement
from workbench.records import Interrupted, read_lines, write_lines
from workbench.resources import Resources
from workbench.schema import OTHER_VERDICTS
from workbench.training import evaluation
from workbench.training.evaluation import measure
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.training.sampling import grade, sample, validate
from workbench.training.statistics import rollout_statistics
from workbench.training.tally import Tally


class HangsOnDigits(Verifier):
    """Never comes back from a response with one of some digits in it."""

    digits: str

    def __call__(self, response: str, gold: str) -> Verdict:
        while any(digit in response for digit in self.digits):
            pass
        return Verdict.WRONG


class SaysAll(Verifier):
    """Says every verdict in turn, whatever the response."""

    interprets = False
    said = 0

    def __call__(self, response: str, gold: str) -> Verdict:
        SaysAll.said += 1
        return list(Verdict)[SaysAll.said % 6]


def test_an_evaluation_loses_no_verdict(small, trainer_of, open_run) -> None:
    trainer, run = trainer_of(small), open_run(small, seed=1)
    data = dataclasses.replace(trainer.data, verifier=SaysAll())
    plan = Measurement("chain", 9, temperature=0.6, top_p=0.95, max_tokens=4, seed=0, problems=4)
    measure(run, trainer.policy, trainer.engine, data, plan)
    rows = parquet.read_table(run.evaluation_path(plan)).to_pylist()
    every = ("correct", *OTHER_VERDICTS)
    assert {each.value for each in Verdict} == set(every)
    assert [sum(row[name] for name in every) for row in rows] == [9] * 4
    assert [sum(row[name] for row in rows) for name in every] == [6] * 6
    assert sum(row["ungradable"] for row in rows) == 4 * 6


def test_an_evaluation_goes_on_from_the_problems_that_are_counted(
    small, trainer_of, open_run, monkeypatch
) -> None:
    trainer, run = trainer_of(small), open_run(small, seed=1)
    plan = Measurement("chain", 3, temperature=0.6, top_p=0.95, max_tokens=9, seed=0, problems=5)
    given = run, trainer.policy, trainer.engine, trainer.data, plan
    measure(*given)
    whole = parquet.read_table(run.evaluation_path(plan))
    assert not run.counted_path(plan).exists()  # all were one part
    run.evaluation_path(plan).unlink()
    monkeypatch.setattr(evaluation, "AT_ONCE", 7)
    asked, generate = [], trainer.engine.generate

    def stopped(requests, *more):
        asked.append(len(requests))
        if len(asked) == 2:
            raise Interrupted
        return generate(requests, *more)

    trainer.engine.generate = stopped
    with pytest.raises(Interrupted):
        measure(*given)
    assert read_lines(run.counted_path(plan)) == whole.to_pylist()[:2]
    measure(*given)
    assert asked == [2, 2, 2, 1]
    again = parquet.read_table(run.evaluation_path(plan))
    assert again.equals(whole, check_metadata=True)
    run.evaluation_path(plan).unlink()
    others = [{**row, "problem": "another", "correct": 3} for row in whole.to_pylist()[:2]]
    write_lines(run.counted_path(plan), others)
    measure(*given)
    assert asked == [2, 2, 2, 1, 2, 2, 1]
    assert parquet.read_table(run.evaluation_path(plan)).equals(whole, check_metadata=True)


def test_validation_counts_what_could_not_be_graded(small, trainer_of) -> None:
    trainer = trainer_of(replace(small, validation=Validation(every=2, samples=2, problems=3)))
    trainer.data = dataclasses.replace(trainer.data, verifier=SaysAll())
    tally = Tally()
    validate(trainer, tally)
    assert tally.metrics()["validation/pass_at_1"] == pytest.approx(1 / 6)
    assert tally.metrics()["validation/ungradable"] == pytest.approx(4 / 6)


class Hangs(Verifier):
    """Never comes back from a response, and says by a file that it has one."""

    file: str

    def __call__(self, response: str, gold: str) -> Verdict:
        while (response, gold) not in self.examples:
            Path(self.file).touch()
            signal.pause()
        return Verdict.WRONG


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))


def test_a_stop_ends_the_grading_of_a_step_that_then_never_began(
    small, open_run, tmp_path: Path
) -> None:
    run, hung = open_run(small), tmp_path / "hung"
    trainer = open_trainer(run, Resources())
    verifier, beats = Hangs(str(hung)), []
    trainer.data = dataclasses.replace(trainer.data, verifier=verifier, validation=())
    trainer.engine.get_on = lambda: beats.append(hung.exists())
    graders(verifier).seconds = 20
    with pytest.raises(Interrupted, match="after step 0 of 4"):
        train(trainer, run, stopping=lambda: beats.count(True) > 2)
    assert graders(verifier)._waiting == {}
    assert [row["step"] for row in run.rows()] == [0]


class Writes(Verifier):
    """Says in a file what it has graded."""

    file: str

    def __call__(self, response: str, gold: str) -> Verdict:
        with Path(self.file).open("a") as file:
            file.write(f"{gold}\n")
        return Verdict.WRONG


@pytest.mark.parametrize("count", [1, 2])
def test_answers_are_graded_while_others_are_drawn(
    count: int, small, trainer_of, tmp_path: Path, threads
) -> None:
    trainer, file, drawn = trainer_of(small), tmp_path / "graded", []
    verifier, generate = Writes(str(file)), trainer.engine.generate
    trainer.data = dataclasses.replace(trainer.data, verifier=verifier)
    problems = list(trainer.data.train[:16])

    def patient(requests, decoding, hear):
        """Draws no more than one question's answers until one of them is graded."""

        def heard(place, responses):
            hear(place, responses)
            drawn.append(place)
            limit = time.monotonic() + 300
            while problems[drawn[0]].answer not in graded(file):
                assert time.monotonic() < limit, "nothing is graded before all is drawn"
                time.sleep(0.01)

        return generate(requests, decoding, heard)

    trainer.engine.generate = patient
    threads(count)
    rollouts = sample(trainer, problems, 1)
    assert sorted(drawn) == list(range(16))
    sequences = grade(trainer, problems, rollouts, demonstrations=False)
    graders(verifier).close()
    assert graded(file) == sorted(s.problem.answer for s in sequences)


def graded(file: Path) -> list[str]:
    """The golds of what `Writes` has graded, in order."""
    examples = {gold for _, gold in Verifier.examples}
    lines = file.read_text().splitlines() if file.exists() else []
    return sorted(line for line in lines if line not in examples)


def test_a_step_goes_on_when_grading_hangs(small, trainer_of) -> None:
    trainer = trainer_of(small)
    problems = list(trainer.data.train[:2])
    texts = [answer.text for each in sample(trainer, problems, 1) for answer in each]
    digit = min("0123456789", key=lambda d: abs(sum(d in text for text in texts) - 2))
    hanging = sum(digit in text for text in texts)
    assert 0 < hanging < len(texts)
    verifier = HangsOnDigits(digit)
    trainer.data = dataclasses.replace(trainer.data, verifier=verifier)
    graders(verifier).seconds = 1
    tally = Tally()
    rollout_statistics(grade(trainer, problems, sample(trainer, problems, 1)), tally)
    graders(verifier).close()
    counted = tally.metrics()
    assert counted["verdict/timeout"] == hanging
    assert counted["verdict/wrong"] == len(texts) - hanging
    assert counted["verdict/ungradable"] == hanging / len(texts)
