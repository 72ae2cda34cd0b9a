"""Single runs by training step: which of them fall behind the others."""

import math
from pathlib import Path

import optuna
from optuna.trial import TrialState

from workbench.plan import Job
from workbench.records import Row
from workbench.samplers import WithinRun
from workbench.search.optuna_of import pruner_within


class Watch:
    """Optuna's view of single runs by training step: which of them fall behind.

    Each run is a trial of a second study, of no parameters: a pruner compares steps of one kind.
    """

    def __init__(self, pruner: WithinRun) -> None:
        self.metric = pruner.metric
        self.study = optuna.create_study(direction="maximize", pruner=pruner_within(pruner))
        self.asked: dict[Path, optuna.Trial] = {}
        self.steps: dict[Path, dict[int, float]] = {}

    def is_worse(self, job: Job, row: Row) -> bool:
        """Whether the run should stop, given one more row of its record."""
        path, step, value = job.run.path, row["step"], row.get(self.metric)
        if path not in self.asked:
            self.asked[path], self.steps[path] = self.study.ask(), {}
        seen = self.steps[path]
        # Step 0 is before training; a step run again after a crash has been seen.
        if step == 0 or step in seen or value is None or not math.isfinite(value):
            return False
        seen[step] = value
        self.asked[path].report(value, step)
        return self.asked[path].should_prune()

    def replay(self, job: Job, *, finished: bool) -> None:
        """Takes a run's whole record, and its end."""
        if self._state(job) not in (None, TrialState.RUNNING):
            return
        for row in job.run.rows():
            self.is_worse(job, row)
        self.end(job, finished=finished)

    def end(self, job: Job, *, finished: bool) -> None:
        """Settles a run: one that came to its last step is what others are compared with."""
        if self._state(job) is not TrialState.RUNNING:
            return
        path = job.run.path
        if finished and self.steps[path]:
            self.study.tell(self.asked[path], list(self.steps[path].values())[-1])
        else:
            self.study.tell(self.asked[path], state=TrialState.PRUNED)

    def _state(self, job: Job) -> TrialState | None:
        asked = self.asked.get(job.run.path)
        return None if asked is None else self.study.trials[asked.number].state
