"""Families of tests on seeds, declared before the runs: what comparisons and changes share."""

from dataclasses import dataclass, field
from math import isnan, nan
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from analysis.bootstrap import DRAWS, mean_over_problems
from analysis.intervals import Interval, explain_all, number_of_seeds, over_seeds
from analysis.load import Runs
from analysis.output import Tabular
from analysis.paired import sign_flip, smallest_p
from analysis.sheet import Entry, Head
from analysis.table import NOTHING
from workbench.identity import Component, fingerprint
from workbench.rules import Within


@dataclass(frozen=True)
class Declared(Tabular):
    """Paired differences, each tested by flipping the signs of its seeds, with one Holm correction.

    What is declared is hashed, and the hash is in the table: written into the study file before the
    runs, it shows that nothing was chosen after them.

    Attributes:
        alpha: the level at which Holm's p counts, for the family as a whole.
        seed: of the generator that tests and bootstraps draw from.
    """

    KIND: ClassVar[str]  # what one of its differences is

    alpha: Annotated[float, Within(above=0, below=1, what="a chance")] = field(
        default=0.05, kw_only=True
    )
    seed: int = field(default=0, kw_only=True)

    @property
    def family(self) -> Component:
        """What is declared, as the value that is hashed."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many differences Holm's adjustment counts, whether or not all of them have runs."""
        raise NotImplementedError

    @property
    def what(self) -> str:
        """What differs, with its unit."""
        raise NotImplementedError

    @property
    def axis(self) -> str:
        """What a difference is, with its unit."""
        raise NotImplementedError

    def frame(self, runs: Runs) -> pd.DataFrame:
        """One row for each difference: `arm`, what `tested` gives, and `holm_p`."""
        raise NotImplementedError

    def name_of(self, row: dict[str, Any]) -> str:
        """What a row of the frame is of, in a figure."""
        raise NotImplementedError

    @property
    def counted(self) -> str:
        """How many differences, in words."""
        return f"{self.size} {self.KIND}{'' if self.size == 1 else 's'}"

    @property
    def declared(self) -> str:
        """The family in a sentence, with its hash and what its seeds can show at best."""
        seeds = len(tuple(self.study.seeds))
        least = min(1.0, self.size * smallest_p(seeds))
        reach = f"the smallest Holm p that {seeds} seeds can attain is {least:.3g}"
        if least > self.alpha:
            reach += ", so that none can reach alpha: descriptive"
        return (
            f"Declared: {self.counted} of {self.what}, alpha = {self.alpha:g} for the family; "
            f"{reach}. Hash {fingerprint(self.family)[:16]}."
        )

    def cells(self, row: dict[str, Any], shown: str) -> list[Entry]:
        """A row of the frame under `HEADS`; the difference is bold where Holm's p counts."""
        if row["n"] == 0:
            return [Entry(NOTHING, 0.0), *(Entry(NOTHING) for _ in HEADS[1:])]
        found: Interval = row["difference"]
        spread = "" if isnan(found.half) else shown.format(found.half).lstrip("+")
        each = " ".join(shown.format(value) for value in row["each"].values())
        exact = " ".join(f"{seed}:{value:.10g}" for seed, value in row["each"].items())
        return [
            Entry(number_of_seeds([row["n"]]), float(row["n"])),
            Entry(shown.format(found.mean), found, spread, best=row["holm_p"] <= self.alpha),
            Entry(each, exact),
            *(Entry(f"{row[key]:.3g}", row[key]) for key in ("p", "smallest_p", "holm_p")),
        ]

    def notes(self, frame: pd.DataFrame, difference: str) -> list[str]:
        """What is declared, what a difference is and what its interval and its p are."""
        return [
            self.declared,
            f"{difference}, mean over the seeds that have both, each of which is shown; bold where "
            f"Holm p is at most {self.alpha:g}.",
            *explain_all([each for each in frame["difference"] if each is not None], "±"),
            "p: two-sided sign-flip permutation over seeds, with the smallest that so many seeds "
            f"can attain; Holm p: adjusted over the {self.size} declared.",
        ]


HEADS = (
    Head("Seeds", "n"),
    Head("Difference", "difference"),
    Head("Each seed", "each_seed"),
    Head("p", "p"),
    Head("Smallest p", "smallest_p"),
    Head("Holm p", "holm_p"),
)


def tested(found: pd.DataFrame, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """What the differences of one pair say.

    Args:
        found: suites and problems in rows, common seeds in columns, as `paired.differences` gives.
        seed: of the generator.
        draws: of the bootstrap over problems.

    Returns:
        `n` common seeds; `difference`, an Interval over them; `each`, the difference of each seed;
        `p` and `smallest_p`; `problems`, an Interval over problems. NaN and None where there are
        no common runs.
    """
    if found.empty:
        return dict(n=0, difference=None, each={}, p=nan, smallest_p=nan, problems=None)
    suites = [part.to_numpy("float64") for _, part in found.groupby(level="suite")]
    each = np.mean([suite.mean(axis=0) for suite in suites], axis=0)
    strata = [suite.mean(axis=1) for suite in suites]
    return {
        "n": found.shape[1],
        "difference": over_seeds(each),
        "each": dict(zip(found.columns, each, strict=True)),
        "p": sign_flip(each, np.random.default_rng(seed)),
        "smallest_p": smallest_p(found.shape[1]),
        "problems": mean_over_problems(strata, np.random.default_rng(seed), draws),
    }
