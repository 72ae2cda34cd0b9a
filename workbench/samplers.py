"""How a search draws its trials and which it stops early, as values; Optuna carries them out."""

from typing import Annotated

from workbench.identity import Component
from workbench.recipe import ACCURACY
from workbench.rules import Count, Spelled, Whole, Within


class Sampler(Component):
    """How the next trial's parameters are drawn, by one of Optuna's samplers.

    Attributes:
        seed: of the draws; each trial draws from a stream of its own, so that a search that was
            interrupted goes on with the draws of one that was not.
    """

    seed: Whole = 0


class Tpe(Sampler):
    """Tree-structured Parzen estimators (`TPESampler`), after `startup` random trials."""

    startup: Count = 10


class FullGrid(Sampler):
    """Every combination once, in random order (`BruteForceSampler`); floats need a `step`."""


class Random(Sampler):
    """Independent draws (`RandomSampler`)."""


class Wilcoxon(Component):
    """Stops a trial between seeds once it is worse than the best one (`WilcoxonPruner`).

    The signed-rank test pairs the two trials by seed.

    Attributes:
        p: a trial is stopped below this one-sided p-value. It is looked at after every seed, so
            that a trial as good as the best is stopped more often than in a share p of the cases.
        startup: seeds before the first look.
    """

    p: Annotated[float, Within(above=0, below=1, what="a probability")] = 0.1
    startup: Count = 2


_BETTER = Spelled(
    f"reward/mean|{ACCURACY.pattern}", f"reward/mean, {ACCURACY}", ("reward/mean", *ACCURACY.known)
)


class WithinRun(Component):
    """Stops a run at a training step by a metric that is higher the better.

    Attributes:
        metric: `validation/pass_at_1`, `validation/level_<n>` or `reward/mean`.
    """

    metric: Annotated[str, _BETTER] = "validation/pass_at_1"


class Median(WithinRun):
    """Stops a run below the median of earlier runs at the same step (`MedianPruner`).

    Attributes:
        startup: finished runs before any is stopped.
        warmup: training steps before any is stopped.
    """

    startup: Count = 5
    warmup: Whole = 0


class Hyperband(WithinRun):
    """Stops all but the best share of runs at steps growing by a factor (`HyperbandPruner`).

    Attributes:
        least: training steps that every run gets.
        factor: one in so many runs goes on at each of those steps.
    """

    least: Count = 1
    factor: Annotated[int, Within(at_least=2)] = 3
