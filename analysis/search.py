"""What a search found: its trials as a table, and how the score answers each parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Page

from analysis.intervals import Interval, explain_all, over_seeds
from analysis.panel import save, styled
from analysis.report import Report, write_table
from analysis.sheet import Entry, Head, Sheet
from workbench import trials
from workbench.durable import make_folder, sweep
from workbench.study import Search
from workbench.trials import Given, Trial, printed

COMPLETE, PRUNED = "#0072b2", "#b0b0b0"  # told apart in grey print too, by lightness
CHOSEN_BY = (
    "These are the seeds that the winner was chosen by, so its own score is too high; the table of "
    "{name}-winner has it on fresh seeds."
)


@dataclass(frozen=True)
class Answer:
    """The score at one value of a parameter.

    Attributes:
        value: of the parameter.
        score: over seeds, of each seed's mean over the complete trials with that value.
        trials: how many these are.
    """

    value: object
    score: Interval
    trials: int


def report(
    search: Search, root: Path, plots: Mapping[str, Page], source: Path | None = None
) -> Report:
    """Writes the trials, the response to each parameter and Optuna's plots.

    Args:
        search: whose records are read.
        root: the tracking folder; the report goes into `<root>/reports/<search>`.
        plots: more figures to put there, by name.
        source: the folder that the records are read from, if it is not the tracking folder.

    Raises:
        ValueError: no trial has a score yet.
    """
    place = source or root
    found = trials.trials(search, place)
    if not any(trial.scores for trial in found):
        raise ValueError(
            f"search {search.name!r} has no finished run under {place} ({len(found)} trials asked "
            "for); run it first"
        )
    folder = root / "reports" / search.name
    make_folder(folder)
    sweep(folder)
    paths = write_table("trials", trials_sheet(search, found), folder)
    paths += write_table("response", response_sheet(search, found), folder)
    with styled():
        paths += save(draw_responses(search, found), folder, "response")
    for name, page in plots.items():
        paths += save(page, folder, name)
    return Report(folder, tuple(paths), (), (), _notes(search, found))


def _distinct(found: Sequence[Trial]) -> list[Trial]:
    """One trial for each recipe, of those that have a score."""
    return [each for each in found if each.number == each.twin and each.scores]


def _notes(search: Search, found: Sequence[Trial]) -> tuple[str, ...]:
    notes = []
    for best in trials.winners(search, found):
        means = zip(search.objectives, best.means, strict=True)
        shown = ", ".join(f"{key} {mean:.3f}" for key, mean in means)
        notes.append(f"best of {len(found)} trials: {best.label} ({best.drawn}), {shown}")
    return (*notes, CHOSEN_BY.format(name=search.name))


# --- the trials -----------------------------------------------------------------------------------


def trials_sheet(search: Search, found: Sequence[Trial]) -> Sheet:
    """Every trial with its parameters and its scores; none is emphasised, for all are biased."""
    names = list(dict.fromkeys(name for trial in found for name in trial.params))
    heads = [Head("Trial", "trial"), *(Head(name, name) for name in names)]
    heads += [Head(key, key, how) for key, how in search.objectives.items()]
    heads += [Head("n", "n"), Head("State", "state")]
    rows = [_trial_row(search, trial, names) for trial in found]
    scores = [over_seeds(values) for trial in found for values in _by_goal(trial)]
    notes = [*explain_all(scores, "±"), CHOSEN_BY]
    shown = tuple(note.format(name=search.name) for note in notes)
    return Sheet("trials", tuple(heads), tuple(rows), shown)


def _trial_row(search: Search, trial: Trial, names: Sequence[str]) -> tuple[Entry, ...]:
    params = [_parameter(trial.params.get(name)) for name in names]
    scores = [_score(values) for values in _by_goal(trial)]
    scores += [Entry("–", nan)] * (len(search.objectives) - len(scores))
    state = trial.state if trial.number == trial.twin else f"the same as {trial.twin}"
    number = Entry(str(trial.number), float(trial.number))
    n = Entry(str(len(trial.scores)), float(len(trial.scores)))
    return (number, *params, *scores, n, Entry(state, state))


def _by_goal(trial: Trial) -> list[tuple[float, ...]]:
    """The scores of each objective, one a seed."""
    return list(zip(*trial.scores.values(), strict=True))


def _parameter(value: object) -> Entry:
    return Entry("–", "") if value is None else Entry(printed(value), printed(value))


def _score(values: Sequence[float]) -> Entry:
    found = over_seeds(values)
    return Entry(f"{found.mean:.3f}", found, "" if isnan(found.half) else f"{found.half:.3f}")


# --- the response ---------------------------------------------------------------------------------


def responses(search: Search, found: Sequence[Trial], name: str, goal: int) -> list[Answer]:
    """The score at each value of a parameter, over complete trials and everything else they drew.

    Trials that were stopped early have fewer seeds and are left out: they were stopped for being
    worse, so that what is left of a value would look better than it is.
    """
    values: dict[object, list[Trial]] = {}
    for trial in _distinct(found):
        if trial.state == "complete" and name in trial.params:
            values.setdefault(trial.params[name], []).append(trial)
    answers = []
    for value, those in values.items():
        each = [fmean(trial.scores[seed][goal] for trial in those) for seed in search.seeds]
        answers.append(Answer(value, over_seeds(each), len(those)))
    numbers = all(isinstance(answer.value, int | float) for answer in answers)
    return sorted(answers, key=lambda answer: answer.value) if numbers else answers  # type: ignore[return-value,arg-type]


def response_sheet(search: Search, found: Sequence[Trial]) -> Sheet:
    """The response of every objective to every parameter, as numbers."""
    heads = (
        Head("Parameter", "parameter"), Head("Value", "value"), Head("Objective", "objective"),
        Head("Score", "score"), Head("Trials", "trials"),
    )  # fmt: skip
    rows, scores = [], list[Interval]()
    for name in _names(found):
        for goal, key in enumerate(search.objectives):
            for answer in responses(search, found, name, goal):
                score, text = answer.score, printed(answer.value)
                scores.append(score)
                spread = "" if isnan(score.half) else f"{score.half:.3f}"
                number = Entry(str(answer.trials), float(answer.trials))
                rows.append(
                    (
                        Entry(name, name),
                        Entry(text, text),
                        Entry(key, key),
                        Entry(f"{score.mean:.3f}", score, spread),
                        number,
                    )
                )
    return Sheet("response", heads, tuple(rows), (*explain_all(scores, "±"), *_left_out(found)))


def _names(found: Sequence[Trial]) -> list[str]:
    complete = [trial for trial in _distinct(found) if trial.state == "complete"]
    return list(dict.fromkeys(name for trial in complete for name in trial.params))


def _left_out(found: Sequence[Trial]) -> list[str]:
    stopped = sum(trial.state != "complete" for trial in _distinct(found))
    return [f"{stopped} trials without all their seeds are left out."] if stopped else []


def draw_responses(search: Search, found: Sequence[Trial]) -> Page:
    """A panel for each parameter and objective: every trial, and the mean at each value."""
    names, goals = _names(found), list(search.objectives)
    page = Page(figsize=(max(3.4, 2.4 * len(names)), 2.3 * len(goals) + 0.4), layout="constrained")
    axes = page.subplots(len(goals), max(1, len(names)), squeeze=False)
    for row, key in enumerate(goals):
        for column, name in enumerate(names):
            _draw_panel(axes[row][column], search, found, (name, row))
            axes[row][column].set_xlabel(name if row == len(goals) - 1 else "")
            axes[row][column].set_ylabel(key if column == 0 else "")
    scores = [answer.score for name in names for answer in responses(search, found, name, 0)]
    note = ["Line: mean over the complete trials with a value. Dots: trials (grey: stopped early)."]
    page.supxlabel("\n".join([*note, *explain_all(scores, "Bars")]), fontsize="small")
    return page


def _draw_panel(ax: Axes, search: Search, found: Sequence[Trial], of: tuple[str, int]) -> None:
    name, goal = of
    answers = responses(search, found, name, goal)
    drawn = [trial for trial in _distinct(found) if name in trial.params]
    values = list(dict.fromkeys([a.value for a in answers] + [t.params[name] for t in drawn]))
    numbers = all(isinstance(value, int | float) for value in values)
    at: dict[object, Any] = {v: v if numbers else place for place, v in enumerate(values)}
    x = [at[answer.value] for answer in answers]
    y = [answer.score.mean for answer in answers]
    halves = np.nan_to_num([answer.score.half for answer in answers])
    joined = numbers and len(answers) < max(len(drawn), 2 * len(search.objectives))
    alone = len(_names(found)) == 1 and numbers
    line = "-" if joined or alone else ""
    ax.errorbar(x, y, halves, fmt=f"o{line}", color=COMPLETE, capsize=2, markersize=3.5, zorder=3)
    for trial in drawn:
        color = COMPLETE if trial.state == "complete" else PRUNED
        ax.plot(at[trial.params[name]], trial.means[goal], ".", color=color, alpha=0.5, zorder=2)
    if not numbers:
        ax.set_xticks(range(len(values)), [printed(value) for value in values], rotation=20)
    elif name in _logarithmic(search, drawn):
        ax.set_xscale("log")


def _logarithmic(search: Search, found: Sequence[Trial]) -> set[str]:
    names: set[str] = set()
    for trial in found:
        given = Given(trial.params)
        search.propose(given)
        names |= given.logarithmic
    return names
