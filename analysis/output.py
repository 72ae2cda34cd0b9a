"""What a study file declares to be written from its runs: a name, a study, and what to show."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.load import Runs
from analysis.sheet import Sheet
from workbench.identity import conform, nearest
from workbench.study import Study


@dataclass(frozen=True)
class Output:
    """Anything that is written from a study's runs.

    Attributes:
        name: of the files.
        study: whose runs are shown.
        arms: labels of those that are shown; empty shows all.
        title: what it is called on the page; its name if empty.

    Raises:
        ValueError: an arm that the study does not have, with the nearest one that it has.
    """

    name: str
    study: Study
    arms: Sequence[str] = field(default=(), kw_only=True)
    title: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        conform(self)
        object.__setattr__(self, "arms", tuple(self.arms))
        for arm in self.arms:
            self.known_arm(arm, "arms")

    def known_arm(self, arm: str, field: str) -> None:
        """Raises ValueError for a label that no arm of the study has."""
        if arm not in self.study.recipes:
            hint = nearest(arm, self.study.recipes)
            raise ValueError(f"{type(self).__name__}.{field} names arm {arm!r}; {hint}")

    def check(self) -> None:
        """Raises ValueError where the study's data or evaluation cannot give the output."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Labels of the arms whose runs it reads; empty reads all."""
        return tuple(self.arms)


@dataclass(frozen=True)
class Tabular(Output):
    """Anything that is written as a table."""

    def sheet(self, runs: Runs) -> Sheet:
        """The table of these runs."""
        raise NotImplementedError
