"""What the `workbench` commands do with the searches of a study file."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from workbench import plan, trials
from workbench.durable import sweep
from workbench.records import Held, write_lines
from workbench.schema import File
from workbench.study import Search, Study
from workbench.studyfile import Mistake, StudyFile
from workbench.trials import Trial

if TYPE_CHECKING:
    from workbench.launch import Launcher
    from workbench.search import Searcher

OK, FAILED, INTERRUPTED = 0, 1, 130

Launch = Callable[[list[plan.Job], Study | Search], "Launcher"]


@dataclass(frozen=True)
class Outcome:
    """How a search ended: what it found to run again on fresh seeds, and the exit status so far."""

    status: int
    confirmation: Study | None


def check(file: StudyFile, variable: str) -> None:
    """Raises Mistake, at the search's line, on what can be known to be wrong beforehand."""
    from workbench.launch import slots
    from workbench.search import check

    file.checked(variable, check)
    file.checked(variable, lambda each: slots(each.resources))


# --- plan and status ------------------------------------------------------------------------------


def describe(search: Search, root: Path) -> list[str]:
    """What is left of a search, in lines for `plan`."""
    found = trials.trials(search, root)
    runs = search.trials * len(tuple(search.seeds))
    done = sum(len(each.scores) for each in found if each.number == each.twin)
    goals = ", ".join(f"{how} {key}" for key, how in search.objectives.items())
    states = Counter(each.state for each in found)
    lines = [
        f"{search.name}: a search of {search.trials} trials with {len(tuple(search.seeds))} seeds "
        f"({goals}; {search.sampler})",
        f"{len(found)} asked for{_counted(states)}; {runs} runs at most, {done} done, then the "
        f"winner on {len(tuple(search.confirm))} fresh seeds",
    ]
    aside = trials.left_aside(search, root)
    if aside:
        lines.append(f"{aside} recorded trials made other recipes and are left aside")
    return lines


def _counted(states: Counter[str]) -> str:
    shown = ", ".join(f"{number} {state}" for state, number in states.items())
    return f" ({shown})" if shown else ""


def rows(search: Search, root: Path) -> list[tuple[str, str, str, str]]:
    """Each trial, its state, its means and what else is known of it, for `status`."""
    found = trials.trials(search, root)
    best = trials.winners(search, found)
    return [
        (
            f"{each.label}  {each.drawn}",
            each.state,
            "  ".join(f"{value:.3f}" for value in each.means),
            _detail(search, each, root) + ("best" if each in best else ""),
        )
        for each in found
    ]


def _detail(search: Search, trial: Trial, root: Path) -> str:
    if trial.number != trial.twin:
        return f"the same as trial {trial.twin}"
    if trial.state != "open":
        return trial.stopped
    jobs = [trials.own_job(search, trial, seed, root) for seed in trial.left]
    found = [(job.seed, plan.status(job)) for job in jobs]
    return "; ".join(
        f"seed {seed} {each.kind}{f': {each.detail}' if each.detail else ''}"
        for seed, each in found
    )


# --- search and report ----------------------------------------------------------------------------


def run(
    search: Search, root: Path, console: Console, launch: Launch, storage: str | None = None
) -> Outcome:
    """Runs trials until there are as many as the search says, one process at a time.

    Raises:
        Mistake: another process runs it, or the storage does not open.
    """
    from workbench.search import Dashboard, Searcher

    try:
        with trials.record_of(search, root).claim():
            searcher = Searcher(search, root)
            board = Dashboard(searcher.study, storage) if storage else None
            return _run(searcher, console, launch, board.sync if board else lambda: None)
    except (Held, ValueError) as error:
        raise Mistake(str(error)) from error


def _run(
    searcher: "Searcher", console: Console, launch: Launch, sync: Callable[[], None]
) -> Outcome:
    from workbench.launch import Event
    from workbench.search import Ended
    from workbench.search import run as run_trials
    from workbench.search.display import SearchDisplay
    from workbench.tracking import Mirror

    search, root = searcher.search, searcher.root
    for line in describe(search, root):
        console.print(line)
    known = trials.trials(search, root)
    launcher, mirror = launch([], search), Mirror(search, root, searcher.jobs)
    failed = False
    mirror.start()
    try:
        show = SearchDisplay(console, (), search=search, budget=search.trials, known=known)
        with show:
            for event in run_trials(searcher, launcher, search.trials):
                if isinstance(event, Event):
                    show(event)
                elif isinstance(event, Ended):
                    show.ended(event)
                    failed |= event.state == "failed"
                    sync()
    finally:
        behind = mirror.close()
    if searcher.hopeless:
        console.print(
            f"no more trials are asked for: {searcher.failures} failed and none was completed; "
            "see why above, and search again once that is mended"
        )
    if behind:
        console.print(f"{mirror.uri} does not show {', '.join(behind)}")
    status = INTERRUPTED if launcher.stopping else FAILED if failed else OK
    return Outcome(status, confirmation(search, trials.trials(search, root)))


def export(search: Search, root: Path, to: Path) -> list[plan.Job]:
    """Copies the record of the trials, and gives the runs that its report and the winner's need."""
    record, copied = trials.record_of(search, root), trials.record_of(search, to)
    found = trials.trials(search, root)
    if not found:
        return []
    sweep(copied.path)
    write_lines(copied.path / File.TRIALS, record.rows())
    fresh = confirmation(search, found)
    own = [
        job
        for each in found
        for seed in search.seeds
        for job in trials.jobs(search, each, seed, root)
    ]
    return own + (plan.jobs(fresh, root) if fresh else [])


def confirmation(search: Search, found: Sequence[Trial]) -> Study | None:
    """The study of what the trials found on fresh seeds; None while they have found nothing."""
    arms = trials.confirmed_arms(search, found)
    return search.confirmation(arms) if arms else None


def report(search: Search, root: Path, console: Console, source: Path | None = None) -> None:
    """Writes what the trials say, and Optuna's plots, into the search's report.

    Args:
        search: whose trials.
        root: the tracking folder.
        console: where it is told.
        source: the folder that the records are read from, if it is not the tracking folder.

    Raises:
        ValueError: no trial has a score yet.
    """
    from analysis.search import report as write
    from workbench.search import Searcher, plots

    written = write(search, root, plots(Searcher(search, source or root)), source)
    for line in written.notes:
        console.print(line)
    console.print(f"report    {written.folder} ({len(written.paths)} files)")
