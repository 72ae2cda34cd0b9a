"""Opens what trains, samples and answers at a moment of a run: a checkpoint, or the beginning."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from workbench import upge
from workbench.models import locate
from workbench.problems import Dataset, Text
from workbench.processes import settle_memory
from workbench.recipe import Recipe
from workbench.records import Run, run_of
from workbench.resources import LEAST_TOKENS, Resources
from workbench.rollout import Engine
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.rollout.vllm_engine import Setup, VllmEngine
from workbench.threads import threads_for
from workbench.training import checkpoint
from workbench.training.data import open_data
from workbench.training.gradient import SKETCH, Sketch
from workbench.training.parting import Parting, can_part, sums_of
from workbench.training.policy import Policy, load_policy, pick_device, reading_settings
from workbench.training.team import ALONE, Team
from workbench.training.team_engine import TeamEngine
from workbench.training.trainer import Lane, Progress, Trainer

# What the other processes of a team know of the data: nothing, for the leader asks and grades.
NO_DATA = Dataset("of the leader alone", (), (), (), Text("{question}"))


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
