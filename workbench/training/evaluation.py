"""Evaluation: n answers a problem, correct counts kept by problem."""

import logging
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from workbench.durable import new_file
from workbench.problems import Dataset, Problem, Verdict
from workbench.recipe import Measurement
from workbench.records import Row, Run, read_lines, write_lines
from workbench.rollout import Engine, Request, Response
from workbench.rollout.engine import Decoding
from workbench.schema import OTHER_VERDICTS, File
from workbench.training.answers import ask, verdicts
from workbench.training.data import prompt_ids
from workbench.training.policy import Policy
from workbench.training.randomness import seed_of

log = logging.getLogger(__name__)

COLUMNS = (
    *("problem", "level", "samples", "correct", "tokens", "truncated", "ungradable"),
    *OTHER_VERDICTS,
)
AT_ONCE = 2**14  # responses that an evaluation holds, and that the end of an attempt can cost


@dataclass(frozen=True)
class Count:
    """What became of one problem's samples.

    Attributes:
        problem: the problem.
        samples, truncated: responses.
        verdicts: responses by what was said of them.
        tokens: of all responses.
        surprisal: minus the engine's log-probabilities of tokens, in nats; its mean estimates the
            entropy where nothing of the vocabulary is cut off.
        surprising: tokens that the engine had a log-probability of.
    """

    problem: Problem
    samples: int
    verdicts: Mapping[Verdict, int]
    tokens: int
    truncated: int
    surprisal: float
    surprising: int

    @property
    def correct(self) -> int:
        """Responses that the verifier found right."""
        return self.verdicts[Verdict.CORRECT]

    @property
    def ungradable(self) -> int:
        """Responses of which it could not say whether they are."""
        return self.samples - self.correct - self.verdicts[Verdict.WRONG]


def count(
    policy: Policy,
    engine: Engine,
    data: Dataset,
    problems: Many[Problem],
    samples: int,
    decoding: Decoding,
    seed: int,
) -> list[Count]:
    """Samples answers to every problem and grades them, asked and graded as the data says.

    Random numbers follow from the seed and the problem, so that all methods answer with the same.
    """
    requests = [
        Request(
            prompt_ids(policy.tokenizer, data.prompt, p.question),
            samples,
            seed_of(seed, "evaluation", p.id),
        )
        for p in problems
    ]
    answers = ask(policy, engine, data, problems, requests, decoding)
    said = iter(verdicts(engine, data, answers))
    return [
        _counted(problem, [a.response for a in each], list(islice(said, len(each))))
        for problem, each in zip(problems, answers, strict=True)
    ]


def _counted(problem: Problem, answers: list[Response], said: list[Verdict]) -> Count:
    return Count(
        problem=problem,
        samples=len(answers),
        verdicts=Counter(said),
        tokens=sum(len(a.tokens) for a in answers),
        truncated=sum(not a.finished for a in answers),
        surprisal=-sum(sum(a.logprobs) for a in answers),
        surprising=sum(len(a.logprobs) for a in answers),
    )


def measure(
    run: Run, policy: Policy, engine: Engine, data: Dataset, measurement: Measurement
) -> None:
    """Evaluates one suite and records the counts, unless they are there.

    Of many responses to many problems a part is drawn at a time, and what was counted is kept: the
    next attempt goes on from there.
    """
    path, counted = run.evaluation_path(measurement), run.counted_path(measurement)
    if path.exists():
        return
    suite = next(s for s in data.suites if s.name == measurement.suite)
    decoding = Decoding(measurement.temperature, measurement.top_p, measurement.max_tokens)
    problems, samples = suite.problems[: measurement.problems], measurement.samples
    rows, together = _counted_before(counted, problems), max(1, AT_ONCE // samples)
    for first in range(len(rows), len(problems), together):
        part = problems[first : first + together]
        counts = count(policy, engine, data, part, samples, decoding, measurement.seed)
        rows += [_row(each) for each in counts]
        if len(rows) < len(problems):
            write_lines(counted, rows, "counted")
    table = pa.table({name: [row[name] for row in rows] for name in COLUMNS})
    table = table.replace_schema_metadata({"measurement": str(measurement)})
    with new_file(path, point=File.EVALUATIONS) as handle:
        parquet.write_table(table, handle)


def _counted_before(path: Path, problems: Many[Problem]) -> list[Row]:
    """Rows of the first problems, of an earlier attempt; none where they are of others."""
    rows = read_lines(path)
    if [row["problem"] for row in rows] == [each.id for each in problems[: len(rows)]]:
        return rows
    log.warning("%s is of other problems than are asked now, and not used", path)
    return []


def _row(count: Count) -> Row:
    return {
        "problem": count.problem.id,
        "level": count.problem.level,
        "samples": count.samples,
        "correct": count.correct,
        "tokens": count.tokens,
        "truncated": count.truncated,
        "ungradable": count.ungradable,
        **{name: count.verdicts[Verdict(name)] for name in OTHER_VERDICTS},
    }
