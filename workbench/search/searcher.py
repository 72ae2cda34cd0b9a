"""The state of a search: trials asked for, jobs to train, scores told, trials stopped early."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import TrialState

from workbench import trials
from workbench.launch.local import Event, Launcher, State
from workbench.plan import Job, merged
from workbench.records import Row
from workbench.samplers import FullGrid
from workbench.search.optuna_of import directions_of, pruner_between, sampler_of
from workbench.search.watch import Watch
from workbench.study import Search
from workbench.trials import Scores, Trial
from workbench.validate import validate

HOPELESS = 5  # failed trials after which no more are asked for, if none was ever completed


@dataclass
class Arm:
    """One recipe under all the search's seeds, for every trial that proposed it.

    Attributes:
        trial: the first that did.
        asked: each of them, as Optuna knows it.
        jobs: those started, by seed.
        scores: of the seeds that are done.
        ended: `complete`, `pruned` or `failed`; empty while it goes on.
        repeats: numbers of the trials that proposed it after the first.
    """

    trial: Trial
    asked: list[optuna.Trial] = field(default_factory=list)
    jobs: dict[int, Job] = field(default_factory=dict)
    scores: dict[int, Scores] = field(default_factory=dict)
    ended: str = ""
    repeats: list[int] = field(default_factory=list)

    def next_seed(self, seeds: Sequence[int], *, one_by_one: bool) -> int | None:
        """The seed to train next; one by one, only once those before it have a score."""
        begun = self.jobs.keys() | self.scores.keys()
        if self.ended or (one_by_one and begun - self.scores.keys()):
            return None
        return next((seed for seed in seeds if seed not in begun), None)


@dataclass(frozen=True)
class Ended:
    """A trial came to its end: `complete`, `pruned` or `failed`, and why."""

    trial: Trial
    state: str
    reason: str = ""


class Searcher:
    """The state of a search: rebuilt from its records, asked for jobs, told what became of them.

    Attributes:
        study: Optuna's, in memory.
        arms: one for each recipe that was proposed.
        jobs: every run of every trial, started or not, and once where trials start from the same
            one; the list grows with the search.
        asked: trials so far.
        exhausted: every combination of a full grid was asked for.
    """

    def __init__(self, search: Search, root: Path) -> None:
        self.search, self.root = search, root
        self.record = trials.record_of(search, root)
        self.study = optuna.create_study(
            study_name=search.name,
            directions=directions_of(search),
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=pruner_between(search),
        )
        self.arms: dict[str, Arm] = {}
        self.jobs: list[Job] = []
        self._places: dict[Path, int] = {}  # in jobs
        self.asked = 0
        self.exhausted = False
        self.failures = 0
        self._stops: list[tuple[Job, str]] = []
        self._news: list[Ended] = []
        self._watch = Watch(search.within_run) if search.within_run else None
        self._number = trials.next_number(search, root)
        self._seen: list[dict[str, Any]] = []
        self._rebuild()

    def _rebuild(self) -> None:
        known = trials.trials(self.search, self.root)
        for trial in known:
            self.study.enqueue_trial(trial.params)
            asked = self.study.ask()
            self.search.propose(asked)
            self._join(trial, asked)
        for arm in self.arms.values():
            self._settle_again(arm)
        self._news.clear()
        for point in self.search.points:
            self.study.enqueue_trial(point, skip_if_exists=True)

    def _settle_again(self, arm: Arm) -> None:
        """Brings a recorded trial to where it was; what its pruners would say now is not asked."""
        for seed in self.search.seeds:
            job = trials.own_job(self.search, arm.trial, seed, self.root)
            if self._watch and (seed in arm.trial.scores or arm.trial.state == "pruned"):
                self._watch.replay(job, finished=seed in arm.trial.scores)
            if seed in arm.trial.scores:
                self._report(arm, seed, arm.trial.scores[seed])
        if arm.trial.state != "open":
            self._end(arm, arm.trial.state, arm.trial.stopped)

    def _join(self, trial: Trial, asked: optuna.Trial) -> Arm:
        key = trials.key_of(trial.recipe)
        if key not in self.arms:
            self.arms[key] = Arm(trial)
            for seed in self.search.seeds:
                for job in trials.jobs(self.search, trial, seed, self.root):
                    self._add(job)
        arm = self.arms[key]
        arm.asked.append(asked)
        self.asked += 1
        self._seen.append(asked.params)
        return arm

    def _add(self, job: Job) -> None:
        number = self._places.setdefault(job.run.path, len(self.jobs))
        if number < len(self.jobs):
            self.jobs[number] = merged(self.jobs[number], job)
        else:
            self.jobs.append(job)

    # --- what to train ---

    def wanted(self, room: int, budget: int) -> list[Job]:
        """Jobs for so many free slots, of open trials first and then of new ones up to a budget."""
        found: list[Job] = []
        while room > 0:
            started = self._start_one() or (self._ask(budget) and self._start_one())
            if not started:
                if self._may_ask(budget):
                    continue  # the trial asked for had been made before
                break
            found += started
            room -= 1
        return found

    def _start_one(self) -> list[Job]:
        one_by_one = self.search.between_seeds is not None
        for arm in self.arms.values():
            seed = arm.next_seed(tuple(self.search.seeds), one_by_one=one_by_one)
            if seed is not None:
                found = trials.jobs(self.search, arm.trial, seed, self.root)
                arm.jobs[seed] = found[-1]
                return found
        return []

    @property
    def hopeless(self) -> bool:
        """Whether so many trials failed, and none came to its end, that no more are asked for."""
        completed = any(arm.ended == "complete" for arm in self.arms.values())
        return self.failures >= HOPELESS and not completed

    def _may_ask(self, budget: int) -> bool:
        return self.asked < budget and not self.exhausted and not self.hopeless

    def _ask(self, budget: int) -> bool:
        """Asks Optuna for a trial and records it; one that was made before is told at once."""
        if not self._may_ask(budget):
            return False
        with self._sampling():
            asked = self.study.ask()
            recipe = self.search.propose(asked)
        if isinstance(self.search.sampler, FullGrid) and asked.params in self._seen:
            self.study.tell(asked, state=TrialState.FAIL)
            self.exhausted = True
            return False
        trial = Trial(self._number, asked.params, recipe, self._number)
        validate(self.search.study_of(trial.label, recipe, (0,)))
        self.record.asked(trial)
        self._number += 1
        self._begin(self._join(trial, asked), asked)
        return True

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """The search's own sampler while a trial is asked for.

        Not beyond: an exhausted `BruteForceSampler` tries to stop a loop that there is none of.
        """
        before = self.study.sampler
        self.study.sampler = sampler_of(self.search.sampler, self._number)
        try:
            yield
        finally:
            self.study.sampler = before

    def _begin(self, arm: Arm, asked: optuna.Trial) -> None:
        """Tells a new trial what is known already: of the trial it repeats, or of finished runs."""
        if len(arm.asked) > 1:
            for seed, scores in arm.scores.items():
                self._report_to(asked, seed, scores)
            arm.repeats.append(self._number - 1)
            if arm.ended:
                self._tell(asked, arm)
                self._news.append(self._repeated(arm, self._number - 1))
            return
        for seed in self.search.seeds:
            job = trials.own_job(self.search, arm.trial, seed, self.root)
            if job.done and not arm.ended:
                self._scored(arm, seed, job)

    def _repeated(self, arm: Arm, number: int) -> Ended:
        """The end of a trial that proposed what another had: with that one's scores."""
        trial = replace(self._trial(arm), number=number)
        return Ended(trial, arm.ended, f"the same as {arm.trial.label}")

    def _trial(self, arm: Arm, stopped: str = "") -> Trial:
        """An arm's trial with the scores that it has by now."""
        left = tuple(seed for seed in self.search.seeds if seed not in arm.scores)
        return replace(arm.trial, scores=dict(arm.scores), left=left, stopped=stopped)

    # --- what became of it ---

    def observe(self, event: Event) -> None:
        """Takes an event of the launcher."""
        found = self._find(event.job)
        if found is None:
            return
        arm, seed = found
        if event.row is not None:
            self._stepped(arm, seed, event.job, event.row)
        elif event.state is State.DONE:
            self._scored(arm, seed, event.job)
        elif event.state in (State.FAILED, State.BLOCKED):
            self._give_up(arm, "failed", f"seed {seed}: {event.reason}")

    def _find(self, job: Job) -> tuple[Arm, int] | None:
        """The trial and the seed that a job is for; none for a run that others start from."""
        arm = self.arms.get(trials.key_of(job.recipe))
        mine = arm is not None and not arm.ended and arm.jobs.get(job.seed)
        return (arm, job.seed) if arm and mine and mine.run.path == job.run.path else None

    def _stepped(self, arm: Arm, seed: int, job: Job, row: Row) -> None:
        if self._watch is not None and self._watch.is_worse(job, row):
            reason = f"{self.search.within_run} stopped seed {seed} at step {row['step']}"
            self._give_up(arm, "pruned", reason)

    def _scored(self, arm: Arm, seed: int, job: Job) -> None:
        scores = trials.scores_of(self.search, job)
        if scores is None or not all(map(math.isfinite, scores)):
            shown = dict(zip(self.search.objectives, scores or [None], strict=False))
            self._give_up(arm, "failed", f"seed {seed} has no finite score: {shown}")
            return
        if self._watch is not None:
            self._watch.replay(job, finished=True)
        self._report(arm, seed, scores)
        if len(arm.scores) == len(tuple(self.search.seeds)):
            self._end(arm, "complete")
        elif len(self.search.objectives) == 1 and arm.asked[0].should_prune():
            reason = f"{self.search.between_seeds} stopped it after {len(arm.scores)} seeds"
            self._give_up(arm, "pruned", reason)

    def _report(self, arm: Arm, seed: int, scores: Scores) -> None:
        arm.scores[seed] = scores
        for asked in arm.asked:
            self._report_to(asked, seed, scores)

    def _report_to(self, asked: optuna.Trial, seed: int, scores: Scores) -> None:
        if len(scores) == 1:  # Optuna has no steps for several objectives
            asked.report(scores[0], step=seed)

    def _give_up(self, arm: Arm, state: str, reason: str) -> None:
        """Ends a trial early; its runs that still train stop at their next step."""
        if state == "pruned":
            self.record.stopped(arm.trial, reason)
        self.failures += state == "failed"
        self._stops += [(job, reason) for s, job in arm.jobs.items() if s not in arm.scores]
        self._end(arm, state, reason)

    def _end(self, arm: Arm, state: str, reason: str = "") -> None:
        arm.ended = state
        if self._watch is not None:
            for job in arm.jobs.values():
                self._watch.end(job, finished=False)
        for asked in arm.asked:
            self._tell(asked, arm)
        stopped = reason if state == "pruned" else ""
        self._news.append(Ended(self._trial(arm, stopped), state, reason))
        self._news += [self._repeated(arm, number) for number in arm.repeats]

    def _tell(self, asked: optuna.Trial, arm: Arm) -> None:
        """A trial stopped between seeds counts with its mean so far, as Optuna advises."""
        between = arm.ended == "pruned" and arm.scores and self.search.between_seeds is not None
        if arm.ended == "complete" or between:
            means = [fmean(each) for each in zip(*arm.scores.values(), strict=True)]
            self.study.tell(asked, means)
        else:
            state = TrialState.PRUNED if arm.ended == "pruned" else TrialState.FAIL
            self.study.tell(asked, state=state)

    def stops(self) -> list[tuple[Job, str]]:
        """Runs to be stopped, and why; each is named once."""
        found, self._stops = self._stops, []
        return found

    def news(self) -> list[Ended]:
        """Trials that ended since the last call."""
        found, self._news = self._news, []
        return found


def run(searcher: Searcher, launcher: Launcher, budget: int) -> Iterator[Event | Ended | None]:
    """Trains trials until there are so many; yields what happens to jobs and to trials."""
    launcher.add(searcher.wanted(launcher.room, budget))
    yield from searcher.news()
    for event in launcher.run():
        if event is not None:
            searcher.observe(event)
            yield event
            continue
        for job, reason in searcher.stops():
            launcher.stop(job, reason)
        if not launcher.stopping:
            launcher.add(searcher.wanted(launcher.room, budget))
        yield from searcher.news()
        yield None
