"""The old policy: what the weights that drew the rollouts say of every token of a step."""

import torch

from workbench import upge
from workbench.training.layout import Layout, trained_tokens
from workbench.training.sequences import Sequence, engine_logprobs
from workbench.training.trainer import Lane, Trainer


def collate(trainer: Trainer, sequences: list[Sequence]) -> upge.TokenBatch:
    """The step's batch with the old policy's log-probabilities, entropies and values.

    Where one pass does, only rollouts that the update has no use for: it fills in the others'.
    Demonstrations that the gate gives no weight are never scored: nothing reads them.
    """
    batch = unscored(trainer, sequences)
    if trainer.one_pass:
        read = ~batch.demonstration & ~trainer.team.agreed(trainer.method.prepare(batch).active)
    else:
        _, beta = trainer.method.gate_weights(batch)
        read = ~batch.demonstration | (beta[batch.question] != 0)
    score_rows(trainer, sequences, batch, read.nonzero()[:, 0].tolist())
    return batch


def unscored(trainer: Trainer, sequences: list[Sequence]) -> upge.TokenBatch:
    """The sequences as a batch in which every log-probability is still 0."""
    device = trainer.policy.device
    trained = trained_tokens(sequences).to(device)
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


def score_rows(
    trainer: Trainer, sequences: list[Sequence], batch: upge.TokenBatch, rows: list[int]
) -> None:
    """Fills in what the policy, as it is, says of some rows."""

    @torch.no_grad()
    def score(lane: Lane, micro: list[int] | None) -> None:
        layout = lay_out(trainer, sequences, micro or idle(sequences))
        fill(lane, batch, micro or [], layout, lane.policy.score(layout, entropy=True))

    trainer.each(trainer.micro_batches(sequences, rows), score)
    share_filled(trainer, batch, rows)


def lay_out(trainer: Trainer, sequences: list[Sequence], rows: list[int]) -> Layout:
    """Some rows as the policy reads them."""
    return trainer.policy.lay_out([sequences[row] for row in rows])


def idle(sequences: list[Sequence]) -> list[int]:
    """The row that a process of a team reads, for nothing, while it has none of its own.

    Each part of a model is put together by all processes at once, so that all go through it.
    """
    return [min(range(len(sequences)), key=lambda row: sequences[row].length)]


@torch.no_grad()
def fill(
    lane: Lane, batch: upge.TokenBatch, rows: list[int], layout: Layout, old: upge.Current
) -> None:
    """Writes into a batch what the old policy, and the base model, say of some rows; or of none."""
    base = None
    if batch.base_logprobs is not None and lane.base is not None:
        base = lane.base.score(layout).logprobs
    if not rows:
        return
    index = torch.tensor(rows, device=lane.policy.device)
    columns = slice(0, layout.width)
    batch.logprobs[index, columns] = old.logprobs
    batch.old_logprobs[index, columns] = old.logprobs
    if batch.old_entropy is not None and old.entropy is not None:
        batch.old_entropy[index, columns] = old.entropy
    if batch.values is not None and old.values is not None:
        batch.values[index, columns] = old.values
    if batch.base_logprobs is not None and base is not None:
        batch.base_logprobs[index, columns] = base


def share_filled(trainer: Trainer, batch: upge.TokenBatch, rows: list[int]) -> None:
    """Gives every process of a team what each of them filled in."""
    if trainer.team.size == 1:
        return
    index = torch.tensor(rows, dtype=torch.long, device=trainer.policy.device)
    filled = (batch.logprobs, batch.old_logprobs, batch.old_entropy, batch.values)
    for tensor in (*filled, batch.base_logprobs):
        if tensor is not None:
            tensor[index] = trainer.team.total(tensor[index])
