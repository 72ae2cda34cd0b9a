"""What is measured in every step, the same for every method."""

import torch
from torch import Tensor

from workbench import upge
from workbench.problems import Verdict
from workbench.training.sequences import Sequence
from workbench.training.tally import Tally


def rollout_statistics(sequences: list[Sequence], tally: Tally) -> None:
    """Rewards, lengths, verdicts: what the rollouts say before any gradient."""
    for s in sequences:
        if s.demonstration:
            tally.sum("offline/cut_demonstrations", not s.finished)
            tally.add("length/demonstrations", len(s.response), 1)
            continue
        length = len(s.response)
        tally.add("reward/mean", s.correct, 1)
        tally.add("length/all", length, 1)
        tally.add("length/right" if s.correct else "length/wrong", length, 1)
        tally.add("length/truncated", not s.finished, 1)
        ungradable = s.verdict not in (Verdict.CORRECT, Verdict.WRONG)
        tally.add("verdict/ungradable", ungradable, 1)
        for verdict in Verdict:
            tally.sum(f"verdict/{verdict.value}", s.verdict is verdict)


def batch_statistics(
    method: upge.Method, sequences: list[Sequence], batch: upge.TokenBatch, tally: Tally
) -> tuple[list[float], list[float]]:
    """Solve rates, entropy, gate and offline shares; returns the gate's weights by question."""
    alpha, beta = method.gate_weights(batch)
    if method.samples_rollouts:
        rate = batch.solve_rate
        tally.add("reward/solve_none", (rate == 0).sum(), batch.questions)
        tally.add("reward/solve_all", (rate == 1).sum(), batch.questions)
        tally.add("reward/solve_some", ((rate > 0) & (rate < 1)).sum(), batch.questions)
        rollouts = batch.trained & ~batch.demonstration[:, None]
        assert batch.old_entropy is not None
        tally.add("policy/entropy", batch.old_entropy[rollouts].sum(), rollouts.sum())
        _engine_ratios(method, batch, tally)
    tally.add("gate/rollouts", alpha.sum(), batch.questions)
    tally.add("gate/demonstrations", beta.sum(), batch.questions)
    _offline_ratios(method, batch, alpha, beta, tally)
    return alpha.tolist(), beta.tolist()


def _offline_ratios(
    method: upge.Method, batch: upge.TokenBatch, alpha: Tensor, beta: Tensor, tally: Tally
) -> None:
    demonstrated = batch.per_question(torch.ones_like(batch.rewards), batch.demonstration) > 0
    tally.sum("gate/missing_demonstrations", _missing(method, beta, demonstrated))
    online = alpha if method.rollouts is not None else torch.zeros_like(alpha)
    offline = torch.where(demonstrated, beta, 0.0)
    tally.add("offline/questions", (offline / (online + offline).clamp(min=1e-12)).sum(), len(beta))
    weight = torch.where(batch.demonstration, offline[batch.question], online[batch.question])
    kept = weight != 0
    tally.add("offline/sequences", (kept & batch.demonstration).sum(), kept.sum())
    tokens = torch.where(kept, batch.lengths, 0)
    tally.add("offline/tokens", tokens[batch.demonstration].sum(), tokens.sum())


def _missing(method: upge.Method, beta: Tensor, demonstrated: Tensor) -> int:
    if method.demonstrations is None:
        return 0
    return int(((beta != 0) & ~demonstrated).sum())


def _engine_ratios(method: upge.Method, batch: upge.TokenBatch, tally: Tally) -> None:
    """How far the engine that drew the rollouts is from the trainer, and what corrects for it."""
    assert batch.engine_logprobs is not None
    rollouts = batch.trained & ~batch.demonstration[:, None]
    tokens = int(rollouts.sum())
    if tokens == 0:
        return
    difference = (batch.old_logprobs - batch.engine_logprobs)[rollouts]
    tally.add("ratio/engine_mismatch", difference.abs().sum(), tokens)
    tally.add("ratio/engine_raw_mean", difference.exp().sum(), tokens)
    tally.largest("ratio/engine_raw_max", difference.exp().max())
    for term in upge.terms(method.rollouts):
        denominator = term.estimator.denominator
        applied = denominator.correction(batch)[rollouts]
        tally.add("ratio/engine_applied_mean", applied.sum(), tokens)
        tally.largest("ratio/engine_applied_max", applied.max())
        tally.add("ratio/engine_cut", denominator.cut(batch)[rollouts].sum(), tokens)


def ratio_statistics(step: upge.Step, rows: Tensor, logprobs: Tensor, tally: Tally) -> None:
    """Ratios, raw and applied, and demonstrations, counted over tokens of the rows: the active.

    `logprobs` [sequence, token] are the current policy's; of other rows nobody asked for them.
    """
    logprobs, batch = logprobs[rows], step.batch.rows(rows)
    rollouts = batch.trained & ~batch.demonstration[:, None]
    log_ratio = logprobs - batch.old_logprobs
    raw = log_ratio.exp()
    tokens = int(rollouts.sum())
    if tokens:
        chosen = raw[rollouts]
        tally.add("ratio/raw_mean", chosen.sum(), tokens)
        tally.largest("ratio/raw_max", chosen.max())
        tally.add("ratio/effective_sample_size", chosen.square().sum(), tokens)
        # KL(old || current) from tokens of the old policy, by the estimator that is never negative.
        tally.add("policy/kl_old", (chosen - 1 - log_ratio[rollouts]).sum(), tokens)
    demonstrated = batch.trained & batch.demonstration[:, None]
    tally.add("policy/nll_demonstrations", -logprobs[demonstrated].sum(), demonstrated.sum())
    assert batch.old_entropy is not None
    entropy = batch.old_entropy[demonstrated].sum()
    tally.add("policy/entropy_demonstrations", entropy, demonstrated.sum())
    for term, weights in step.weighted(rows, logprobs):
        used = (term.share[rows] != 0) & (term.advantage[rows] != 0)
        tally.add("ratio/clip_fraction", (1 - weights.stable)[used].sum(), used.sum())
        tally.add("ratio/applied_mean", (weights.stable * weights.ratio)[used].sum(), used.sum())
