"""The optimizer steps over one batch: the gradient, what is measured of it, and its use."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
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
from workbench.training.trainer import Lane, Trainer

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
    trainer.clear_gradients()
    team, partings = trainer.team, [lane.parting for lane in trainer.lanes if lane.parting]
    active = team.agreed(step.active).nonzero()[:, 0]
    rows = active.tolist()
    block = blocks_of(step.batch.questions, trainer.recipe.gradient_blocks)
    blocks = block[-1] + 1
    question = step.batch.question.tolist()
    part = {
        row: block[question[row]] + blocks * (SFT if sequences[row].demonstration else RL)
        for row in rows
    }
    for parting in partings:
        parting.begin(2 * blocks, seed=trainer.progress.updates)
    added = []
    before = torch.zeros(trainer.sketch.size, device=trainer.policy.device)
    learning = _Learning(trainer, sequences, step, part, torch.zeros_like(step.batch.logprobs))
    losses = torch.zeros(len(PARTS), dtype=torch.float64)
    # Streams are told apart by what each adds to the gradient, for the map is linear. So are blocks
    # where a pass cannot be parted.
    at_once = blocks if partings else 1
    for first in range(0, 2 * blocks, at_once):
        chosen = [row for row in rows if first <= part[row] < first + at_once]
        losses += sum(trainer.each(trainer.micro_batches(sequences, chosen), learning))
        trainer.gather_gradients()
        after = trainer.sketch(_gradients(trainer)) if chosen else before
        added.append(after - before)
        before = after
    if trainer.one_pass:
        share_filled(trainer, step.batch, rows)
    ratio_statistics(step, active, team.total(learning.logprobs), tally)
    total = team.total(losses.to(trainer.policy.device))
    for name, loss in zip((*PARTS, "total"), (*total, total.sum()), strict=True):
        tally.add(f"loss/{name}", loss, 1)
    apart = team.total(torch.stack(added)).unflatten(0, (2, -1))
    parts = apart
    if partings:
        # Of one lane, the only one that a large model has, no second copy.
        together = reduce(torch.add, [parting.parts for parting in partings])
        parts = team.total(together).unflatten(0, (2, -1))
    sizes = torch.tensor(block).bincount().to(before)
    _gradient_statistics(trainer, Blocks(apart.sum(dim=1), parts, sizes), tally)
    trainer.progress.trained_tokens += sum(len(sequences[row].response) for row in rows)
    _apply(trainer, tally, float(total.sum()))


@dataclass(frozen=True, eq=False)
class _Learning:
    """Adds the gradients of a step's micro-batches, and says what their losses are.

    Attributes:
        part: which part of the gradient each row is in.
        logprobs: [row, token], of what the policy says.
    """

    trainer: Trainer
    sequences: list[Sequence]
    step: upge.Step
    part: dict[int, int]
    logprobs: Tensor

    def __call__(self, lane: Lane, rows: list[int] | None) -> Tensor:
        if rows is None:
            return self._keep_pace(lane)
        layout = lay_out(self.trainer, self.sequences, rows)
        index = torch.tensor(rows, device=lane.policy.device)
        watched: AbstractContextManager[None] = nullcontext()
        if lane.parting is not None:
            watched = lane.parting.watch(layout, [self.part[row] for row in rows])
        with watched:
            current = self._score(lane, rows, layout)
            missing = self.step.batch.trained.shape[1] - layout.width
            wide = upge.Current(
                *(None if t is None else functional.pad(t, (0, missing)) for t in _tensors(current))  # type: ignore[arg-type]
            )
            found = self.step.losses(index, wide)
            losses = torch.stack([found[each] for each in PARTS])
            losses.sum().backward()
        self.logprobs[index] = wide.logprobs.detach()
        return losses.detach().to("cpu", torch.float64)

    def _keep_pace(self, lane: Lane) -> Tensor:
        """Goes through the model as the processes do that have rows, and adds nothing."""
        current = self._score(lane, [], lay_out(self.trainer, self.sequences, idle(self.sequences)))
        nothing = [0.0 * t.sum() for t in _tensors(current) if t is not None and t.requires_grad]
        torch.stack(nothing).sum().backward()
        return torch.zeros(len(PARTS), dtype=torch.float64)

    def _score(self, lane: Lane, rows: list[int], layout: Layout) -> upge.Current:
        """What the policy says of some rows; what of it is also the old policy's it fills in."""
        learned, one_pass = self.trainer.method.needs_entropy, self.trainer.one_pass
        current = lane.policy.score(layout, learned or one_pass, learned)
        if one_pass:
            fill(lane, self.step.batch, rows, layout, current)
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
    length = trainer.team.norm([p.grad for p in parameters if p.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_norm, length)
    norm = length.item()
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
