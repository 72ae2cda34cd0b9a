"""The trainer: everything that a training step works with, opened at one of a run's moments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch

from workbench import upge
from workbench.models import locate
from workbench.problems import Dataset, Problem, Text
from workbench.processes import settle_memory
from workbench.recipe import Recipe
from workbench.records import Run, run_of
from workbench.resources import LEAST_TOKENS, Resources
from workbench.rollout import Engine
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.rollout.vllm_engine import Setup, VllmEngine
from workbench.threads import at_once, threads_for
from workbench.training import checkpoint
from workbench.training.data import open_data
from workbench.training.gradient import SKETCH, Sketch
from workbench.training.parting import Parting, can_part, sums_of
from workbench.training.policy import Policy, load_policy, pick_device, reading_settings
from workbench.training.sequences import Sequence
from workbench.training.team import ALONE, Team
from workbench.training.team_engine import TeamEngine

_Found = TypeVar("_Found")

# What the other processes of a team know of the data: nothing, for the leader asks and grades.
NO_DATA = Dataset("of the leader alone", (), (), (), Text("{question}"))


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint, unlike anything that can be derived."""

    step: int = 0
    updates: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    recent: dict[str, float] = field(default_factory=dict)  # windowed sums of gradient moments

    @property
    def tokens(self) -> int:
        """Tokens sampled and trained on so far, each time they were."""
        return self.sampled_tokens + self.trained_tokens


@dataclass
class Lane:
    """What a thread computes gradients with: those that its policy's parameters have are its own.

    Without a `parting` the blocks of a step are told apart by a pass each.
    """

    policy: Policy
    base: Policy | None = None
    parting: Parting | None = None

    def twin(self) -> "Lane":
        """A lane with the same weights, before either is parted."""
        return Lane(self.policy.twin(), None if self.base is None else self.base.twin())


@dataclass
class Trainer:
    """Everything a training step works with; it calls `beat` at every micro-batch.

    The optimizer's parameters are the first lane's; the gradients of the others are added to it.
    """

    recipe: Recipe
    seed: int
    resources: Resources
    data: Dataset
    lanes: list[Lane]
    engine: Engine
    optimizer: torch.optim.AdamW
    progress: Progress
    sketch: Sketch
    team: Team = ALONE
    beat: Callable[[], object] = bool

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self.lanes[0].policy

    @property
    def base(self) -> Policy | None:
        """The policy that training began with, where the method asks what it says."""
        return self.lanes[0].base

    @property
    def method(self) -> upge.Method:
        """The recipe's method; only recipes with one are trained."""
        assert isinstance(self.recipe.method, upge.Method)
        return self.recipe.method

    @cached_property
    def questions(self) -> tuple[Problem, ...]:
        """What is asked in training: a method without rollouts learns of demonstrations alone."""
        if self.method.samples_rollouts:
            return self.data.train
        return tuple(each for each in self.data.train if each.demonstration is not None)

    @cached_property
    def one_pass(self) -> bool:
        """Whether the pass that an update differentiates is also the old policy's.

        So it is where a batch gets one optimizer step, which no part of has to be settled from what
        the old policy says.
        """
        recipe = self.recipe
        once = recipe.updates_per_batch == recipe.epochs_per_batch == 1
        return once and not self.method.needs_old

    @property
    def micro_batch(self) -> int:
        """Tokens that are scored together."""
        return self.resources.micro_batch(self.policy.device.type == "cuda")

    def micro_batches(self, sequences: list[Sequence], rows: list[int]) -> list[list[int]]:
        """Rows in groups that are scored together, so that every process of a team has some.

        Lanes, which are in one process, share its memory.
        """
        limit, parts = self.micro_batch // len(self.lanes), len(self.lanes) * self.team.size
        if parts > 1:
            limit = min(limit, -(-sum(sequences[row].length for row in rows) // parts))
        return self.policy.micro_batches(sequences, rows, limit)

    def each(
        self, groups: list[list[int]], compute: Callable[[Lane, list[int] | None], _Found]
    ) -> list[_Found]:
        """What is computed of this process's micro-batches, which the lanes take in turns.

        Which takes which is fixed, and so is the order of what is found and of what a lane adds to
        its gradients: a run is the same number by number however fast its threads are.
        """
        mine, one = self.team.share(groups), Lock()

        def go_through(place: int) -> list[_Found]:
            found = []
            for group in mine[place :: len(self.lanes)]:
                with one:
                    self.beat()
                found.append(compute(self.lanes[place], group))
            return found

        return [each for found in at_once(go_through, range(len(self.lanes))) for each in found]

    def clear_gradients(self) -> None:
        """No parameter of any lane has a gradient after it."""
        self.optimizer.zero_grad(set_to_none=True)  # of shards, the optimizer knows which are whose
        for lane in self.lanes[1:]:
            for _, parameter in lane.policy.parameters():
                parameter.grad = None

    def gather_gradients(self) -> None:
        """Adds what the other lanes' parameters have as gradients to the first's."""
        for lane in self.lanes[1:]:
            pairs = zip(self.policy.parameters(), lane.policy.parameters(), strict=True)
            for (_, total), (_, own) in pairs:
                if total.grad is None:
                    total.grad = own.grad
                elif own.grad is not None:
                    total.grad += own.grad
                own.grad = None

    @property
    def decoding(self) -> Decoding:
        """How training rollouts are drawn: the recipe's sampling."""
        sampling = self.recipe.sampling
        return Decoding(sampling.temperature, sampling.top_p, sampling.max_tokens)


def open_policy(recipe: Recipe, path: str, resources: Resources) -> Policy:
    """The recipe's policy with the weights in a folder."""
    values = recipe.method is not None and recipe.method.needs_values
    device = pick_device(resources.device)
    if device.type == "cpu":
        settle_memory()
    temperature = recipe.sampling.temperature
    policy = load_policy(path, device, recipe.dtype, temperature, values, recipe.base)
    policy.logits = resources.logits
    if resources.recompute:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def open_engine(
    recipe: Recipe,
    policy: Policy,
    resources: Resources,
    get_on: Callable[[], None],
    team: Team = ALONE,
    copy: Policy | None = None,
) -> Engine:
    """The rollout engine; it calls `get_on` whenever it got further.

    It is over the policy itself, or over a copy of one that is in shards.
    """
    if recipe.sampling.engine == "vllm":
        setup = _vllm_setup(recipe, policy, resources, team.rank)
        # Put together of shards there would be all of them twice: vLLM keeps them in this dtype.
        return VllmEngine(setup, partial(policy.weights, policy.dtype), get_on)
    model, weights = (policy if copy is None else copy).model, policy.weights if copy else None
    return TransformersEngine(model, policy.end, policy.pad, resources.sequences, get_on, weights)


def open_answering(
    run: Run, weights: str, resources: Resources, get_on: Callable[[], None], team: Team = ALONE
) -> tuple[Policy, Engine]:
    """A run's policy with the weights in a folder, whole on every process, and what draws from it.

    For evaluation, where nothing is trained.
    """
    team.order("answer", run.path, weights, resources)
    recipe = run.recipe()
    policy = open_policy(recipe, weights, resources)
    engine = open_engine(recipe, policy, resources, get_on, team)
    return policy, TeamEngine(engine, team, get_on) if team.size > 1 else engine


def _vllm_setup(recipe: Recipe, policy: Policy, resources: Resources, rank: int) -> Setup:
    on_gpu, cache = policy.device.type == "cuda", resources.engine_cache
    if cache is None and not on_gpu:
        cache = 1.0
    return Setup(
        model=str(policy.model.name_or_path),
        settings=reading_settings(policy),
        dtype=recipe.dtype,
        end=tuple(sorted(policy.end)),
        sequences=resources.sequences,
        processes=resources.tensor_parallel,
        gpu=_engine_gpu(resources, rank) if on_gpu else None,
        shares_gpu=on_gpu and not resources.engine_apart,
        cache=None if cache is None else int(cache * 2**30),
    )


def _engine_gpu(resources: Resources, rank: int) -> int:
    """The first of a vLLM engine's GPUs, among those of the cell."""
    return resources.gpus - resources.tensor_parallel if resources.engine_apart else rank


def open_trainer(run: Run, resources: Resources, team: Team = ALONE) -> Trainer:
    """A trainer at the run's newest whole checkpoint, or at the beginning, on every process.

    Records beyond the checkpoint are set aside, so that the run goes on from one moment.
    """
    at = checkpoint.latest(run)
    team.order("open", run.path, at, resources)
    trainer = open_at(run, at, resources, team, run.beat)
    if team.size > 1:
        trainer.engine = TeamEngine(trainer.engine, team, run.beat)
    return trainer


def open_at(
    run: Run, at: int | None, resources: Resources, team: Team, get_on: Callable[[], None]
) -> Trainer:
    """One process's trainer at a checkpoint with its optimizer, or at the beginning."""
    trainer = open_checkpoint(run, at or 0, resources, get_on, team)
    if at is not None:
        path = run.checkpoint_path(at)
        saved = checkpoint.load_optimizer(path, trainer.policy, trainer.optimizer)
        trainer.progress = Progress(**saved)
    return trainer


def open_checkpoint(
    run: Run,
    step: int,
    resources: Resources,
    get_on: Callable[[], None] | None = None,
    team: Team = ALONE,
) -> Trainer:
    """A trainer with the weights after some steps of the run, and an optimizer without a past.

    Its engine calls `get_on` whenever it got further; the run is told so unless given.

    Raises:
        FileNotFoundError: the checkpoint was not kept.
    """
    recipe, seed = run.recipe(), run.seed
    origin = initial_weights(run, recipe, seed)
    policy = open_policy(recipe, str(kept(run, step)) if step else origin, resources)
    method = recipe.method
    needs_base = isinstance(method, upge.Method) and method.needs_base
    base = open_policy(recipe, origin, resources).frozen() if needs_base else None
    copy = policy.frozen() if team.mesh is not None and recipe.sampling.engine != "vllm" else None
    for each in (policy, base):
        if each is not None:
            team.shard(each.model)
    if policy.value_head is not None:
        team.shard(policy.value_head)
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        [p for _, p in policy.parameters()],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    engine = open_engine(recipe, policy, resources, get_on or run.beat, team, copy)
    data = open_data(run, policy.tokenizer) if team.rank == 0 else NO_DATA
    sketch = Sketch(policy.model.parameters(), SKETCH)
    lanes = [Lane(policy, base)]
    if team.mesh is None:
        lanes += [lanes[0].twin() for _ in range(_lanes(policy, resources) - 1)]
    if recipe.gradient_blocks > 1 and policy.packs and can_part(policy.model):
        for lane in lanes:
            lane.parting = Parting(lane.policy.model, sums_of(policy.model))
    return Trainer(
        recipe,
        seed,
        resources,
        data,
        lanes,
        engine,
        optimizer,
        Progress(),
        sketch,
        team,
        run.beat,
    )


def _lanes(policy: Policy, resources: Resources) -> int:
    """How many threads go through micro-batches of their own."""
    return max(1, min(threads_for(policy.model), resources.micro_batch(False) // LEAST_TOKENS))


def initial_weights(run: Run, recipe: Recipe, seed: int) -> str:
    """The folder or hub name of the weights that training begins with.

    Raises:
        FileNotFoundError: the recipe starts from a checkpoint that is not there.
    """
    if recipe.start is None:
        return locate(recipe.base.name)
    source = run_of(run.path.parents[2], recipe.start.recipe, seed)
    return str(kept(source, recipe.start.step))


def kept(run: Run, step: int) -> Path:
    """The folder of a whole checkpoint.

    Raises:
        FileNotFoundError: it is not there.
        Corrupt: it is not what its manifest says.
    """
    path = run.checkpoint_path(step)
    if not path.exists():
        there = ", ".join(str(each) for each in checkpoint.steps(run)) or "none"
        raise FileNotFoundError(
            f"{path} is not there (checkpoints kept: {there}); train its run with this step kept: "
            f"--keep {step}"
        )
    checkpoint.verify(run, step)
    return path
