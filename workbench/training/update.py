"""The optimizer steps over one batch: the gradient, what is measured of it, and its use."""

import math
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from workbench import upge
from workbench.training.gradient import RL, SFT, Blocks, blocks_of, ratios, windowed
from workbench.training.layout import Layout
from workbench.training.scoring import fill, idle, lay_out, share_filled
from workbench.training.sequences import Sequence
from workbench.training.statistics import ratio_statistics
from workbench.training.tally import Tally
from workbench.training.team import whole
from workbench.training.trainer import Trainer

PARTS = ("rollouts", "demonstrations", "auxiliary")  # of a step's loss


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
    team, parting = trainer.team, trainer.parting
    active = team.agreed(step.active).nonzero()[:, 0]
    rows = active.tolist()
    block = blocks_of(step.batch.questions, trainer.recipe.gradient_blocks)
    blocks = block[-1] + 1
    question = step.batch.question.tolist()
    part = {
        row: block[question[row]] + blocks * (SFT if sequences[row].demonstration else RL)
        for row in rows
    }
    if parting is not None:
        parting.begin(2 * blocks, seed=trainer.progress.updates)
    added = []
    before = torch.zeros(trainer.sketch.size, device=trainer.policy.device)
    current = torch.zeros_like(step.batch.logprobs)
    losses = torch.zeros(len(PARTS), dtype=torch.float64)
    # Streams are told apart by what each adds to the gradient, for the map is linear. So are blocks
    # where a pass cannot be parted.
    at_once = blocks if parting is not None else 1
    for first in range(0, 2 * blocks, at_once):
        chosen = [row for row in rows if first <= part[row] < first + at_once]
        for group in team.share(trainer.micro_batches(sequences, chosen)):
            trainer.beat()
            if group is None:
                _keep_pace(trainer, sequences, step)
            else:
                losses += _accumulate(trainer, sequences, step, group, part, current)
        after = trainer.sketch(_gradients(trainer)) if chosen else before
        added.append(after - before)
        before = after
    if trainer.one_pass:
        share_filled(trainer, step.batch, rows)
    ratio_statistics(step, active, team.total(current), tally)
    total = team.total(losses.to(trainer.policy.device))
    for name, loss in zip((*PARTS, "total"), (*total, total.sum()), strict=True):
        tally.add(f"loss/{name}", loss, 1)
    apart = team.total(torch.stack(added)).unflatten(0, (2, -1))
    parts = apart if parting is None else team.total(parting.parts).unflatten(0, (2, -1))
    sizes = torch.tensor(block).bincount().to(before)
    _gradient_statistics(trainer, Blocks(apart.sum(dim=1), parts, sizes), tally)
    trainer.progress.trained_tokens += sum(len(sequences[row].response) for row in rows)
    _apply(trainer, tally, float(total.sum()))


def _accumulate(
    trainer: Trainer,
    sequences: list[Sequence],
    step: upge.Step,
    rows: list[int],
    part: dict[int, int],
    logprobs: Tensor,
) -> Tensor:
    """Adds the gradient of some rows, writes their log-probabilities and returns their losses."""
    layout = lay_out(trainer, sequences, rows)
    parting = trainer.parting
    watched = nullcontext() if parting is None else parting.watch(layout, [part[r] for r in rows])
    index = torch.tensor(rows, device=trainer.policy.device)
    with watched:
        current = _score(trainer, step, rows, layout)
        missing = step.batch.trained.shape[1] - layout.width
        wide = upge.Current(
            *(None if t is None else functional.pad(t, (0, missing)) for t in _tensors(current))  # type: ignore[arg-type]
        )
        found = step.losses(index, wide)
        losses = torch.stack([found[each] for each in PARTS])
        losses.sum().backward()
    logprobs[index] = wide.logprobs.detach()
    return losses.detach().to("cpu", torch.float64)


def _keep_pace(trainer: Trainer, sequences: list[Sequence], step: upge.Step) -> None:
    """Goes through the model as the processes do that have rows, and adds nothing."""
    current = _score(trainer, step, [], lay_out(trainer, sequences, idle(sequences)))
    nothing = [0.0 * t.sum() for t in _tensors(current) if t is not None and t.requires_grad]
    torch.stack(nothing).sum().backward()


def _score(trainer: Trainer, step: upge.Step, rows: list[int], layout: Layout) -> upge.Current:
    """What the policy says of some rows; what of it is also the old policy's it fills in."""
    learned = trainer.method.needs_entropy
    current = trainer.policy.score(layout, learned or trainer.one_pass, learned)
    if trainer.one_pass:
        fill(trainer, step.batch, rows, layout, current)
    return current


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
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.max_norm)).item()
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
