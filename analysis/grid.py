"""Figures 3 and 4: rollout accuracy of every training question at every epoch, by level."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.figure import Drawing, Panels
from analysis.intervals import number_of_seeds
from analysis.load import Runs, level_title, pick
from analysis.panel import Heat
from analysis.quantities import rollout_accuracy, rollout_difference
from analysis.style import looks
from workbench.passk import FloatArray

_NEITHER = "#ffffff"


@dataclass(frozen=True)
class RolloutGrid(Drawing):
    """A row of colours for each training question, a column an epoch, one panel a level.

    Several seeds are averaged. Questions are sorted by their mean over the epochs, the highest at
    the top, so that a page in grey still shows where each panel turns from high to low.

    Attributes:
        arms: one row of panels each (Figure 3); all arms that sampled rollouts if empty.
        minus: the arm that is subtracted from each of them, matched by question and epoch
            (Figure 4).

    Raises:
        ValueError: an arm that the study does not have.
    """

    minus: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minus:
            self.known_arm(self.minus, "minus")
            if not self.arms or self.minus in self.arms:
                raise ValueError(
                    "RolloutGrid.minus is subtracted from the arms, so name them and not it: "
                    'arms=["HPT"], minus="SFT->GRPO"'
                )

    @property
    def needed(self) -> tuple[str, ...]:
        return (*self.arms, self.minus) if self.minus else tuple(self.arms)

    def panels(self, runs: Runs) -> Panels:
        sampled = runs.questions.dropna(subset=["correct"])
        names = [label for label in runs.labels if label != self.minus]
        found = {label: self._cells(sampled, label) for label in names}
        shown = {label: cells for label, cells in found.items() if len(cells)}
        common = f" in common with {self.minus}" if self.minus else ""
        left_out = [f"{label} has no rollouts{common}" for label in names if label not in shown]
        if not shown:
            return Panels((), left_out=tuple(left_out or ["no arm of it is finished"]))
        every = pd.concat(shown.values())
        levels, epochs = sorted(set(every["level"])), max(map(int, every["epoch"])) + 1
        heats = [
            self._heat(pick(cells, level=n), (n, label if len(shown) > 1 else ""), epochs)
            for label, cells in shown.items()
            for n in levels
        ]
        note = self._note(runs, list(shown))
        return Panels(tuple(heats), note, tuple(left_out), columns=len(levels))

    def _cells(self, questions: pd.DataFrame, label: str) -> pd.DataFrame:
        """Level, question, epoch and the value of each cell."""
        if self.minus:
            found = rollout_difference(questions, label, self.minus)
            return found.rename(columns={"difference": "value"})
        found = rollout_accuracy(pick(questions, label=label))
        return found.rename(columns={"accuracy": "value"})

    def _heat(self, cells: pd.DataFrame, of: tuple[int, str], epochs: int) -> Heat:
        values = _sorted_grid(cells, epochs)
        title = level_title(self.study, of[0])
        questions = f"{of[1]}: {len(values)} questions" if of[1] else f"{len(values)} questions"
        if not self.minus:
            return Heat(title, "Epoch", questions, values, "Correct rollouts (share)")
        styles = looks(self.study.recipes)
        ours, theirs = (styles[each].color for each in (self.arms[0], self.minus))
        what = f"Correct rollouts, {' or '.join(self.arms)} minus {self.minus} (share)"
        return Heat(title, "Epoch", questions, values, what, (-1.0, 1.0), (theirs, _NEITHER, ours))

    def _note(self, runs: Runs, labels: Sequence[str]) -> str:
        shared = [set(runs.seeds(label)) for label in labels]
        if self.minus:
            shared = [seeds & set(runs.seeds(self.minus)) for seeds in shared]
        n = number_of_seeds(map(len, shared))
        note = f"Mean over seeds ({n}); questions sorted by their mean; grey: not met."
        others = [self.minus] if self.minus else []
        return "\n".join([note, *runs.starts([*labels, *others])])


def _sorted_grid(cells: pd.DataFrame, epochs: int) -> FloatArray:
    """[question, epoch], the questions with the highest mean first; NaN where one was not met."""
    questions = sorted(set(cells["question"]))
    row = {question: at for at, question in enumerate(questions)}
    grid = np.full((len(questions), epochs), np.nan)
    grid[[row[each] for each in cells["question"]], cells["epoch"].to_numpy("int64")] = cells[
        "value"
    ]
    return grid[np.argsort(-np.nanmean(grid, axis=1), kind="stable")]
