"""The parts of a training run: what the loop puts in order, one function a part."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from workbench import upge
from workbench.models import locate
from workbench.problems import Dataset, Problem, Verdict
from workbench.problems.isolation import grader
from workbench.recipe import Recipe
from workbench.records import Run, run_of
from workbench.resources import Resources
from workbench.rollout import Engine, Request, Response
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.rollout.vllm_engine import Setup, VllmEngine
from workbench.training import checkpoint
from workbench.training.data import open_data, prompt_ids
from workbench.training.evaluation import Count, count
from workbench.training.gradient import SKETCH, Blocks, Sketch, blocks_of, ratios, windowed
from workbench.training.policy import Policy, load_policy, pick_device
from workbench.training.randomness import seed_of
from workbench.training.sequences import Padded, Sequence, engine_logprobs, micro_batches, pad
from workbench.training.statistics import ratio_statistics
from workbench.training.tally import Tally


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
class Trainer:
    """Everything a training step works with."""

    recipe: Recipe
    seed: int
    resources: Resources
    data: Dataset
    policy: Policy
    engine: Engine
    optimizer: torch.optim.AdamW
    progress: Progress
    sketch: Sketch
    base: Policy | None = None

    @property
    def method(self) -> upge.Method:
        """The recipe's method; only recipes with one are trained."""
        assert isinstance(self.recipe.method, upge.Method)
        return self.recipe.method

    @property
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
        """Padded tokens that are scored together."""
        return self.resources.micro_batch(self.policy.device.type == "cuda")

    @property
    def decoding(self) -> Decoding:
        """How training rollouts are drawn: the recipe's sampling."""
        sampling = self.recipe.sampling
        return Decoding(sampling.temperature, sampling.top_p, sampling.max_tokens)


def open_policy(recipe: Recipe, path: str, resources: Resources) -> Policy:
    """The recipe's policy with the weights in a folder."""
    values = recipe.method is not None and recipe.method.needs_values
    device = pick_device(resources.device)
    return load_policy(path, device, recipe.dtype, recipe.sampling.temperature, values)


def open_engine(
    recipe: Recipe, policy: Policy, resources: Resources, get_on: Callable[[], None]
) -> Engine:
    """The rollout engine, over the policy itself; it calls `get_on` whenever it got further."""
    if recipe.sampling.engine == "vllm":
        return VllmEngine(_vllm_setup(recipe, policy, resources), policy.weights, get_on)
    return TransformersEngine(policy.model, policy.end, policy.pad, resources.sequences, get_on)


def _vllm_setup(recipe: Recipe, policy: Policy, resources: Resources) -> Setup:
    on_gpu, cache = policy.device.type == "cuda", resources.engine_cache
    if cache is None and not on_gpu:
        cache = 1.0
    return Setup(
        model=str(policy.model.name_or_path),
        dtype=recipe.dtype,
        end=tuple(sorted(policy.end)),
        sequences=resources.sequences,
        processes=resources.tensor_parallel,
        gpu=_engine_gpu(resources) if on_gpu else None,
        shares_gpu=on_gpu and not resources.engine_apart,
        cache=None if cache is None else int(cache * 2**30),
    )


def _engine_gpu(resources: Resources) -> int:
    """The first of a vLLM engine's GPUs, among those of the cell."""
    return resources.gpus - resources.tensor_parallel if resources.engine_apart else 0


def open_trainer(run: Run, resources: Resources) -> Trainer:
    """A trainer at the run's newest whole checkpoint, or at the beginning.

    Records beyond the checkpoint are set aside, so that the run goes on from one moment.
    """
    at = checkpoint.latest(run)
    trainer = open_checkpoint(run, at or 0, resources)
    if at is not None:
        path = run.checkpoint_path(at)
        saved = checkpoint.load_optimizer(path, trainer.policy, trainer.optimizer)
        trainer.progress = Progress(**saved)
    return trainer


def open_checkpoint(run: Run, step: int, resources: Resources) -> Trainer:
    """A trainer with the weights after some steps of the run, and an optimizer without a past.

    Raises:
        FileNotFoundError: the checkpoint was not kept.
    """
    recipe, seed = run.recipe(), run.seed
    origin = initial_weights(run, recipe, seed)
    policy = open_policy(recipe, str(kept(run, step)) if step else origin, resources)
    method = recipe.method
    needs_base = isinstance(method, upge.Method) and method.needs_base
    base = open_policy(recipe, origin, resources).frozen() if needs_base else None
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        [p for _, p in policy.parameters()],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    engine = open_engine(recipe, policy, resources, run.beat)
    data = open_data(run, policy.tokenizer)
    sketch = Sketch(policy.model.parameters(), SKETCH)
    return Trainer(
        recipe, seed, resources, data, policy, engine, optimizer, Progress(), sketch, base
    )


def initial_weights(run: Run, recipe: Recipe, seed: int) -> str:
    """The folder or hub name of the weights that training begins with.

    Raises:
        FileNotFoundError: the recipe starts from a checkpoint that is not there.
    """
    if recipe.start is None:
        return locate(recipe.model)
    source = run_of(run.path.parents[2], recipe.start.recipe, seed)
    return str(kept(source, recipe.start.step))


def kept(run: Run, step: int) -> Path:
    """The folder of a whole checkpoint.

    Raises:
        FileNotFoundError: it is not there.
        checkpoint.Corrupt: it is not what its manifest says.
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


# --- sample and grade -----------------------------------------------------------------------------


def sample(trainer: Trainer, problems: list[Problem], step: int) -> list[list[Response]]:
    """The rollouts of each question; none where the method reads none."""
    if not trainer.method.samples_rollouts:
        return [[] for _ in problems]
    requests = [
        Request(
            prompt_of(trainer, problem),
            trainer.recipe.rollouts,
            seed_of(trainer.seed, "rollout", step, index),
        )
        for index, problem in enumerate(problems)
    ]
    return trainer.engine.generate(requests, trainer.decoding)


def grade(
    trainer: Trainer,
    problems: list[Problem],
    rollouts: list[list[Response]],
    demonstrations: bool | None = None,
) -> list[Sequence]:
    """All sequences of the step: graded rollouts, and demonstrations where the method uses them.

    `demonstrations` says whether they are taken, in place of the method.
    """
    demonstrated = trainer.method.needs_demonstrations if demonstrations is None else demonstrations
    found = []
    for question, (problem, responses) in enumerate(zip(problems, rollouts, strict=True)):
        prompt = prompt_of(trainer, problem)
        for response in responses:
            text = trainer.policy.decode(response.tokens)
            found.append(
                Sequence(
                    problem,
                    question,
                    prompt,
                    response.tokens,
                    text,
                    grader(trainer.data.verifier)(text, problem.answer),
                    response.finished,
                    engine_logprobs=response.logprobs,
                )
            )
        if demonstrated and problem.demonstration is not None:
            tokens = (*trainer.policy.encode(problem.demonstration), min(trainer.policy.end))
            limit = trainer.recipe.sampling.max_tokens
            found.append(
                Sequence(
                    problem,
                    question,
                    prompt,
                    tokens[:limit],
                    problem.demonstration,
                    Verdict.CORRECT,
                    finished=len(tokens) <= limit,
                    demonstration=True,
                )
            )
    return found


def prompt_of(trainer: Trainer, problem: Problem) -> tuple[int, ...]:
    """The token ids that a question is asked with."""
    return prompt_ids(trainer.policy.tokenizer, trainer.data.prompt, problem.question)


# --- the old policy -------------------------------------------------------------------------------


def collate(trainer: Trainer, sequences: list[Sequence]) -> upge.TokenBatch:
    """The step's batch with the old policy's log-probabilities, entropies and values.

    Where one pass does, only rollouts that the update has no use for: it fills in the others'.
    Demonstrations that the gate gives no weight are never scored: nothing reads them.
    """
    batch = unscored(trainer, sequences)
    if trainer.one_pass:
        read = ~batch.demonstration & ~trainer.method.prepare(batch).active
    else:
        _, beta = trainer.method.gate_weights(batch)
        read = ~batch.demonstration | (beta[batch.question] != 0)
    score_rows(trainer, sequences, batch, read.nonzero()[:, 0].tolist())
    return batch


def unscored(trainer: Trainer, sequences: list[Sequence]) -> upge.TokenBatch:
    """The sequences as a batch in which every log-probability is still 0."""
    device = trainer.policy.device
    trained = pad(sequences, trainer.policy.pad, device).trained
    zeros = torch.zeros(trained.shape, device=device)
    correct = torch.tensor([s.correct for s in sequences], device=device)
    return upge.TokenBatch(
        logprobs=zeros,
        old_logprobs=zeros.clone(),
        trained=trained,
        rewards=correct.float(),
        group=torch.tensor([s.question for s in sequences], device=device),
        demonstration=torch.tensor([s.demonstration for s in sequences], device=device),
        correct=correct,
        old_entropy=zeros.clone(),
        values=zeros.clone() if trainer.policy.value_head is not None else None,
        engine_logprobs=engine_logprobs(sequences, trained.shape[1]).to(device),
        base_logprobs=zeros.clone() if trainer.base is not None else None,
        step=trainer.progress.updates,
    )


@torch.no_grad()
def score_rows(
    trainer: Trainer, sequences: list[Sequence], batch: upge.TokenBatch, rows: list[int]
) -> None:
    """Fills in what the policy, as it is, says of some rows."""
    for micro in micro_batches(sequences, rows, trainer.micro_batch):
        padded = pad([sequences[r] for r in micro], trainer.policy.pad, trainer.policy.device)
        _fill(trainer, batch, micro, padded, trainer.policy.score(padded, entropy=True))


@torch.no_grad()
def _fill(
    trainer: Trainer, batch: upge.TokenBatch, rows: list[int], padded: Padded, old: upge.Current
) -> None:
    """Writes into a batch what the old policy, and the base model, say of some rows."""
    index = torch.tensor(rows, device=trainer.policy.device)
    columns = slice(0, padded.width)
    batch.logprobs[index, columns] = old.logprobs
    batch.old_logprobs[index, columns] = old.logprobs
    if batch.old_entropy is not None and old.entropy is not None:
        batch.old_entropy[index, columns] = old.entropy
    if batch.values is not None and old.values is not None:
        batch.values[index, columns] = old.values
    if batch.base_logprobs is not None and trainer.base is not None:
        batch.base_logprobs[index, columns] = trainer.base.score(padded).logprobs


# --- update ---------------------------------------------------------------------------------------


def update(
    trainer: Trainer, sequences: list[Sequence], batch: upge.TokenBatch, tally: Tally
) -> None:
    """All optimizer steps over one batch: mini-batches of whole questions, some epochs of them.

    After it the batch has what the old policy says of every row that anything reads.
    """
    recipe = trainer.recipe
    if trainer.one_pass:
        _optimizer_step(trainer, sequences, trainer.method.prepare(batch), tally)
        return
    edges = torch.linspace(0, batch.questions, recipe.updates_per_batch + 1).round().int().tolist()
    for _ in range(recipe.epochs_per_batch):
        for first, last in pairwise(edges):
            rows = ((batch.question >= first) & (batch.question < last)).nonzero()[:, 0]
            part = batch.rows(rows, step=trainer.progress.updates)
            mini = [sequences[row] for row in rows.tolist()]
            _optimizer_step(trainer, mini, trainer.method.prepare(part), tally)


def _optimizer_step(
    trainer: Trainer, sequences: list[Sequence], step: upge.Step, tally: Tally
) -> None:
    trainer.optimizer.zero_grad(set_to_none=True)
    rows = step.active.nonzero()[:, 0].tolist()
    question = step.batch.question.tolist()
    blocks = blocks_of(step.batch.questions, trainer.recipe.gradient_blocks)
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    before = torch.zeros(trainer.sketch.size, device=trainer.policy.device)
    loss = 0.0
    for demonstration in (True, False):
        for block in range(blocks[-1] + 1):
            chosen = [
                row
                for row in rows
                if sequences[row].demonstration is demonstration and blocks[question[row]] == block
            ]
            for group in micro_batches(sequences, chosen, trainer.micro_batch):
                loss += _accumulate(trainer, sequences, step, group, tally)
            # The map is linear: what a block has added is the difference of two sketches.
            after = trainer.sketch(_gradients(trainer)) if chosen else before
            parts[demonstration].append(after - before)
            before = after
    for name in ("total", "rollouts", "demonstrations", "auxiliary"):
        tally.add(f"loss/{name}", 0.0, 1)
    sizes = torch.tensor(blocks).bincount().to(before)
    _gradient_statistics(
        trainer, Blocks(torch.stack(parts[False]), torch.stack(parts[True]), sizes), tally
    )
    trainer.progress.trained_tokens += sum(len(sequences[row].response) for row in rows)
    _apply(trainer, tally, loss)


def _accumulate(
    trainer: Trainer, sequences: list[Sequence], step: upge.Step, rows: list[int], tally: Tally
) -> float:
    """Adds the gradient of some rows and returns their loss."""
    padded = pad([sequences[r] for r in rows], trainer.policy.pad, trainer.policy.device)
    learned = trainer.method.needs_entropy
    current = trainer.policy.score(padded, learned or trainer.one_pass, learned)
    if trainer.one_pass:
        _fill(trainer, step.batch, rows, padded, current)
    missing = step.batch.trained.shape[1] - padded.width
    wide = upge.Current(
        *(None if t is None else functional.pad(t, (0, missing)) for t in _tensors(current))  # type: ignore[arg-type]
    )
    index = torch.tensor(rows, device=trainer.policy.device)
    losses = step.losses(index, wide)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    for name, loss in losses.items():
        tally.add(f"loss/{name}", loss.item(), 0)  # counted once an update, in _optimizer_step
        tally.add("loss/total", loss.item(), 0)
    ratio_statistics(step, index, wide.logprobs.detach(), tally)
    return total.item()


def _tensors(current: upge.Current) -> tuple[Tensor | None, ...]:
    return current.logprobs, current.entropy, current.values


def _gradients(trainer: Trainer) -> list[Tensor | None]:
    """Of the model alone: a value head has no part in pi."""
    return [p.grad for p in trainer.policy.model.parameters()]


def _gradient_statistics(trainer: Trainer, blocks: Blocks, tally: Tally) -> None:
    sft, rl = blocks.norms
    tally.add("grad/norm_sft", sft, 1)
    tally.add("grad/norm_rl", rl, 1)
    if sft + rl > 0:
        tally.add("offline/gradient", sft / (sft + rl), 1)
    if len(blocks.sizes) < 2:
        return
    moments, progress = blocks.moments(), trainer.progress
    if all(math.isfinite(value) for value in moments.values()):
        progress.recent = windowed(progress.recent, moments)
    for key, value in moments.items():
        tally.add(key, value, 1)
    if progress.recent:
        for key, value in ratios(progress.recent, int(blocks.sizes.sum())).items():
            tally.put(key, value)


def _apply(trainer: Trainer, tally: Tally, loss: float) -> None:
    """Clips and steps; what is not finite, or too large a gradient, is skipped and counted."""
    settings, progress = trainer.recipe.optimizer, trainer.progress
    parameters = [p for _, p in trainer.policy.parameters()]
    for parameter in parameters:
        # Rows that add nothing are not scored; an update without any is one with gradient zero,
        # in which momentum goes on, and not no update.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_norm).item()
    total_updates = trainer.recipe.steps * trainer.recipe.updates_per_batch
    total_updates *= trainer.recipe.epochs_per_batch
    rate = settings.learning_rate * settings.schedule(progress.updates, total_updates)
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    finite = math.isfinite(norm) and math.isfinite(loss)
    too_large = settings.skip_above is not None and norm > settings.skip_above
    skipped = too_large or not finite
    if not skipped:
        trainer.optimizer.step()
    progress.updates += 1
    tally.add("optim/gradient_norm", norm, 1)
    tally.sum("optim/skipped", skipped)
    tally.sum("optim/nonfinite", not finite)
    tally.put("optim/learning_rate", rate)


# --- validation -----------------------------------------------------------------------------------


def validate(trainer: Trainer, tally: Tally) -> None:
    """Accuracy on the validation split, over all and by level."""
    plan = trainer.recipe.validation
    problems = trainer.data.validation[: plan.problems]
    counts: list[Count] = count(
        trainer.policy,
        trainer.engine,
        trainer.data,
        problems,
        plan.samples,
        trainer.decoding,
        seed_of(trainer.seed, "validation"),
    )
    for each in counts:
        tally.add("validation/pass_at_1", each.correct, each.samples)
        tally.add("validation/length", each.tokens, each.samples)
        if each.problem.level:
            key = f"validation/level_{each.problem.level}"
            tally.add(key, each.correct, each.samples)


def kept_steps(trainer: Trainer, keep: Collection[int]) -> set[int]:
    """Checkpoints that are never removed: those others start from, and the last."""
    return {*keep, trainer.recipe.steps}
