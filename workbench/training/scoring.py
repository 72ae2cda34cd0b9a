"""The old policy: what the weights that drew the rollouts say of every token of a step."""

import torch

from workbench import upge
from workbench.training.sequences import Padded, Sequence, engine_logprobs, micro_batches, pad
from workbench.training.trainer import Trainer


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
        fill(trainer, batch, micro, padded, trainer.policy.score(padded, entropy=True))


@torch.no_grad()
def fill(
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
