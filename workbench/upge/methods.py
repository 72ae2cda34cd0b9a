"""Published methods, each a few lines that return a value. Variants are arguments, not copies.

Where papers and codebases disagree, the default is the paper's and the argument says whose the
other is. A row is one of Table 1 of "Towards a Unified View of LLM Post-Training" (2509.04419), or
is written as one: pi_ref; A; mask; likelihood; aggregation. Means and z-scores are over a
question's rollouts unless said; token sums are averaged over them.
"""

from collections.abc import Callable, Iterable
from functools import cache, lru_cache

from workbench.identity import replace
from workbench.study import differing, flatten
from workbench.upge.advantages import (
    GAE,
    Advantage,
    BatchNormalized,
    GroupCentered,
    GroupNormalized,
    LeaveOneOut,
    Ones,
    Signed,
)
from workbench.upge.aggregations import (
    Aggregation,
    ConstantLength,
    PerGroup,
    PerStream,
    SequenceMean,
    TokenMean,
)
from workbench.upge.auxiliary import Auxiliary, EntropyBonus, ValueLoss
from workbench.upge.denominators import (
    Capped,
    CurrentPolicy,
    EngineCorrected,
    OldPolicy,
    SequenceGeometric,
    Unit,
)
from workbench.upge.estimator import Estimator
from workbench.upge.gates import Gate, Switch
from workbench.upge.likelihoods import Likelihood, Plain, Shaped
from workbench.upge.masks import KeepAll, Mask, RatioClip, SequenceClip, SoftClip
from workbench.upge.method import EntropyWeight, Method, Stream, Term, terms


def _imitation(aggregation: Aggregation) -> Estimator:
    return Estimator(KeepAll(), CurrentPolicy(), Ones(), aggregation=aggregation)


def sft(aggregation: Aggregation = TokenMean()) -> Method:
    """Supervised fine-tuning: mean token log-loss of the demonstration.

    Row: pi_ref = pi; A = 1; no mask; plain; token mean. `TokenMean(PerStream())` weighs all tokens
    of the step alike, as most trainers do.
    """
    return Method(demonstrations=_imitation(aggregation))


def dft(aggregation: Aggregation = TokenMean()) -> Method:
    """Dynamic fine-tuning (Wu et al. 2025): SFT with each token weighed by its own probability.

    Row: pi_ref = 1; A = 1; no mask; plain; token mean.
    """
    return Method(demonstrations=Estimator(KeepAll(), Unit(), Ones(), aggregation=aggregation))


def reinforce(
    advantage: Advantage = Signed(), aggregation: Aggregation = ConstantLength(1)
) -> Method:
    """REINFORCE (Williams 1992), with the paper's signed reward; `Reward()` takes A = R.

    Row: pi_ref = pi; A = +-1; no mask; plain; token sum.
    """
    return Method(
        rollouts=Estimator(KeepAll(), CurrentPolicy(), advantage, aggregation=aggregation)
    )


def rloo(
    aggregation: Aggregation = ConstantLength(1), advantage: LeaveOneOut = LeaveOneOut()
) -> Method:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, eq. 6): unbiased on policy.

    Row: pi_ref = pi; A = R - mean of the others; no mask; plain; token sum. A lone
    rollout gets 0; with `LeaveOneOut(lone_reward=True)` its reward, as in the older of verl's two.
    """
    return reinforce(advantage, aggregation)


def reinforce_pp(
    centred_by_group: bool = False,
    mask: Mask = RatioClip(0.2),
    aggregation: Aggregation = TokenMean(PerStream()),
) -> Method:
    """REINFORCE++ (Hu et al. 2025): rewards whitened over the optimizer step, PPO's clip.

    Row: pi_ref = pi_old; A = z-score of R over the step's tokens; PPO clip; plain; token mean over
    the step. `centred_by_group=True` is REINFORCE++-baseline.
    """
    advantage = BatchNormalized(centred_by_group)
    return Method(rollouts=Estimator(mask, OldPolicy(), advantage, aggregation=aggregation))


def ppo(
    mask: Mask = RatioClip(0.2),
    advantage: GAE = GAE(),
    aggregation: Aggregation = TokenMean(),
    value_coefficient: float = 0.5,
) -> Method:
    """PPO (Schulman et al. 2017) with a value head.

    Row: pi_ref = pi_old; A = GAE; PPO clip; plain; token mean. verl always adds dual clip:
    `mask=DualClip(0.2)`.
    """
    return Method(
        rollouts=Estimator(mask, OldPolicy(), advantage, aggregation=aggregation),
        auxiliary=(ValueLoss(value_coefficient),),
    )


def grpo(
    mask: Mask = RatioClip(0.2),
    advantage: Advantage = GroupNormalized(),
    aggregation: Aggregation = SequenceMean(),
) -> Method:
    """GRPO (Shao et al. 2024, eq. 3, without KL).

    Row: pi_ref = pi_old; A = z-score; PPO clip; plain; sequence mean. verl: `DualClip(0.2)` and
    `TokenMean(PerStream())`; TRL: `GroupNormalized(epsilon=1e-4)`; open-instruct:
    `GroupNormalized(epsilon=1e-8, ddof=0)`.
    """
    return Method(rollouts=Estimator(mask, OldPolicy(), advantage, aggregation=aggregation))


def dr_grpo(
    length: int = 1, mask: Mask = RatioClip(0.2), advantage: GroupCentered = GroupCentered()
) -> Method:
    """Dr. GRPO (Liu et al. 2025): GRPO without the std and without the length divisor.

    Row: pi_ref = pi_old; A = R - mean; PPO clip; plain; token sum over a constant.
    `length` is the constant that token sums are divided by: 1 in the paper's equation, the
    generation budget in its code. A lone rollout gets 0; with `GroupCentered(lone_reward=True)` its
    reward, as in verl.
    """
    return grpo(mask, advantage, ConstantLength(length))


def dapo(
    mask: Mask = RatioClip(0.2, high=0.28),
    advantage: Advantage = GroupNormalized(),
    aggregation: Aggregation = TokenMean(),
) -> Method:
    """DAPO's loss (Yu et al. 2025, eq. 8): GRPO with clip-higher and token means over the question.

    Row: pi_ref = pi_old; A = z-score; PPO clip of two widths; plain; token mean. Its code takes the
    mean over the whole batch: `TokenMean(PerStream())`, and adds dual clip: `DualClip(0.2,
    high=0.28, cap=10.0)`. Dynamic sampling is not part of a loss.
    """
    return grpo(mask, advantage, aggregation)


def cispo(
    cap: float = 5.0,
    aggregation: Aggregation = TokenMean(),
    advantage: Advantage = GroupNormalized(),
) -> Method:
    """CISPO (MiniMax-M1, 2025, eq. 4-5): the ratio, capped, as a detached weight on log pi.

    Row: pi_ref = max(pi_old, pi / cap); A = z-score; no mask beside the cap; plain; token mean.
    `cap` is a ratio and not a distance from 1: the original leaves its value
    open, open-instruct takes 1.272, TRL recommends 5. Codebases take the token mean over the whole
    step: `TokenMean(PerStream())`.
    """
    return Method(rollouts=Estimator(KeepAll(), Capped(cap), advantage, aggregation=aggregation))


def gspo(
    low: float = 3e-4,
    high: float = 4e-4,
    advantage: Advantage = GroupNormalized(),
    aggregation: Aggregation = SequenceMean(),
) -> Method:
    """GSPO (Zheng et al. 2025, eq. 5-7): clip and ratio of whole sequences, by geometric means.

    Row: pi_ref = pi (pi_old(tau) / pi(tau))^(1 / length); A = z-score; clip of the sequence's
    ratio; plain; sequence mean.
    """
    mask = SequenceClip(low, high)
    return Method(rollouts=Estimator(mask, SequenceGeometric(), advantage, aggregation=aggregation))


def sapo(
    positive: float = 1.0,
    negative: float = 1.05,
    advantage: Advantage = GroupNormalized(),
    aggregation: Aggregation = SequenceMean(),
) -> Method:
    """SAPO (Gao et al. 2025): GRPO with a soft clip that fades tokens out.

    Row: pi_ref = pi_old; A = z-score; 4 s (1 - s) with s = sigmoid(t (r - 1)); plain; sequence
    mean.
    """
    return grpo(SoftClip(positive, negative), advantage, aggregation)


def luffy(
    likelihood: Likelihood = Shaped(0.1),
    advantage: Advantage = GroupNormalized(with_demonstrations=True),
    mask: Mask = RatioClip(0.2),
    aggregation: Aggregation = TokenMean(PerGroup()),
) -> Method:
    """LUFFY (Yan et al. 2025): the demonstration is one more member of the group, policy-shaped.

    Row (offline part): pi_ref = 1; A = z-score over rollouts and demonstration together; no mask;
    shaped, f(pi) = pi / (pi + 0.1); token mean over them together. Rollouts: pi_ref = pi_old; the
    same A; PPO clip; plain; the same mean. Use 7 rollouts a question. The released code does not
    clip rollouts (`KeepAll()`), centres without the std (`GroupCentered(with_demonstrations=True)`)
    and divides by a constant length (`ConstantLength(8192, PerGroup())`); `likelihood=Plain()` is
    its ablation.
    """
    return Method(
        rollouts=Estimator(mask, OldPolicy(), advantage, aggregation=aggregation),
        demonstrations=Estimator(KeepAll(), Unit(), advantage, likelihood, aggregation),
    )


def srft(
    advantage: Advantage = GroupNormalized(with_demonstrations=True),
    likelihood: Likelihood = Plain(),
    aggregation: Aggregation = SequenceMean(PerGroup()),
) -> Method:
    """SRFT (Fu et al. 2025): SFT and off-policy RL on demonstrations, +-1 RL on rollouts, at once.

    Entropy decides the coefficients: SFT 0.5 exp(-H), correct rollouts 0.1 exp(H). Row (offline
    part): pi_ref = 1; A = z-score over rollouts and demonstrations together; no mask; plain;
    sequence mean over them together. Rollouts: pi_ref = pi; A = +-1; the rest alike. The released
    code shapes the likelihood (`Shaped(0.1)`) and leaves out the std.
    """
    offline = Estimator(KeepAll(), Unit(), advantage, likelihood, aggregation)
    online = Estimator(KeepAll(), CurrentPolicy(), Signed(), aggregation=aggregation)
    return Method(
        rollouts=(Term(online, EntropyWeight(0.1, 1.0, correct_only=True)),),
        demonstrations=(
            Term(_imitation(TokenMean()), EntropyWeight(0.5, -1.0)),
            Term(offline),
        ),
    )


def hpt(
    gate: Gate = Switch(0.0),
    rollouts: Stream = Estimator(
        RatioClip(0.2), OldPolicy(), GroupNormalized(), aggregation=ConstantLength(1)
    ),
    demonstrations: Stream = Estimator(KeepAll(), CurrentPolicy(), Ones(), aggregation=TokenMean()),
) -> Method:
    """Hybrid Post-Training (2509.04419, eq. 9-12): each question trains on SFT or on RL.

    Where the share of correct rollouts is at most gamma (0 for Qwen, 2/8 for Llama) the
    demonstration is imitated, elsewhere RL follows the rollouts. Rows, as the text has them:
    rollouts pi_ref = pi_old; A = z-score; PPO clip; plain; token sum without a length divisor
    (eq. 11); demonstrations as in `sft` (eq. 12).
    """
    return Method(rollouts, demonstrations, gate)


def hpt_released(
    gate: Gate = Switch(0.0),
    length: int = 8192,
    sequences_per_rank: float = 64,
    sft_coefficient: float = 1.0,
    sft_passes: int = 1,
    entropy_bonus: float = 0.001,
) -> Method:
    """Hybrid Post-Training (2509.04419) as its released code computes it, not as its text has it.

    Rows: rollouts pi_ref = pi_old; A = R - mean; no mask; plain; token sum over a constant;
    demonstrations pi_ref = pi; A = 1; no mask; plain; token mean over the gated ones of the step.
    Rewards are centred without the std; no clip; RL tokens are summed over a rank's
    `sequences_per_rank` (rollouts times questions, by ranks, before the gate) and divided by the
    fixed `length` (8192), not by the batch. The SFT term is
    a token mean over the gated questions only, added once for every micro-batch that holds
    demonstrations: `sft_passes` makes that number, there a consequence of a memory setting,
    explicit. `sft_coefficient` is 0.3 for the 1.5B model. The entropy bonus covers demonstrations;
    there it grows with the number of micro-batches too, here it is one mean over the step.
    """
    centred = Estimator(KeepAll(), OldPolicy(), GroupCentered(), aggregation=ConstantLength(length))
    imitation = _imitation(TokenMean(PerStream()))
    auxiliary: tuple[Auxiliary, ...] = ()
    if entropy_bonus:
        auxiliary = (EntropyBonus(entropy_bonus, demonstrations=True),)
    return Method(
        rollouts=(Term(centred, sequences_per_rank),),
        demonstrations=(Term(imitation, sft_coefficient * sft_passes),),
        gate=gate,
        auxiliary=auxiliary,
    )


def _off_policy(likelihood: Likelihood) -> Estimator:
    together = GroupNormalized(with_demonstrations=True)
    return Estimator(KeepAll(), Unit(), together, likelihood, ConstantLength(1))


def off_on(gate: Gate = Switch(0.0), likelihood: Likelihood = Shaped(0.1)) -> Method:
    """OFF/ON (2509.04419, Table 5): below the gate off-policy RL takes the place of SFT.

    Row (offline part): pi_ref = 1; A = z-score over rollouts and demonstration together; no mask;
    shaped, f(pi) = pi / (pi + 0.1); token sum. Rollouts as in `hpt`.
    """
    return hpt(gate, demonstrations=_off_policy(likelihood))


def mix_on(
    gate: Gate = Switch(0.0),
    sft_coefficient: float = 0.1,
    off_coefficient: float = 1.0,
    likelihood: Likelihood = Shaped(0.1),
) -> Method:
    """Mix/ON (2509.04419, Table 5): below the gate 0.1 SFT and 1.0 off-policy RL at once.

    Rows: the offline parts of `sft` (pi_ref = pi; A = 1; no mask; plain; token mean) and `off_on`
    (pi_ref = 1; A = z-score of all together; no mask; shaped; token sum). Rollouts as in `hpt`.
    """
    mixture = (
        Term(_imitation(TokenMean()), sft_coefficient),
        Term(_off_policy(likelihood), off_coefficient),
    )
    return hpt(gate, demonstrations=mixture)


def corrected(
    method: Method, cap: float = 2.0, by_sequence: bool = False, drops: bool = False
) -> Method:
    """A method with its rollouts corrected for the engine that drew them: see `EngineCorrected`.

    Truncated importance sampling, by token unless `by_sequence`; `drops=True` masks instead.
    """

    def of(estimator: Estimator) -> Estimator:
        denominator = EngineCorrected(cap, estimator.denominator, by_sequence, drops)
        return replace(estimator, denominator=denominator)

    each = tuple(Term(of(term.estimator), term.coefficient) for term in terms(method.rollouts))
    return replace(method, rollouts=each)


NAMED: dict[str, Callable[[], Method]] = {
    each.__name__: each
    for each in (
        sft, dft, reinforce, rloo, reinforce_pp, ppo, grpo, dr_grpo, dapo, cispo, gspo, sapo,
        luffy, srft, hpt, hpt_released, off_on, mix_on,
    )
}  # fmt: skip


@cache
def _published() -> dict[str, dict[str, str]]:
    """The fields of every named method with its defaults, by name."""
    return {name: flatten(make()) for name, make in NAMED.items()}


@lru_cache(maxsize=4096)
def name_of(method: Method) -> str:
    """The published name, with what differs from it where little does; else the components."""
    fields = flatten(method)
    distance = {name: differing(known, fields) for name, known in _published().items()}
    # Fewest parts of the method first, then fewest fields in them.
    name = min(distance, key=lambda n: (sum("." not in k for k in distance[n]), len(distance[n])))
    if not distance[name]:
        return name
    alone = method.demonstrations is None and not method.auxiliary
    if alone and isinstance(method.rollouts, Estimator):
        return method.rollouts.label
    return f"{name}[{', '.join(_changes(_published()[name], fields, distance[name]))}]"


def _changes(known: dict[str, str], fields: dict[str, str], keys: Iterable[str]) -> list[str]:
    """What differs from a named method: another class whole, the same class by its fields."""
    shown: list[str] = []
    for key in keys:
        inside = any(key.startswith(f"{each}.") for each in shown)
        if key not in fields or inside:
            continue
        kind = fields[key].partition("(")[0]
        same_class = kind.isidentifier() and known.get(key, "").startswith(f"{kind}(")
        if not same_class:
            shown.append(key)
    return [f"{key}={fields[key]}" for key in shown]
