"""What is trained and how: all that may change a result, and nothing else.

Hardware, threads, paths and trackers are in `resources`; how a finished checkpoint is measured is
an `Evaluation`, with an identity of its own, so that asking for more samples trains nothing.
"""

from math import cos, pi
from typing import Annotated, Any, Self

from workbench.identity import Component, replace
from workbench.problems.corpus import Corpus
from workbench.rules import (
    Amount,
    Count,
    OneOf,
    Portion,
    Positive,
    Share,
    Spelled,
    Whole,
    Within,
    hold,
    nearest,
    require,
)


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
    def needs_old(self) -> bool:
        """Whether an update reads the old policy before it begins, not only as it goes."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether the model as it was before training stays beside the policy."""
        return False

    @property
    def has_auxiliary(self) -> bool:
        """Whether losses beside the estimators are added."""
        return False


class Data(Component):
    """The embedded small world: questions with golds, demonstrations and test suites.

    Attributes:
        name: `arithmetic`; problems from the hub or from files are a `Corpus`.
        train: how many training questions to use, at most 100,000; None takes 600.
        seed: which training questions, and the order they are met in.
    """

    name: str
    train: Annotated[int, Within(at_least=1, at_most=100_000)] | None = None
    seed: int = 0


class Model(Component):
    """A base model with some settings that are not those of its own configuration.

    Attributes:
        name: `arithmetic-1m` (shipped), a Hugging Face name or a local folder.
        rope_theta: base of the wave lengths of its rotary embedding; None leaves the model's.
        positions: tokens that it may read, prompt and response together; None leaves the model's.
    """

    name: str
    rope_theta: Positive | None = None
    positions: Count | None = None


class Sampling(Component):
    """How rollouts are drawn.

    Attributes:
        temperature: divides the logits; log-probabilities are taken at this temperature too.
        top_p: nucleus; 1 alone, for below it another policy would be sampled than is trained.
        max_tokens: response tokens after which a rollout counts as truncated.
        engine: the rollout engine, `transformers` or `vllm`; a choice of numbers as well as speed.
    """

    temperature: Positive = 1.0
    top_p: Portion = 1.0
    max_tokens: Count = 128
    engine: Annotated[str, OneOf(("transformers", "vllm"))] = "transformers"

    def check(self) -> None:
        if self.top_p < 1:
            raise ValueError(
                f"Sampling.top_p is {self.top_p}, but rollouts of a nucleus are not draws from the "
                "policy whose log-probabilities gradients are made of: RLOO's too would be biased, "
                "and EngineCorrected sees nothing; use top_p=1.0 (an Evaluation may take any)"
            )


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

    warmup: Whole = 10
    floor: Share = 0.0

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * min(1.0, progress)))


_Decay = Annotated[float, Within(at_least=0, below=1, what="a decay", such_as=0.9)]


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

    learning_rate: Amount = 3e-4
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    weight_decay: Amount = 0.0
    epsilon: Amount = 1e-8
    schedule: Schedule = Constant()
    max_norm: Positive = 1.0
    skip_above: Annotated[float, Within(above=0, such_as=80)] | None = None
    nonfinite: Annotated[str, OneOf(("skip", "rollback", "stop"))] = "skip"


class Validation(Component):
    """Evaluation during training, on the validation split only, never on a test suite.

    Attributes:
        every: training steps between two evaluations; the last step is always one.
        samples: answers a problem.
        problems: how many validation problems; None takes all there are.
    """

    every: Count = 10
    samples: Count = 4
    problems: Count | None = None


# What validation measures and more of is better, for those who choose by it.
ACCURACY = Spelled(
    r"validation/(pass_at_1|level_[1-9]\d*)",
    "validation/pass_at_1 or a level's, validation/level_<n>",
    ("validation/pass_at_1", *(f"validation/level_{level}" for level in range(1, 6))),
)


class Recipe(Component):
    """One experiment but for its seed.

    Attributes:
        model: `arithmetic-1m` (shipped), a Hugging Face name or a local folder; or a `Model`, with
            settings of its own.
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
            step, for its variance; 1 measures none. Part of the recipe, for it orders the sum where
            a model's gradient cannot be told apart in one pass (see `training.parting`).
        start: the checkpoint of another recipe to start from.
    """

    model: str | Model
    data: Data | Corpus
    method: Objective | None = None
    steps: Count = 40
    questions: Count = 16
    rollouts: Count = 8
    updates_per_batch: Count = 1
    epochs_per_batch: Count = 1
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    validation: Validation = Validation()
    dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
    gradient_blocks: Count = 8
    start: "Start | None" = None

    def check(self) -> None:
        batches = "a number of mini-batches of whole questions,"
        rule = Within(at_least=1, at_most=self.questions, what=batches)
        hold(self, "updates_per_batch", rule)
        if self.data.train is not None and self.data.train < self.questions:
            raise ValueError(
                f"Data.train is {self.data.train}, fewer than the {self.questions} questions of a "
                f"step; use at most questions={self.data.train}"
            )

    @property
    def base(self) -> Model:
        """The model, with no setting of its own where it is a name."""
        return self.model if isinstance(self.model, Model) else Model(self.model)

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
        last = recipe.steps if isinstance(recipe, Recipe) else 1  # Start refuses what is none
        return replace(self, start=Start(recipe, last if step is None else step))


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
        hold(self, "step", Within(at_least=1, at_most=self.recipe.steps))


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

    samples: Count = 16
    more: tuple[tuple[str, Count], ...] = ()
    temperature: Positive = 0.6
    top_p: Portion = 0.95
    max_tokens: Count | None = None
    suites: tuple[str, ...] = ()
    problems: Count | None = None
    seed: int = 0

    def check(self) -> None:
        for field, suites in (("suites", self.suites), ("more", [suite for suite, _ in self.more])):
            once = list(dict.fromkeys(suites))
            hint = f"name each of {once} once"
            require(len(once) == len(suites), self, field, "without a suite named twice", hint)

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


_SolveRate = Annotated[float, Within(at_least=0, below=1, what="a solve rate", such_as=0.75)]


class Probe(Component):
    """A measurement of the gradient at one checkpoint: bias and variance of each of some methods.

    Every question is a draw of its own, with `replicates` independent groups of rollouts that all
    methods share; what is said is of steps of the recipe's size whose questions are drawn at
    random. `grid(Probe, methods=[...], step=[0, 24], distance=[0, 4])` makes several.

    Attributes:
        methods: what is measured; bare estimators train on rollouts alone.
        step: of the checkpoint; 0 is the model that training begins with.
        distance: optimizer steps between the policy that the rollouts come from (the checkpoint)
            and the current one. At 0 they are the same, and ratios and their masks cannot act.
        along: the method whose updates make that distance; the recipe's own unless given.
        questions: training questions, drawn at random. Intervals are over them; a band needs three.
        replicates: groups of rollouts of each question; 2 at least, which tell apart what rollouts
            and what questions add to the variance.
        rollouts: of each question in each replicate.
        mu: weights of the demonstrations in the objective J_mu that is taken for the truth.
        bands: solve rates that divide the questions; a band goes from above one to the next.
        difficulty_samples: answers a question that the solve rate is taken from, drawn apart.
        sketch: numbers that a gradient is mapped to; None keeps it whole.
        seed: of the questions and the rollouts. The policy that is measured, off policy too, does
            not follow from it: two seeds are two measurements of one thing.
    """

    methods: tuple[Objective, ...]
    step: Whole = 0
    distance: Whole = 0
    along: Objective | None = None
    questions: Annotated[int, Within(at_least=3)] = 128
    replicates: Annotated[int, Within(at_least=2)] = 2
    rollouts: Annotated[int, Within(at_least=2)] = 8  # the truth is leave-one-out
    mu: tuple[Amount, ...] = (0.0,)
    bands: tuple[_SolveRate, ...] = (0.0, 0.25, 0.5, 0.75)
    difficulty_samples: Count = 32
    sketch: Annotated[int, Within(at_least=64)] | None = 16_384
    seed: int = 0

    def check(self) -> None:
        some = len(self.methods) > 0
        require(some, self, "methods", "one method or more", "such as [upge.grpo()]")
        require(len(self.mu) > 0, self, "mu", "one weight or more", "such as [0.0]")
        rising = sorted(set(self.bands))
        require(list(self.bands) == rising, self, "bands", "rising", f"write {rising}")
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
