"""What is trained and how: all that may change a result, and nothing else.

Hardware, threads, paths and trackers are in `resources`; how a finished checkpoint is measured is
an `Evaluation`, with an identity of its own, so that asking for more samples trains nothing.
"""

from math import cos, pi
from typing import Any, Self

from workbench.identity import Component, nearest, replace, require
from workbench.problems.corpus import Corpus


class Objective(Component):
    """Anything a recipe can train with: `upge.Method` and `upge.Estimator` are the two kinds."""

    def as_method(self) -> "Objective":
        """The full method: a bare estimator becomes one that trains rollouts only."""
        return self

    def on_policy(self) -> "Objective":
        """What this is when current and old policy are equal, as with one update a batch."""
        return self

    @property
    def label(self) -> str:
        """A short name for people; programs read fields."""
        return str(self)

    @property
    def samples_rollouts(self) -> bool:
        """Whether a step needs rollouts, to train on or for its gate to read."""
        raise NotImplementedError

    @property
    def needs_demonstrations(self) -> bool:
        """Whether a step needs a demonstration of each of its questions."""
        raise NotImplementedError

    @property
    def needs_values(self) -> bool:
        """Whether the policy needs a value head."""
        return False

    @property
    def has_auxiliary(self) -> bool:
        """Whether losses beside the estimators are added."""
        return False


class Data(Component):
    """The embedded small world: questions with golds, demonstrations and test suites.

    Attributes:
        name: `arithmetic`; problems from the hub or from files are a `Corpus`.
        train: how many training questions to use; None takes all there are.
        seed: which training questions, and the order they are met in.
    """

    name: str
    train: int | None = None
    seed: int = 0

    def check(self) -> None:
        require(self.train is None or self.train >= 1, self, "train", "at least 1, or None for all")


class Sampling(Component):
    """How rollouts are drawn.

    Attributes:
        temperature: divides the logits; log-probabilities are taken at this temperature too.
        top_p: nucleus; below 1 the sampled distribution is not the trained one.
        max_tokens: response tokens after which a rollout counts as truncated.
        engine: the rollout engine, `transformers` or `vllm`; a choice of numbers as well as speed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 128
    engine: str = "transformers"

    def check(self) -> None:
        require(self.temperature > 0, self, "temperature", "above 0")
        require(0 < self.top_p <= 1, self, "top_p", "a probability mass, above 0 and at most 1")
        require(self.max_tokens >= 1, self, "max_tokens", "at least 1")
        if self.engine not in ENGINES:
            raise ValueError(f"Sampling.engine is {self.engine!r}; {nearest(self.engine, ENGINES)}")
        if self.engine == "vllm" and self.top_p < 1:
            raise ValueError(
                f"Sampling.top_p is {self.top_p}, but with engine='vllm' rollouts are trained on "
                "with vLLM's log-probabilities, which below 1 are those of the nucleus alone and "
                "not of the policy that is trained; use top_p=1.0 (an Evaluation may take any)"
            )


ENGINES = ("transformers", "vllm")
LEAST_TEMPERATURE = 0.01  # what vLLM silently raises lower ones to
GREEDY_BELOW = 1e-5  # where it takes the most probable token instead


def check_vllm_temperature(temperature: float) -> None:
    """Raises ValueError for a temperature that vLLM would take another one for."""
    if GREEDY_BELOW <= temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"temperature {temperature} is lower than vLLM samples at; use at least "
            f"{LEAST_TEMPERATURE}, or less than {GREEDY_BELOW} for the most probable tokens"
        )


class Schedule(Component):
    """The learning rate's factor at a step."""

    def __call__(self, step: int, steps: int) -> float:
        """The factor for step `step` (from 0) of `steps`."""
        raise NotImplementedError


class Constant(Schedule):
    """The learning rate never changes."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0


class WarmupCosine(Schedule):
    """Rises linearly over `warmup` steps, then falls along a half cosine to `floor`."""

    warmup: int = 10
    floor: float = 0.0

    def check(self) -> None:
        require(self.warmup >= 0, self, "warmup", "at least 0 steps")
        require(0 <= self.floor <= 1, self, "floor", "a share of the learning rate, 0 to 1")

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * min(1.0, progress)))


class Optimizer(Component):
    """AdamW and what guards it.

    Attributes:
        learning_rate: the peak, per optimizer step.
        betas: decay of the first and second moments.
        weight_decay: decoupled, on every parameter.
        epsilon: added to the root of the second moment.
        schedule: the learning rate's factor over the optimizer steps of the run.
        max_norm: gradients are scaled down to this global norm.
        skip_above: updates whose norm before clipping is larger are skipped and counted
            (80 in the released HPT); None skips only non-finite ones.
        nonfinite: what follows an update whose loss or gradient is not finite, which is never
            made and always counted: `skip` goes on with the next, `rollback` goes back to the
            weights and optimizer state of the last validation and on with the next batch, `stop`
            ends the run.
    """

    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    schedule: Schedule = Constant()
    max_norm: float = 1.0
    skip_above: float | None = None
    nonfinite: str = "skip"

    def check(self) -> None:
        require(self.learning_rate >= 0, self, "learning_rate", "at least 0")
        require(all(0 <= b < 1 for b in self.betas), self, "betas", "two decays in [0, 1)")
        require(self.weight_decay >= 0, self, "weight_decay", "at least 0")
        require(self.max_norm > 0, self, "max_norm", "above 0")
        require(self.skip_above is None or self.skip_above > 0, self, "skip_above", "above 0")
        if self.nonfinite not in NONFINITE:
            hint = nearest(self.nonfinite, NONFINITE)
            raise ValueError(f"Optimizer.nonfinite is {self.nonfinite!r}; {hint}")


NONFINITE = ("skip", "rollback", "stop")


class Validation(Component):
    """Evaluation during training, on the validation split only, never on a test suite.

    Attributes:
        every: training steps between two evaluations; the last step is always one.
        samples: answers a problem.
        problems: how many validation problems; None takes all there are.
    """

    every: int = 10
    samples: int = 4
    problems: int | None = None

    def check(self) -> None:
        require(self.every >= 1, self, "every", "at least 1 step")
        require(self.samples >= 1, self, "samples", "at least 1")
        require(
            self.problems is None or self.problems >= 1, self, "problems", "at least 1, or None"
        )


DTYPES = ("float32", "bfloat16")
_COUNTS = (
    "steps", "questions", "rollouts", "updates_per_batch", "epochs_per_batch", "gradient_blocks",
)  # fmt: skip


class Recipe(Component):
    """One experiment but for its seed.

    Attributes:
        model: `arithmetic-1m` (shipped), a Hugging Face name or a local folder.
        data: the questions, of the small world or of a corpus.
        method: an `upge` method or estimator; None leaves the model as it is.
        steps: rollout batches (or demonstration batches) in the whole run.
        questions: questions a step.
        rollouts: rollouts a question.
        updates_per_batch: optimizer steps over one batch, as mini-batches of whole questions. With
            one, current and old policy are equal and ratio masks cannot act.
        epochs_per_batch: passes over one batch.
        sampling, optimizer, validation: see there.
        dtype: of the forward and backward pass; parameters stay float32.
        gradient_blocks: blocks of whole questions whose gradients are told apart in every optimizer
            step, for its variance; 1 measures none. It orders the sum, so it is part of the recipe.
        start: the checkpoint of another recipe to start from.
    """

    model: str
    data: Data | Corpus
    method: Objective | None = None
    steps: int = 40
    questions: int = 16
    rollouts: int = 8
    updates_per_batch: int = 1
    epochs_per_batch: int = 1
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    validation: Validation = Validation()
    dtype: str = "float32"
    gradient_blocks: int = 8
    start: "Start | None" = None

    def check(self) -> None:
        for field in _COUNTS:
            require(getattr(self, field) >= 1, self, field, "at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"Recipe.dtype is {self.dtype!r}; {nearest(self.dtype, DTYPES)}")
        if self.updates_per_batch > self.questions:
            raise ValueError(
                f"Recipe.updates_per_batch is {self.updates_per_batch}, but a batch has only "
                f"{self.questions} questions and a mini-batch holds whole questions"
            )
        if self.data.train is not None and self.data.train < self.questions:
            raise ValueError(
                f"Data.train is {self.data.train}, fewer than the {self.questions} questions of a "
                f"step; use at most questions={self.data.train}"
            )

    def using(self, method: Objective | None, **changes: Any) -> Self:
        """This recipe with another method, and any other field changed with it.

        A bare estimator trains rollouts only.
        """
        if isinstance(method, str):
            raise TypeError(f"methods are values: write upge.{method}() instead of {method!r}")
        if callable(method) and not isinstance(method, Component):
            name = getattr(method, "__name__", "method")
            raise TypeError(f"{name} is a function that makes a method; call it: upge.{name}()")
        full = method.as_method() if isinstance(method, Objective) else method
        return replace(self, method=full, **changes)

    def start_from(self, recipe: "Recipe", step: int | None = None) -> Self:
        """This recipe, begun at another recipe's checkpoint (its last, or after `step` steps)."""
        return replace(self, start=Start(recipe, recipe.steps if step is None else step))


class Start(Component):
    """A checkpoint of another recipe: its weights, not its optimizer state."""

    recipe: Recipe
    step: int

    def check(self) -> None:
        if self.recipe.method is None:
            raise ValueError(
                "Start.recipe has no method, so it trains nothing to start from; leave the start "
                "out to begin with its model, or give it one: base.using(upge.sft())"
            )
        require(1 <= self.step <= self.recipe.steps, self, "step", f"1 to {self.recipe.steps}")


class Evaluation(Component):
    """How a checkpoint is measured on test suites; the same for every cell of a study.

    Attributes:
        samples: answers a problem on each suite.
        more: more answers on some suites, as (suite, samples) pairs.
        temperature, top_p: of the sampling (0.6 and 0.95 in the paper).
        max_tokens: response tokens after which an answer counts as truncated; None takes the
            recipe's.
        suites: names of suites; empty takes all of the data's.
        problems: at most how many of each suite's problems; None takes all.
        seed: of the sampling.
    """

    samples: int = 16
    more: tuple[tuple[str, int], ...] = ()
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int | None = None
    suites: tuple[str, ...] = ()
    problems: int | None = None
    seed: int = 0

    def check(self) -> None:
        require(
            self.problems is None or self.problems >= 1, self, "problems", "at least 1, or None"
        )
        require(self.samples >= 1, self, "samples", "at least 1")
        require(all(n >= 1 for _, n in self.more), self, "more", "pairs of a suite and 1 or more")
        longest = self.max_tokens
        require(longest is None or longest >= 1, self, "max_tokens", "at least 1, or None")
        require(self.temperature > 0, self, "temperature", "above 0")
        require(0 < self.top_p <= 1, self, "top_p", "a probability mass, above 0 and at most 1")

    def samples_for(self, suite: str) -> int:
        """Answers a problem on this suite."""
        return dict(self.more).get(suite, self.samples)

    def measurements(self, suites: tuple[str, ...], recipe: Recipe) -> tuple["Measurement", ...]:
        """One measurement for each suite, given the data's suites.

        Raises:
            ValueError: a suite that the data does not have.
        """
        for name in (*self.suites, *(suite for suite, _ in self.more)):
            if name not in suites:
                raise ValueError(f"Evaluation names suite {name!r}; {nearest(name, suites)}")
        tokens = recipe.sampling.max_tokens if self.max_tokens is None else self.max_tokens
        return tuple(
            Measurement(
                s,
                self.samples_for(s),
                self.temperature,
                self.top_p,
                tokens,
                self.seed,
                self.problems,
            )
            for s in (self.suites or suites)
        )


class Measurement(Component):
    """One suite's evaluation of one checkpoint: the unit that is sampled, recorded and reused."""

    suite: str
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    problems: int | None = None


class Probe(Component):
    """A measurement of the gradient at one checkpoint: bias and variance of each of some methods.

    `replicates` independent steps over the same questions, each with rollouts of its own, which
    all methods share. `grid(Probe, methods=[...], step=[0, 24], distance=[0, 4])` makes several.

    Attributes:
        methods: what is measured; bare estimators train on rollouts alone.
        step: of the checkpoint; 0 is the model that training begins with.
        distance: optimizer steps between the policy that the rollouts come from (the checkpoint)
            and the current one. At 0 they are the same, and ratios and their masks cannot act.
        along: the method whose updates make that distance; the recipe's own unless given.
        questions: training questions, the first of the data's.
        replicates: independent steps; 3 at least.
        rollouts: of each question in each replicate.
        mu: weights of the demonstrations in the objective J_mu that is taken for the truth.
        bands: solve rates that divide the questions; a band goes from above one to the next.
        difficulty_samples: answers a question that the solve rate is taken from, drawn apart.
        sketch: numbers that a gradient is mapped to; None keeps it whole.
        seed: of the rollouts.
    """

    methods: tuple[Objective, ...]
    step: int = 0
    distance: int = 0
    along: Objective | None = None
    questions: int = 48
    replicates: int = 12
    rollouts: int = 8
    mu: tuple[float, ...] = (0.0,)
    bands: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    difficulty_samples: int = 32
    sketch: int | None = 16_384
    seed: int = 0

    def check(self) -> None:
        require(len(self.methods) > 0, self, "methods", "one method or more")
        require(self.step >= 0, self, "step", "0 or more")
        require(self.distance >= 0, self, "distance", "0 or more optimizer steps")
        require(self.questions >= 2, self, "questions", "at least 2")
        require(self.replicates >= 3, self, "replicates", "at least 3")
        require(self.rollouts >= 2, self, "rollouts", "at least 2, as the truth is leave-one-out")
        require(len(self.mu) > 0 and min(self.mu) >= 0, self, "mu", "weights of 0 or more")
        inside = all(0 <= b < 1 for b in self.bands) and list(self.bands) == sorted(set(self.bands))
        require(inside, self, "bands", "rising solve rates, from 0 to below 1")
        require(self.difficulty_samples >= 1, self, "difficulty_samples", "at least 1")
        require(self.sketch is None or self.sketch >= 64, self, "sketch", "at least 64, or None")
        full = tuple(method.as_method() for method in self.methods)
        object.__setattr__(self, "methods", full)
        for method in (*full, *(() if self.along is None else (self.along,))):
            if method.needs_values:
                raise ValueError(
                    f"Probe cannot measure {method.label}: its advantage needs a trained value "
                    "head, which a checkpoint of another method lacks; use upge.grpo() or another"
                )
            if method.has_auxiliary and method in full:
                raise ValueError(
                    f"Probe cannot measure {method.label}: its auxiliary losses are not estimates "
                    "of the gradient of J; leave them out, as in hpt_released(entropy_bonus=0)"
                )

    @property
    def cost(self) -> str:
        """What it will do, in words; what moves the policy off its rollouts is not counted."""
        drawn = self.questions * self.replicates * self.rollouts
        samples = 2 if self.distance else 1  # off policy the truth has one of its own
        answers = samples * drawn + self.questions * self.difficulty_samples
        sequences = samples * (drawn + self.questions)
        size = "whole gradients" if self.sketch is None else f"{self.sketch:,} numbers a gradient"
        return (
            f"{len(self.methods)} methods on {self.questions} questions: {answers:,} answers, "
            f"at most {sequences:,} sequences differentiated one by one, once for each pattern of "
            f"token weights; {size}"
        )
