"""How a search draws its trials and which it stops early, as values; Optuna carries them out."""

from workbench.identity import Component
from workbench.recipe import require


class Sampler(Component):
    """How the next trial's parameters are drawn, by one of Optuna's samplers.

    Attributes:
        seed: of the draws; each trial draws from a stream of its own, so that a search that was
            interrupted goes on with the draws of one that was not.
    """

    seed: int = 0


class Tpe(Sampler):
    """Tree-structured Parzen estimators (`TPESampler`), after `startup` random trials."""

    startup: int = 10

    def check(self) -> None:
        require(self.startup >= 1, self, "startup", "at least 1 trial")


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

    p: float = 0.1
    startup: int = 2

    def check(self) -> None:
        require(0 < self.p < 1, self, "p", "a probability above 0 and below 1")
        require(self.startup >= 1, self, "startup", "at least 1 seed")


class WithinRun(Component):
    """Stops a run at a training step by a metric that is higher the better.

    Attributes:
        metric: `validation/pass_at_1`, `validation/level_<n>` or `reward/mean`.
    """

    metric: str = "validation/pass_at_1"

    def check(self) -> None:
        known = self.metric == "reward/mean" or self.metric.startswith("validation/")
        require(known, self, "metric", "validation/... or reward/mean, higher the better")


class Median(WithinRun):
    """Stops a run below the median of earlier runs at the same step (`MedianPruner`).

    Attributes:
        startup: finished runs before any is stopped.
        warmup: training steps before any is stopped.
    """

    startup: int = 5
    warmup: int = 0

    def check(self) -> None:
        super().check()
        require(self.startup >= 1, self, "startup", "at least 1 run")
        require(self.warmup >= 0, self, "warmup", "at least 0 steps")


class Hyperband(WithinRun):
    """Stops all but the best share of runs at steps growing by a factor (`HyperbandPruner`).

    Attributes:
        least: training steps that every run gets.
        factor: one in so many runs goes on at each of those steps.
    """

    least: int = 1
    factor: int = 3

    def check(self) -> None:
        super().check()
        require(self.least >= 1, self, "least", "at least 1 step")
        require(self.factor >= 2, self, "factor", "at least 2")
