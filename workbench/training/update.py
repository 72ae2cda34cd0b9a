"""The optimizer steps over one batch: the gradient, what is measured of it, and its use."""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from workbench import upge
from workbench.training.gradient import Blocks, blocks_of, ratios, windowed
from workbench.training.scoring import fill
from workbench.training.sequences import Sequence, micro_batches, pad
from workbench.training.statistics import ratio_statistics
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer


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
    current = torch.zeros_like(step.batch.logprobs)
    loss = 0.0
    for demonstration in (True, False):
        for block in range(blocks[-1] + 1):
            chosen = [
                row
                for row in rows
                if sequences[row].demonstration is demonstration and blocks[question[row]] == block
            ]
            for group in micro_batches(sequences, chosen, trainer.micro_batch):
                loss += _accumulate(trainer, sequences, step, group, current, tally)
            # The map is linear: what a block has added is the difference of two sketches.
            after = trainer.sketch(_gradients(trainer)) if chosen else before
            parts[demonstration].append(after - before)
            before = after
    ratio_statistics(step, step.active.nonzero()[:, 0], current, tally)
    for name in ("total", "rollouts", "demonstrations", "auxiliary"):
        tally.add(f"loss/{name}", 0.0, 1)
    sizes = torch.tensor(blocks).bincount().to(before)
    _gradient_statistics(
        trainer, Blocks(torch.stack(parts[False]), torch.stack(parts[True]), sizes), tally
    )
    trainer.progress.trained_tokens += sum(len(sequences[row].response) for row in rows)
    _apply(trainer, tally, loss)


def _accumulate(
    trainer: Trainer,
    sequences: list[Sequence],
    step: upge.Step,
    rows: list[int],
    logprobs: Tensor,
    tally: Tally,
) -> float:
    """Adds the gradient of some rows, writes their log-probabilities and returns their loss."""
    padded = pad([sequences[r] for r in rows], trainer.policy.pad, trainer.policy.device)
    learned = trainer.method.needs_entropy
    current = trainer.policy.score(padded, learned or trainer.one_pass, learned)
    if trainer.one_pass:
        fill(trainer, step.batch, rows, padded, current)
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
    logprobs[index] = wide.logprobs.detach()
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
