"""What is known of a base model: accuracy by suite with counts, and the card that says it."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from pprint import pformat
from statistics import fmean, stdev

RECORD = "accuracy.json"

# Eight suites are compared at once: at 4 standard errors, chance calls an unchanged model changed
# in well under 1 of 100 checks.
_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining took and reached; losses are means over the first and last 50 steps.

    `libraries` names the versions that, with the recipe, decide the weights.
    """

    parameters: int
    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    libraries: str


@dataclass(frozen=True)
class SuiteAccuracy:
    """Correct responses per problem of one suite, out of `samples` each at temperature 1.

    `worked` is the share of responses with at least one step, `length` the mean number of response
    tokens, and `level` the difficulty of the problems (0: several or unknown).
    """

    level: int
    samples: int
    correct: tuple[int, ...]
    worked: float
    length: float

    @property
    def rates(self) -> tuple[float, ...]:
        """The share of correct responses of every problem."""
        return tuple(count / self.samples for count in self.correct)

    @property
    def pass_at_1(self) -> float:
        """The mean share of correct responses."""
        return fmean(self.rates)

    @property
    def pass_at_samples(self) -> float:
        """The share of problems with at least one correct response among all samples."""
        return fmean(count > 0 for count in self.correct)

    @property
    def margin(self) -> float:
        """Half of the 95% interval of Pass@1, for problems drawn anew and not only responses."""
        return 1.96 * _standard_error(self.rates)


@dataclass(frozen=True)
class Comparison:
    """Pass@1 of one suite, recorded and measured; `margin` is what chance explains."""

    suite: str
    recorded: float
    measured: float
    margin: float

    @property
    def same(self) -> bool:
        """Whether chance explains the difference."""
        return abs(self.measured - self.recorded) <= self.margin

    def __str__(self) -> str:
        """Reads `chain: 51.2% recorded, 50.9% measured, same within 2.1%`."""
        verdict = "same within" if self.same else "NOT the same within"
        return (
            f"{self.suite}: {self.recorded:.1%} recorded, {self.measured:.1%} measured, "
            f"{verdict} {self.margin:.1%}"
        )


def compare(suite: str, recorded: SuiteAccuracy, measured: SuiteAccuracy) -> Comparison:
    """Compares two measurements problem by problem, so that the problems' difficulty cancels."""
    pairs = zip(recorded.rates, measured.rates, strict=True)
    differences = tuple(one - other for one, other in pairs)
    margin = _STANDARD_ERRORS * _standard_error(differences)
    return Comparison(suite, recorded.pass_at_1, measured.pass_at_1, margin)


def write_record(accuracy: dict[str, SuiteAccuracy], folder: Path) -> None:
    """Writes the accuracy of every suite, with its counts, to `accuracy.json`."""
    record = {suite: asdict(value) for suite, value in accuracy.items()}
    lines = (f"{json.dumps(suite)}: {json.dumps(value)}" for suite, value in record.items())
    (folder / RECORD).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_record(folder: Path) -> dict[str, SuiteAccuracy]:
    """Reads what `write_record` wrote."""
    record = json.loads((folder / RECORD).read_text())
    return {
        suite: SuiteAccuracy(**{**value, "correct": tuple(value["correct"])})
        for suite, value in record.items()
    }


def table(accuracy: dict[str, SuiteAccuracy]) -> str:
    """Draws the accuracy of every suite as a Markdown table."""
    samples = next(iter(accuracy.values())).samples
    header = ("suite", "level", "Pass@1", f"Pass@{samples}", "problems", "worked", "mean tokens")
    rows = [
        (
            suite,
            str(value.level or "-"),
            f"{value.pass_at_1:.1%} ± {value.margin:.1%}",
            f"{value.pass_at_samples:.1%}",
            str(len(value.correct)),
            f"{value.worked:.0%}",
            f"{value.length:.0f}",
        )
        for suite, value in accuracy.items()
    ]
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def card(name: str, recipe: object, result: Pretrained, accuracy: dict[str, SuiteAccuracy]) -> str:
    """Writes the model card: what the model is for, its recipe, and what it can do."""
    return _CARD.format(
        name=name,
        recipe=pformat(recipe, width=100),
        parameters=result.parameters,
        steps=result.steps,
        tokens=result.tokens,
        minutes=result.seconds / 60,
        libraries=result.libraries,
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        samples=next(iter(accuracy.values())).samples,
        table=table(accuracy),
    )


def _standard_error(values: tuple[float, ...]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


_CARD = """# {name}

A base model with {parameters:,} parameters for the embedded small world: digit-wise arithmetic on
three-digit numbers (`workbench.problems.arithmetic`). It exists so that a post-training study runs
on a CPU in minutes. It is a test bed for estimators and of no use for anything else.

## What it saw

{tokens:,} token positions in {steps:,} steps of an endless stream (`workbench.problems.habit`),
in {minutes:.0f} minutes on one thread of a busy CPU with {libraries}.
The loss on answer tokens, whose mixture changes on the way, fell from {first_loss:.2f} to
{last_loss:.2f} (`pretraining.jsonl`).

A primer of worked steps comes first, with digits that are mostly 0: sums modulo 10 are hardly
learned without it. Then comes the mixture: chains of 1 to 5 operations + and -, products and
parentheses at the left, words and one-step equations, answered directly or in short worked
steps, some of them wrong. Last comes a mixture with more direct answers, and glimpses of what the
habit lacks: precedence and nesting at the right, mostly answered directly or worked from left to
right to a wrong answer, sometimes in the right order; and chains with slips that are corrected.

```python
{recipe}
```

## What it never saw

Both at once (`a-(b+c*d)`, level 5), equations with two operations, and any question of the
validation set or of a suite, in whatever spelling.

## What it can do

{samples} responses per problem at temperature 1. The interval of Pass@1 is 95%, over problems;
*worked* is the share of responses with at least one step. Counts per problem are in
`accuracy.json`. In distribution are all suites but `words` and `unknown`.

{table}

## Calibration

World and base were calibrated on the validation split, never by which method came out ahead. The
base was made to answer more directly after a first comparison had been run on its predecessor, and
what is published was run again since; `studies/README.md` has the steps and their numbers.

## Rebuild and check

`workbench pretrain --model {name} --out FOLDER` trains the same recipe into a folder and says for
every suite whether its accuracy is the same; with `--check` it measures what is in the folder.
Weights agree bit for bit only between equal machines and library versions.
"""
