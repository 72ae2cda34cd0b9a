"""The parts of a training run: what the loop puts in order, one function a part."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from workbench import upge
from workbench.models import locate
from workbench.problems import Dataset, Problem, Verdict
from workbench.recipe import Recipe
from workbench.records import Run, run_of
from workbench.resources import Resources
from workbench.rollout import Engine, Request, Response
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.training import checkpoint
from workbench.training.data import open_data, prompt_ids
from workbench.training.evaluation import Count, count
from workbench.training.policy import Policy, load_policy, pick_device
from workbench.training.randomness import seed_of
from workbench.training.sequences import Sequence, micro_batches, pad
from workbench.training.statistics import ratio_statistics
from workbench.training.tally import Tally


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint, unlike anything that can be derived."""

    step: int = 0
    updates: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0


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
    base: Policy | None = None

    @property
    def method(self) -> upge.Method:
        """The recipe's method; only recipes with one are trained."""
        assert isinstance(self.recipe.method, upge.Method)
        return self.recipe.method

    @property
    def micro_batch(self) -> int:
        """Padded tokens that are scored together."""
        return self.resources.micro_batch(self.policy.device.type == "cuda")

    @property
    def decoding(self) -> Decoding:
        sampling = self.recipe.sampling
        return Decoding(sampling.temperature, sampling.top_p, sampling.max_tokens)


def open_policy(recipe: Recipe, path: str, resources: Resources) -> Policy:
    """The recipe's policy with the weights in a folder."""
    values = recipe.method is not None and recipe.method.needs_values
    device = pick_device(resources.device)
    return load_policy(path, device, recipe.dtype, recipe.sampling.temperature, values)


def open_engine(policy: Policy, resources: Resources) -> Engine:
    """The rollout engine, over the policy itself."""
    return TransformersEngine(policy.model, policy.end, policy.pad, resources.sequences)


def open_trainer(run: Run, resources: Resources) -> Trainer:
    """A trainer at the run's newest whole checkpoint, or at the beginning.

    Records beyond the checkpoint are set aside, so that the run goes on from one moment.
    """
    recipe, seed = run.recipe(), run.seed
    at = checkpoint.latest(run)
    origin = initial_weights(run, recipe, seed)
    policy = open_policy(recipe, origin if at is None else str(run.checkpoint_path(at)), resources)
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
    progress = Progress()
    if at is not None:
        progress = Progress(**checkpoint.load_optimizer(run.checkpoint_path(at), policy, optimizer))
    engine = open_engine(policy, resources)
    data = open_data(run, policy.tokenizer)
    return Trainer(recipe, seed, resources, data, policy, engine, optimizer, progress, base)


def initial_weights(run: Run, recipe: Recipe, seed: int) -> str:
    """The folder or hub name of the weights that training begins with.

    Raises:
        FileNotFoundError: the recipe starts from a checkpoint that is not there.
    """
    if recipe.start is None:
        return locate(recipe.model)
    root = run.path.parents[2]
    source = run_of(root, recipe.start.recipe, seed)
    path = source.checkpoint_path(recipe.start.step)
    if not path.exists():
        kept = ", ".join(str(step) for step in checkpoint.steps(source)) or "none"
        raise FileNotFoundError(
            f"{path} is not there (checkpoints kept: {kept}); train its run with this step kept: "
            f"--keep {recipe.start.step}"
        )
    checkpoint.verify(Path(path))
    return str(path)


# --- sample and grade -----------------------------------------------------------------------------


def sample(trainer: Trainer, problems: list[Problem], step: int) -> list[list[Response]]:
    """The rollouts of each question; none where the method reads none."""
    if not trainer.method.samples_rollouts:
        return [[] for _ in problems]
    requests = [
        Request(
            _prompt(trainer, problem),
            trainer.recipe.rollouts,
            seed_of(trainer.seed, "rollout", step, index),
        )
        for index, problem in enumerate(problems)
    ]
    return trainer.engine.generate(requests, trainer.decoding)


def grade(
    trainer: Trainer, problems: list[Problem], rollouts: list[list[Response]]
) -> list[Sequence]:
    """All sequences of the step: graded rollouts, and demonstrations where the method uses them."""
    found = []
    for question, (problem, responses) in enumerate(zip(problems, rollouts, strict=True)):
        prompt = _prompt(trainer, problem)
        for response in responses:
            text = trainer.policy.decode(response.tokens)
            found.append(
                Sequence(
                    problem,
                    question,
                    prompt,
                    response.tokens,
                    text,
                    trainer.data.verifier(text, problem.answer),
                    response.finished,
                    engine_logprobs=response.logprobs,
                )
            )
        if trainer.method.needs_demonstrations and problem.demonstration is not None:
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


def _prompt(trainer: Trainer, problem: Problem) -> tuple[int, ...]:
    return prompt_ids(trainer.policy.tokenizer, trainer.data.prompt, problem.question)


# --- the old policy -------------------------------------------------------------------------------


def collate(trainer: Trainer, sequences: list[Sequence]) -> upge.TokenBatch:
    """The step's batch with the old policy's log-probabilities, entropies and values.

    Demonstrations that the gate gives no weight are not scored: nothing reads them.
    """
    device = trainer.policy.device
    trained = pad(sequences, trainer.policy.pad, device).trained
    zeros = torch.zeros(trained.shape, device=device)
    correct = torch.tensor([s.correct for s in sequences], device=device)
    method = trainer.method
    batch = upge.TokenBatch(
        logprobs=zeros,
        old_logprobs=zeros.clone(),
        trained=trained,
        rewards=correct.float(),
        group=torch.tensor([s.question for s in sequences], device=device),
        demonstration=torch.tensor([s.demonstration for s in sequences], device=device),
        correct=correct,
        old_entropy=zeros.clone(),
        values=zeros.clone() if method.needs_values else None,
        base_logprobs=zeros.clone() if method.needs_base else None,
        step=trainer.progress.updates,
    )
    _, beta = method.gate_weights(batch)
    read = ~batch.demonstration | (beta[batch.question] != 0)
    with torch.no_grad():
        _fill_old_policy(trainer, sequences, batch, read.nonzero()[:, 0].tolist())
    return batch


def _fill_old_policy(
    trainer: Trainer, sequences: list[Sequence], batch: upge.TokenBatch, rows: list[int]
) -> None:
    for micro in micro_batches(sequences, rows, trainer.micro_batch):
        padded = pad([sequences[r] for r in micro], trainer.policy.pad, trainer.policy.device)
        old = trainer.policy.score(padded, entropy=True)
        index = torch.tensor(micro, device=trainer.policy.device)
        columns = slice(0, padded.width)
        batch.logprobs[index, columns] = old.logprobs
        batch.old_logprobs[index, columns] = old.logprobs
        if batch.old_entropy is not None and old.entropy is not None:
            batch.old_entropy[index, columns] = torch.where(padded.trained, old.entropy, 0.0)
        if batch.values is not None and old.values is not None:
            batch.values[index, columns] = torch.where(padded.trained, old.values, 0.0)
        if batch.base_logprobs is not None and trainer.base is not None:
            batch.base_logprobs[index, columns] = trainer.base.score(padded).logprobs


# --- update ---------------------------------------------------------------------------------------


def update(
    trainer: Trainer, sequences: list[Sequence], batch: upge.TokenBatch, tally: Tally
) -> None:
    """All optimizer steps over one batch: mini-batches of whole questions, some epochs of them."""
    recipe = trainer.recipe
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
    groups = micro_batches(sequences, rows, trainer.micro_batch)
    offline = [g for g in groups if sequences[g[0]].demonstration]
    online = [g for g in groups if not sequences[g[0]].demonstration]
    for group in offline:
        _accumulate(trainer, sequences, step, group, tally)
    before = _gradients(trainer) if offline and online else None
    for group in online:
        _accumulate(trainer, sequences, step, group, tally)
    for name in ("total", "rollouts", "demonstrations", "auxiliary"):
        tally.add(f"loss/{name}", 0.0, 1)
    _offline_share(trainer, before, bool(offline), bool(online), tally)
    trainer.progress.trained_tokens += sum(len(sequences[row].response) for row in rows)
    _apply(trainer, tally)


def _accumulate(
    trainer: Trainer, sequences: list[Sequence], step: upge.Step, rows: list[int], tally: Tally
) -> None:
    padded = pad([sequences[r] for r in rows], trainer.policy.pad, trainer.policy.device)
    current = trainer.policy.score(padded, entropy=trainer.method.needs_entropy)
    missing = step.batch.trained.shape[1] - padded.width
    wide = upge.Current(
        *(None if t is None else functional.pad(t, (0, missing)) for t in _tensors(current))  # type: ignore[arg-type]
    )
    index = torch.tensor(rows, device=trainer.policy.device)
    losses = step.losses(index, wide)
    torch.stack(list(losses.values())).sum().backward()
    for name, loss in losses.items():
        tally.add(f"loss/{name}", loss.item(), 0)  # counted once an update, in _optimizer_step
        tally.add("loss/total", loss.item(), 0)
    ratio_statistics(step, index, wide.logprobs.detach(), tally)


def _tensors(current: upge.Current) -> tuple[Tensor | None, ...]:
    return current.logprobs, current.entropy, current.values


def _gradients(trainer: Trainer) -> list[Tensor | None]:
    gradients = [p.grad for _, p in trainer.policy.parameters()]
    return [None if g is None else g.detach().clone() for g in gradients]


def _offline_share(
    trainer: Trainer, before: list[Tensor | None] | None, offline: bool, online: bool, tally: Tally
) -> None:
    """The demonstrations' share of the gradient: |g_demo| / (|g_demo| + |g_rollouts|)."""
    if before is None:
        if offline or online:
            tally.put("offline/gradient", float(offline))
        return
    after = _gradients(trainer)
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a is not None]
    rest = [a if b is None else a - b for a, b in pairs]
    demonstrated = torch.stack([b.norm() for b in before if b is not None]).norm()
    total = demonstrated + torch.stack([r.norm() for r in rest]).norm()
    tally.add("offline/gradient", demonstrated / total if total > 0 else 0.0, 1)


def _apply(trainer: Trainer, tally: Tally) -> None:
    """Clips and steps; a non-finite or too large gradient is skipped and counted."""
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
    too_large = settings.skip_above is not None and norm > settings.skip_above
    skipped = too_large or not torch.isfinite(torch.tensor(norm))
    if not skipped:
        trainer.optimizer.step()
    progress.updates += 1
    tally.add("optim/gradient_norm", norm, 1)
    tally.sum("optim/skipped", skipped)
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
