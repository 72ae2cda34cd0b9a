"""Published losses as their papers write them, for autograd to differentiate.

Written with loops over questions, responses and tokens, min and clip, and knowing nothing of masks,
denominators or weights. Each takes a batch, log pi in `batch.logprobs` carrying the gradient, and
returns the scalar to minimize. Where a formula reads 0/0 (one response in a group, no spread, an
empty response) the term is 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import exp, sqrt

import torch
from torch import Tensor

from workbench.upge import TokenBatch

Scores = dict[int, float]  # by row
TokenScores = Callable[[int, int], float]  # by row and token
TokenLoss = Callable[[Tensor, Tensor, float], Tensor]  # log pi, log pi_old, A


@dataclass(frozen=True)
class Question:
    """The rows of one question."""

    rollouts: list[int]
    demonstrations: list[int]

    @property
    def everything(self) -> list[int]:
        return self.rollouts + self.demonstrations


def questions(batch: TokenBatch) -> list[Question]:
    group, demonstration = batch.group.tolist(), batch.demonstration.tolist()
    found = {name: Question([], []) for name in sorted(set(group))}
    for i, name in enumerate(group):
        kind = found[name].demonstrations if demonstration[i] else found[name].rollouts
        kind.append(i)
    return list(found.values())


def tokens(batch: TokenBatch, row: int) -> list[int]:
    return batch.trained[row].nonzero().flatten().tolist()


def length(batch: TokenBatch, rows: list[int]) -> int:
    return sum(len(tokens(batch, i)) for i in rows)


def pairs(batch: TokenBatch, rows: list[int]) -> Iterator[tuple[int, int]]:
    return ((i, t) for i in rows for t in tokens(batch, i))


def total(batch: TokenBatch, terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() if terms else batch.logprobs.new_zeros(())


def ratio(a: float | Tensor, b: float | Tensor) -> float | Tensor:
    """a / b, and 0 where b is 0: an empty mean."""
    return a / b if b else 0 * a


def mean_over_questions(batch: TokenBatch, of_one: Callable[[Question], Tensor]) -> Tensor:
    asked = questions(batch)
    return total(batch, [of_one(q) for q in asked]) / len(asked)


# --- advantages, as numbers -----------------------------------------------------------------------


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float], ddof: int = 1) -> float:
    centre = mean(values)
    return sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def rewards(batch: TokenBatch, rows: list[int]) -> list[float]:
    return [float(batch.rewards[i]) for i in rows]


def signed(batch: TokenBatch, q: Question) -> Scores:
    return {i: 1.0 if batch.correct[i] else -1.0 for i in q.rollouts}


def raw(batch: TokenBatch, q: Question) -> Scores:
    return {i: float(batch.rewards[i]) for i in q.everything}


def alone(batch: TokenBatch, q: Question, lone: bool) -> Scores:
    """A group too small for its statistics: zeros, or plain rewards where `lone` says so."""
    return raw(batch, q) if lone else dict.fromkeys(q.everything, 0.0)


def centred(batch: TokenBatch, q: Question, together: bool = False, lone: bool = False) -> Scores:
    group = rewards(batch, q.everything if together else q.rollouts)
    if len(group) < 2:
        return alone(batch, q, lone)
    return {i: float(batch.rewards[i]) - mean(group) for i in q.everything}


def normalized(
    batch: TokenBatch,
    q: Question,
    together: bool = False,
    epsilon: float = 1e-6,
    ddof: int = 1,
    lone: bool = False,
) -> Scores:
    group = rewards(batch, q.everything if together else q.rollouts)
    if len(group) < 2:
        return alone(batch, q, lone)
    if len(set(group)) == 1:
        return dict.fromkeys(q.everything, 0.0)
    spread = deviation(group, ddof) + epsilon
    return {i: (float(batch.rewards[i]) - mean(group)) / spread for i in q.everything}


def leave_one_out(batch: TokenBatch, q: Question, lone: bool = False) -> Scores:
    if len(q.rollouts) < 2:
        return alone(batch, q, lone)
    others = {i: rewards(batch, [j for j in q.rollouts if j != i]) for i in q.rollouts}
    return {i: float(batch.rewards[i]) - mean(others[i]) for i in q.rollouts}


Grouped = Callable[[TokenBatch, Question], Scores]


def by_group(batch: TokenBatch, grouped: Grouped) -> TokenScores:
    scores: Scores = {}
    for q in questions(batch):
        scores |= grouped(batch, q)
    return lambda row, token: scores[row]


def whiten(scores: dict[tuple[int, int], float], epsilon: float = 1e-8) -> TokenScores:
    values = list(scores.values())
    if len(values) < 2:
        return lambda row, token: scores[row, token]
    centre, variance = mean(values), deviation(values) ** 2
    return lambda row, token: (scores[row, token] - centre) / sqrt(variance + epsilon)


def all_rollouts(batch: TokenBatch) -> list[int]:
    return [i for q in questions(batch) for i in q.rollouts]


def whitened_rewards(batch: TokenBatch, baseline: bool) -> TokenScores:
    score: dict[tuple[int, int], float] = {}
    for q in questions(batch):
        for i, t in pairs(batch, q.rollouts):
            below = mean(rewards(batch, q.rollouts)) if baseline else 0.0
            score[i, t] = float(batch.rewards[i]) - below
    return whiten(score)


def gae(batch: TokenBatch, discount: float, trace: float) -> dict[tuple[int, int], float]:
    """A_t = sum over l of (discount trace)^l delta_(t+l), the sum written out (eq. 16)."""
    assert batch.values is not None
    found = {}
    for i in all_rollouts(batch):
        here = tokens(batch, i)
        value = [float(batch.values[i, t]) for t in here] + [0.0]
        reward = [0.0] * (len(here) - 1) + [float(batch.rewards[i])]
        delta = [reward[k] + discount * value[k + 1] - value[k] for k in range(len(here))]
        for k, t in enumerate(here):
            rest = enumerate(delta[k:])
            found[i, t] = sum((discount * trace) ** ahead * d for ahead, d in rest)
    return found


# --- what one token loses -------------------------------------------------------------------------


def log_likelihood(new: Tensor, old: Tensor, advantage: float) -> Tensor:
    return -advantage * new


def likelihood(new: Tensor, old: Tensor, advantage: float) -> Tensor:
    """pi itself: pi_ref = 1."""
    return -advantage * new.exp()


def shaped(new: Tensor, old: Tensor, advantage: float, gamma: float = 0.1) -> Tensor:
    return -advantage * new.exp() / (new.exp() + gamma)


def importance(new: Tensor, old: Tensor, advantage: float) -> Tensor:
    return -advantage * (new - old).exp()


def ppo_clip(low: float = 0.2, high: float = 0.2, dual: float | None = None) -> TokenLoss:
    def loss(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        r = (new - old).exp()
        objective = torch.minimum(r * advantage, r.clamp(1 - low, 1 + high) * advantage)
        if dual is not None and advantage < 0:
            objective = torch.maximum(objective, torch.full_like(r, dual * advantage))
        return -objective

    return loss


def capped_importance(cap: float) -> TokenLoss:
    def loss(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        return -(new - old).exp().clamp(max=cap).detach() * advantage * new

    return loss


def soft_gate(positive: float = 1.0, negative: float = 1.05) -> TokenLoss:
    def loss(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        t = positive if advantage > 0 else negative
        return -advantage * torch.sigmoid(t * ((new - old).exp() - 1)) * 4 / t

    return loss


def engine_weight(
    batch: TokenBatch, i: int, t: int, cap: float, by_sequence: bool, drops: bool
) -> float:
    """min(prod of pi_old / pi_engine, cap), over a token or its response; or 0 above the cap."""
    over = tokens(batch, i) if by_sequence else [t]
    assert batch.engine_logprobs is not None
    old, engine = batch.old_logprobs, batch.engine_logprobs
    weight = exp(sum(float(old[i, u] - engine[i, u]) for u in over))
    if weight <= cap:
        return weight
    return 0.0 if drops else cap


def grpo_of_another_engine(
    batch: TokenBatch, loss: TokenLoss, cap: float, by_sequence: bool = False, drops: bool = False
) -> Tensor:
    """GRPO with every token's loss multiplied by its importance weight, truncated or masked."""
    A = by_group(batch, normalized)

    def of_one(q: Question) -> Tensor:
        each = []
        for i in q.rollouts:
            terms = [
                engine_weight(batch, i, t, cap, by_sequence, drops)
                * loss(batch.logprobs[i, t], batch.old_logprobs[i, t], A(i, t))
                for t in tokens(batch, i)
            ]
            each.append(ratio(total(batch, terms), len(terms)))
        return ratio(total(batch, each), len(q.rollouts))

    return mean_over_questions(batch, of_one)


# --- how tokens are put together ------------------------------------------------------------------


def token_terms(batch: TokenBatch, rows: list[int], loss: TokenLoss, A: TokenScores) -> Tensor:
    """The sum over the tokens of these rows."""
    new, old = batch.logprobs, batch.old_logprobs
    each = [loss(new[i, t], old[i, t], A(i, t)) for i, t in pairs(batch, rows)]
    return total(batch, each)


def token_sum(batch: TokenBatch, loss: TokenLoss, A: TokenScores, constant: int = 1) -> Tensor:
    """mean over questions of 1/n sum_i sum_t, over a constant length."""

    def of_one(q: Question) -> Tensor:
        return ratio(token_terms(batch, q.rollouts, loss, A), len(q.rollouts)) / constant

    return mean_over_questions(batch, of_one)


def token_mean(batch: TokenBatch, loss: TokenLoss, A: TokenScores) -> Tensor:
    """mean over questions of 1 / sum_i |o_i| sum_i sum_t."""

    def of_one(q: Question) -> Tensor:
        return ratio(token_terms(batch, q.rollouts, loss, A), length(batch, q.rollouts))

    return mean_over_questions(batch, of_one)


def batch_token_mean(batch: TokenBatch, loss: TokenLoss, A: TokenScores) -> Tensor:
    """One mean over all rollout tokens of the batch."""
    rows = all_rollouts(batch)
    return ratio(token_terms(batch, rows, loss, A), length(batch, rows))


def sequence_mean(batch: TokenBatch, loss: TokenLoss, A: TokenScores) -> Tensor:
    """mean over questions of 1/G sum_i 1/|o_i| sum_t."""

    def of_one(q: Question) -> Tensor:
        each = [ratio(token_terms(batch, [i], loss, A), length(batch, [i])) for i in q.rollouts]
        return ratio(total(batch, each), len(q.rollouts))

    return mean_over_questions(batch, of_one)


# --- imitation ------------------------------------------------------------------------------------


def one(row: int, token: int) -> float:
    return 1.0


def imitation(batch: TokenBatch, q: Question, loss: TokenLoss = log_likelihood) -> Tensor:
    """The mean over the demonstration's tokens."""
    rows = q.demonstrations
    return ratio(token_terms(batch, rows, loss, one), length(batch, rows))


def sft(batch: TokenBatch) -> Tensor:
    return mean_over_questions(batch, lambda q: imitation(batch, q))


def sft_of_batch(batch: TokenBatch) -> Tensor:
    rows = [i for q in questions(batch) for i in q.demonstrations]
    return ratio(token_terms(batch, rows, log_likelihood, one), length(batch, rows))


def sft_of_sequences(batch: TokenBatch) -> Tensor:
    def of_one(q: Question) -> Tensor:
        return ratio(
            total(batch, [imitation(batch, Question([], [i])) for i in q.demonstrations]),
            len(q.demonstrations),
        )

    return mean_over_questions(batch, of_one)


def dft(batch: TokenBatch) -> Tensor:
    """-sg(pi) log pi, as its paper writes it."""

    def loss(new: Tensor, old: Tensor, advantage: float) -> Tensor:
        return -new.exp().detach() * new

    return mean_over_questions(batch, lambda q: imitation(batch, q, loss))


# --- reinforcement --------------------------------------------------------------------------------


def reinforce(batch: TokenBatch, scores: Grouped = signed) -> Tensor:
    """-(1/n) sum_i R_i log pi(o_i), the log-probability of the whole response."""
    return token_sum(batch, log_likelihood, by_group(batch, scores))


def rloo(batch: TokenBatch, lone: bool = False) -> Tensor:
    return reinforce(batch, partial(leave_one_out, lone=lone))


def reinforce_pp(batch: TokenBatch, baseline: bool = False) -> Tensor:
    return batch_token_mean(batch, ppo_clip(), whitened_rewards(batch, baseline))


def ppo(
    batch: TokenBatch,
    values: Tensor,
    loss: TokenLoss | None = None,
    discount: float = 1.0,
    trace: float = 1.0,
    whitening: bool = True,
    coefficient: float = 0.5,
) -> Tensor:
    """The clipped surrogate, plus the coefficient times half the mean squared value error."""
    plain = gae(batch, discount, trace)
    A = whiten(plain) if whitening else (lambda row, token: plain[row, token])
    assert batch.values is not None
    errors = [(values[i, t] - batch.values[i, t] - a) ** 2 / 2 for (i, t), a in plain.items()]
    regression = ratio(total(batch, errors), len(errors))
    return token_mean(batch, loss or ppo_clip(), A) + coefficient * regression


def grpo(batch: TokenBatch, loss: TokenLoss | None = None, **how: float) -> Tensor:
    scores = by_group(batch, lambda b, q: normalized(b, q, **how))  # type: ignore[arg-type]
    return sequence_mean(batch, loss or ppo_clip(), scores)


def dr_grpo(batch: TokenBatch, constant: int = 1, lone: bool = False) -> Tensor:
    return token_sum(batch, ppo_clip(), by_group(batch, partial(centred, lone=lone)), constant)


def dapo(batch: TokenBatch, scores: Grouped = normalized, dual: float | None = None) -> Tensor:
    return token_mean(batch, ppo_clip(0.2, 0.28, dual), by_group(batch, scores))


def dapo_of_batch(batch: TokenBatch) -> Tensor:
    return batch_token_mean(batch, ppo_clip(0.2, 0.28), by_group(batch, normalized))


def cispo(batch: TokenBatch, cap: float, scores: Grouped = normalized) -> Tensor:
    return token_mean(batch, capped_importance(cap), by_group(batch, scores))


def cispo_of_batch(batch: TokenBatch, cap: float) -> Tensor:
    return batch_token_mean(batch, capped_importance(cap), by_group(batch, normalized))


def gspo(
    batch: TokenBatch,
    low: float = 3e-4,
    high: float = 4e-4,
    scores: Grouped = normalized,
    by_length: bool = False,
) -> Tensor:
    """s_i = (pi(o_i) / pi_old(o_i))^(1/|o_i|), clipped whole; rows count alike or `by_length`."""
    A = by_group(batch, scores)

    def of_row(i: int) -> Tensor:
        here = tokens(batch, i)
        if not here:
            return batch.logprobs.new_zeros(())
        drift = (batch.logprobs[i, here] - batch.old_logprobs[i, here]).sum()
        s, a = (drift / len(here)).exp(), A(i, 0)
        return -torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a)

    def of_one(q: Question) -> Tensor:
        counts = [length(batch, [i]) if by_length else 1 for i in q.rollouts]
        each = [count * of_row(i) for count, i in zip(counts, q.rollouts, strict=True)]
        return ratio(total(batch, each), sum(counts))

    return mean_over_questions(batch, of_one)


def sapo(batch: TokenBatch, positive: float = 1.0, negative: float = 1.05) -> Tensor:
    return grpo(batch, soft_gate(positive, negative))


def sapo_by_tokens(batch: TokenBatch, scores: Grouped) -> Tensor:
    return token_mean(batch, soft_gate(), by_group(batch, scores))


def clip_cov(batch: TokenBatch, dropped: Tensor) -> Tensor:
    """PPO's clip, with the selected tokens kept out of the gradient (GRPO's advantage and mean)."""
    A, clip = by_group(batch, normalized), ppo_clip()

    def of_one(q: Question) -> Tensor:
        each = []
        for i in q.rollouts:
            for t in tokens(batch, i):
                term = clip(batch.logprobs[i, t], batch.old_logprobs[i, t], A(i, t))
                each.append((term.detach() if dropped[i, t] else term) / length(batch, [i]))
        return ratio(total(batch, each), len(q.rollouts))

    return mean_over_questions(batch, of_one)


def top_entropy(batch: TokenBatch, share: float) -> Tensor:
    """DAPO on the tokens whose entropy is among the highest of the batch's rollouts."""
    assert batch.old_entropy is not None
    entropy = {(i, t): float(batch.old_entropy[i, t]) for i, t in pairs(batch, all_rollouts(batch))}
    kept = sorted(entropy, key=lambda each: -entropy[each])
    kept = kept[: max(1, round(share * len(kept)))]
    A, clip = by_group(batch, normalized), ppo_clip(0.2, 0.28)

    def of_one(q: Question) -> Tensor:
        each = [
            clip(batch.logprobs[i, t], batch.old_logprobs[i, t], A(i, t))
            for i, t in pairs(batch, q.rollouts)
            if (i, t) in kept
        ]
        return ratio(total(batch, each), length(batch, q.rollouts))

    return mean_over_questions(batch, of_one)


# --- rollouts and demonstrations together ---------------------------------------------------------


def luffy(
    batch: TokenBatch,
    offline: TokenLoss = shaped,
    scores: Callable[..., Scores] = normalized,
    online: TokenLoss | None = None,
    constant: int | None = None,
) -> Tensor:
    """1/Z (sum over demonstrations of f(pi) A + sum over rollouts of clip(r, A)), one group."""
    online = online or ppo_clip()
    A = by_group(batch, lambda b, q: scores(b, q, together=True))

    def of_one(q: Question) -> Tensor:
        every = token_terms(batch, q.rollouts, online, A)
        every = every + token_terms(batch, q.demonstrations, offline, A)
        size = length(batch, q.everything) if constant is None else constant * len(q.everything)
        return ratio(every, size)

    return mean_over_questions(batch, of_one)


def srft(
    batch: TokenBatch, offline: TokenLoss = likelihood, scores: Callable[..., Scores] = normalized
) -> Tensor:
    """Four losses at once, the entropies of whole responses as coefficients."""
    assert batch.old_entropy is not None
    old_entropy = batch.old_entropy
    A = by_group(batch, lambda b, q: scores(b, q, together=True))

    def entropy(i: int) -> float:
        here = tokens(batch, i)
        return float(ratio(sum(float(old_entropy[i, t]) for t in here), len(here)))

    def of_one(q: Question) -> Tensor:
        imitated = [
            0.5 * exp(-entropy(i)) * token_terms(batch, [i], log_likelihood, one)
            for i in q.demonstrations
        ]
        found = [ratio(total(batch, imitated), length(batch, q.demonstrations))]
        for i in q.demonstrations:
            found.append(off_term(q, i))
        for i in q.rollouts:
            log_pi = ratio(token_terms(batch, [i], log_likelihood, one), length(batch, [i]))
            weight = 0.1 * exp(entropy(i)) if batch.correct[i] else -1.0
            found.append(weight * log_pi / len(q.everything))
        return total(batch, found)

    def off_term(q: Question, i: int) -> Tensor:
        mean_of_row = ratio(token_terms(batch, [i], offline, A), length(batch, [i]))
        return mean_of_row / len(q.everything)

    return mean_over_questions(batch, of_one)


def is_gated(batch: TokenBatch, q: Question, gamma: float) -> bool:
    """Whether the share of right rollouts is at most gamma, as where there is no rollout."""
    right = sum(bool(batch.correct[i]) for i in q.rollouts)
    return right <= gamma * len(q.rollouts) + 1e-9


def hpt(
    batch: TokenBatch,
    entropy: Tensor | None = None,
    *,
    gamma: float = 0.0,
    std: bool = True,
    clip: bool = True,
    constant: int = 1,
    rl_coefficient: float = 1.0,
    gated_only: bool = False,
    sft_coefficient: float = 1.0,
    sft_passes: int = 1,
    entropy_bonus: float = 0.0,
    off_coefficient: float = 0.0,
    offline: TokenLoss = shaped,
) -> Tensor:
    """alpha L_RL + beta L_SFT by question (eq. 9-12); the keywords are its departures.

    Attributes:
        gated_only: the SFT loss is one token mean over the gated questions, not over all of them.
        off_coefficient: of the off-policy RL that joins or replaces SFT (OFF/ON, Mix/ON).
    """
    rl = ppo_clip() if clip else importance
    A = by_group(batch, normalized if std else centred)
    together = by_group(batch, lambda b, q: normalized(b, q, together=True))
    asked = questions(batch)
    gated = [q for q in asked if is_gated(batch, q, gamma)]
    found = []
    for q in asked:
        if q not in gated:
            L_RL = ratio(token_terms(batch, q.rollouts, rl, A), len(q.rollouts)) / constant
            found.append(rl_coefficient * L_RL / len(asked))
            continue
        off = token_terms(batch, q.demonstrations, offline, together)
        found.append(off_coefficient * ratio(off, len(q.demonstrations)) / len(asked))
        if not gated_only:
            found.append(sft_coefficient * sft_passes * imitation(batch, q) / len(asked))
    if gated_only:
        rows = [i for q in gated for i in q.demonstrations]
        mean_loss = ratio(token_terms(batch, rows, log_likelihood, one), length(batch, rows))
        found += [sft_coefficient * mean_loss for _ in range(sft_passes)]
    if entropy_bonus:
        assert entropy is not None
        kept = [i for q in asked for i in (q.demonstrations if q in gated else q.rollouts)]
        here = [entropy[i, t] for i, t in pairs(batch, kept)]
        found.append(-entropy_bonus * ratio(total(batch, here), len(here)))
    return total(batch, found)


RELEASED = {
    "std": False,
    "clip": False,
    "constant": 8192,
    "rl_coefficient": 64.0,
    "gated_only": True,
    "entropy_bonus": 0.001,
}


def hpt_released(batch: TokenBatch, entropy: Tensor, **changes: object) -> Tensor:
    return hpt(batch, entropy, **{**RELEASED, **changes})  # type: ignore[arg-type]


def off_on(batch: TokenBatch, offline: TokenLoss = shaped) -> Tensor:
    return hpt(batch, sft_coefficient=0.0, off_coefficient=1.0, offline=offline)


def mix_on(batch: TokenBatch, sft_coefficient: float = 0.1, off_coefficient: float = 1.0) -> Tensor:
    return hpt(batch, sft_coefficient=sft_coefficient, off_coefficient=off_coefficient)
