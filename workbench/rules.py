"""Rules that types cannot say, each of which knows the nearest value that keeps it.

A field declares its rule in its type, and `workbench.identity.conform` holds it to that:
`at_most: Share`, `steps: Count`, `cap: Annotated[float, Within(above=1)]`. A rule that depends on
another field is held by `hold` in the component's `check`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any


def nearest(value: object, choices: Iterable[object]) -> str:
    """A hint that names the closest of the valid choices, or lists them all."""
    names = [str(choice) for choice in choices]
    return _close(value, names) or f"choose one of: {', '.join(names)}"


def _close(value: object, names: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else None


class Rule:
    """What a value of the right type must be besides; `str` says it after "must be"."""

    def admits(self, value: Any) -> bool:
        """Whether the value keeps the rule."""
        raise NotImplementedError

    def hint(self, value: Any, default: Any) -> str:
        """The valid choice nearest to a value that breaks the rule; the field's default may be."""
        raise NotImplementedError


@dataclass(frozen=True)
class Within(Rule):
    """A number between bounds, which belong to it (`at_least`, `at_most`) or not.

    Attributes:
        at_least, above, at_most, below: the bounds.
        what: the number in words, said before its bounds.
        such_as: a sensible number, for what lies beyond a bound that is itself not valid.
    """

    at_least: float = -inf
    above: float = -inf
    at_most: float = inf
    below: float = inf
    what: str = ""
    such_as: float = 1

    def __str__(self) -> str:
        if -inf < self.at_least and self.at_most < inf:
            bounds = f"from {self.at_least} to {self.at_most}"
        else:
            named = {"at least": self.at_least, "above": self.above}
            named |= {"at most": self.at_most, "below": self.below}
            said = (f"{word} {bound}" for word, bound in named.items() if abs(bound) < inf)
            bounds = " and ".join(said)
        return f"{self.what} {bounds}".lstrip()

    def admits(self, value: Any) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def hint(self, value: Any, default: Any) -> str:
        clamped = min(max(value, self.at_least), self.at_most)
        if self.admits(clamped):
            return f"the nearest is {type(value)(clamped)}"
        usual = isinstance(default, int | float) and self.admits(default)
        return f"such as {type(value)(default if usual else self.such_as)}"


@dataclass(frozen=True)
class OneOf(Rule):
    """One of some names."""

    choices: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"

    def admits(self, value: Any) -> bool:
        return value in self.choices

    def hint(self, value: Any, default: Any) -> str:
        return _close(value, self.choices) or f"such as {default!r}"


@dataclass(frozen=True)
class Spelled(Rule):
    """A text of a pattern.

    Attributes:
        pattern: a regular expression for all of it.
        what: the pattern in words.
        known: some that match it, the closest of which is named.
    """

    pattern: str
    what: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return self.what

    def admits(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def hint(self, value: Any, default: Any) -> str:
        return _close(value, self.known) or f"such as {default!r}"


@dataclass(frozen=True)
class Slug(Rule):
    """A name that paths and MLflow can carry."""

    def __str__(self) -> str:
        return f"of lower-case letters, digits, - and _, at most {_LONGEST} of them"

    def admits(self, value: Any) -> bool:
        return len(value) <= _LONGEST and re.fullmatch("[a-z0-9][a-z0-9_-]*", value) is not None

    def hint(self, value: Any, default: Any) -> str:
        plain = re.sub("[^a-z0-9_-]+", "-", value.lower())[:_LONGEST].strip("-_")
        return f"such as {plain or 'first'!r}"


_LONGEST = 100  # a path takes 255 bytes a name, and names are parts of longer ones

Share = Annotated[float, Within(at_least=0, at_most=1, what="a share", such_as=0.5)]
Portion = Annotated[float, Within(above=0, at_most=1, what="a share")]
Positive = Annotated[float, Within(above=0)]
Amount = Annotated[float, Within(at_least=0)]
Count = Annotated[int, Within(at_least=1)]
Whole = Annotated[int, Within(at_least=0)]
Name = Annotated[str, Slug()]


def hold(owner: object, field: str, rule: Rule) -> None:
    """Raises ValueError unless the field keeps a rule that depends on other fields."""
    value = getattr(owner, field)
    require(rule.admits(value), owner, field, str(rule), rule.hint(value, None))


def require(holds: bool, owner: object, field: str, rule: str, hint: str) -> None:
    """Raises ValueError naming the field, its rule, its value and a valid one, unless it holds."""
    if not holds:
        value = getattr(owner, field)
        raise ValueError(f"{type(owner).__name__}.{field} must be {rule}, got {value!r}; {hint}")
