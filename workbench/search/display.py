"""What `search` shows while it works: the runs that train, and a line for each trial that ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.text import Text

from workbench.display import Display
from workbench.launch import Event
from workbench.search.searcher import Ended
from workbench.study import Search
from workbench.trials import Trial, winners


@dataclass
class SearchDisplay(Display):
    """Shows the events of a search: those of its runs, and a line for each trial that ended.

    Attributes:
        search: whose trials they are.
        budget: how many trials there will be.
        known: trials of earlier launches.
    """

    search: Search = field(kw_only=True)
    budget: int = field(kw_only=True)
    known: Sequence[Trial] = field(kw_only=True)
    _best: Trial | None = field(default=None, init=False)

    def _overall(self) -> tuple[str, int, int]:
        ended = sum(trial.state != "open" for trial in self.known)
        self._best = self._better(self.known)
        return "trials", max(self.budget, len(self.known)), ended

    def _counted(self, event: Event) -> bool:
        return False

    def ended(self, ended: Ended) -> None:
        """Shows a trial that ended, with its scores."""
        trial = ended.trial
        self._best = self._better([trial])
        best = trial is self._best
        sentence = f"{trial.label}  {trial.drawn}  {_result(self.search, ended)}"
        style = "green" if best else "red" if ended.state == "failed" else ""
        self.console.print(Text(sentence + ("  best so far" if best else ""), style=style))
        if self._progress is not None and self._best is not None:
            note = f"best {self._best.means[0]:.3f}, {self._best.label}"
            self._progress.update(self._all, advance=1, note=note)

    def _better(self, found: Sequence[Trial]) -> Trial | None:
        """The best of these and of what was the best before; there is one of one objective only."""
        if len(self.search.objectives) > 1:
            return None
        among = [*([self._best] if self._best else []), *found]
        return next(iter(winners(self.search, among)), None)


def _result(search: Search, ended: Ended) -> str:
    trial, number = ended.trial, len(ended.trial.scores)
    means = zip(search.objectives, trial.means, strict=False)
    parts = [f"{key} {value:.3f}" for key, value in means]
    parts += [f"({number} seed{'s' * (number != 1)})"] if parts else []
    parts += [ended.state] if ended.state != "complete" else []
    return " ".join([*parts, *([f"[{ended.reason}]"] if ended.reason else [])])
