"""Every method against its published loss, by autograd, and every row of the paper's Table 1."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import published
import pytest
import torch
from batches import BATCHES, Loss, distance, value_and_gradients
from torch import Tensor

from workbench import upge
from workbench.identity import fingerprint
from workbench.upge import Estimator, Method, TokenBatch

PerQuestion, PerStream, PerGroup = upge.PerQuestion(), upge.PerStream(), upge.PerGroup()


@dataclass(frozen=True)
class Case:
    """A method, the published loss it should have the gradient of, and what tells it apart."""

    name: str
    method: Method
    loss: Loss

    def __str__(self) -> str:
        return self.name


def case(name: str, method: Method, loss: Callable[[TokenBatch], Tensor]) -> Case:
    return Case(name, method, lambda batch, entropy, values: loss(batch))


def selection_of(mask: upge.Mask) -> Callable[[TokenBatch], Tensor]:
    """Which rollout tokens a mask drops, taken as given: its rule is tested with the components."""

    def dropped(batch: TokenBatch) -> Tensor:
        rollouts = ~batch.demonstration
        kept = mask.select(batch, upge.GroupNormalized()(batch), rollouts)
        return (kept == 0) & rollouts[:, None]

    return dropped


COVARIANCE = upge.ClipCov(share=0.3, low=0.05, high=50.0)
covariance_drops = selection_of(COVARIANCE)

NAMED = [
    case("sft", upge.sft(), published.sft),
    case("dft", upge.dft(), published.dft),
    case("reinforce", upge.reinforce(), published.reinforce),
    case("rloo", upge.rloo(), published.rloo),
    case("reinforce_pp", upge.reinforce_pp(), published.reinforce_pp),
    Case("ppo", upge.ppo(), lambda b, e, v: published.ppo(b, v)),
    case("grpo", upge.grpo(), published.grpo),
    case("dr_grpo", upge.dr_grpo(), published.dr_grpo),
    case("dapo", upge.dapo(), published.dapo),
    case("cispo", upge.cispo(1.2), partial(published.cispo, cap=1.2)),
    case("gspo", upge.gspo(), published.gspo),
    case("sapo", upge.sapo(), published.sapo),
    case("luffy", upge.luffy(), published.luffy),
    case("srft", upge.srft(), published.srft),
    case("hpt", upge.hpt(), published.hpt),
    Case("hpt_released", upge.hpt_released(), lambda b, e, v: published.hpt_released(b, e)),
    case("off_on", upge.off_on(), published.off_on),
    case("mix_on", upge.mix_on(), published.mix_on),
]

normalized = upge.GroupNormalized()
OPEN_INSTRUCT = upge.GroupNormalized(epsilon=1e-8, ddof=0)
open_instruct = partial(published.normalized, epsilon=1e-8, ddof=0)
VARIANTS = [
    case(
        "sft, one mean over the batch", upge.sft(upge.TokenMean(PerStream)), published.sft_of_batch
    ),
    case("sft, by sequence", upge.sft(upge.SequenceMean()), published.sft_of_sequences),
    case(
        "reinforce, raw reward",
        upge.reinforce(upge.Reward()),
        partial(published.reinforce, scores=published.raw),
    ),
    case(
        "reinforce++ with a baseline",
        upge.reinforce_pp(centred_by_group=True),
        partial(published.reinforce_pp, baseline=True),
    ),
    Case(
        "ppo, dual clip",
        upge.ppo(upge.DualClip(0.2, cap=1.5)),
        lambda b, e, v: published.ppo(b, v, published.ppo_clip(dual=1.5)),
    ),
    Case(
        "ppo, discounted and not whitened",
        upge.ppo(advantage=upge.GAE(0.9, 0.7, whiten=False), value_coefficient=2.0),
        lambda b, e, v: published.ppo(
            b, v, discount=0.9, trace=0.7, whitening=False, coefficient=2.0
        ),
    ),
    case(
        "grpo, dual clip with clip-higher",
        upge.grpo(upge.DualClip(0.2, high=0.3, cap=1.4)),
        partial(published.grpo, loss=published.ppo_clip(0.2, 0.3, dual=1.4)),
    ),
    case(
        "grpo, TRL's epsilon",
        upge.grpo(advantage=upge.GroupNormalized(epsilon=1e-4)),
        partial(published.grpo, epsilon=1e-4),
    ),
    case(
        "grpo, open-instruct's std",
        upge.grpo(advantage=OPEN_INSTRUCT),
        partial(published.grpo, epsilon=1e-8, ddof=0),
    ),
    case(
        "grpo, a lone reward",
        upge.grpo(advantage=upge.GroupNormalized(lone_reward=True)),
        partial(published.grpo, lone=True),
    ),
    case(
        "rloo, a lone reward",
        upge.rloo(advantage=upge.LeaveOneOut(lone_reward=True)),
        partial(published.rloo, lone=True),
    ),
    case(
        "dr_grpo, a lone reward",
        upge.dr_grpo(advantage=upge.GroupCentered(lone_reward=True)),
        partial(published.dr_grpo, lone=True),
    ),
    case(
        "dr_grpo, constant length",
        upge.dr_grpo(length=512),
        partial(published.dr_grpo, constant=512),
    ),
    case(
        "dapo, one mean over the batch",
        upge.dapo(aggregation=upge.TokenMean(PerStream)),
        published.dapo_of_batch,
    ),
    case(
        "cispo, token mean over the step",
        upge.cispo(1.1, upge.TokenMean(upge.PerStream())),
        partial(published.cispo_of_batch, cap=1.1),
    ),
    case(
        "dapo, dual clip",
        upge.dapo(upge.DualClip(0.2, high=0.28, cap=1.4)),
        partial(published.dapo, dual=1.4),
    ),
    case(
        "dapo, open-instruct's std",
        upge.dapo(advantage=OPEN_INSTRUCT),
        partial(published.dapo, scores=open_instruct),
    ),
    case(
        "cispo, open-instruct's cap and std",
        upge.cispo(1.272, advantage=OPEN_INSTRUCT),
        partial(published.cispo, cap=1.272, scores=open_instruct),
    ),
    case(
        "gspo, without the std and by length",
        upge.gspo(0.1, 0.2, upge.GroupCentered(), upge.TokenMean()),
        partial(published.gspo, low=0.1, high=0.2, scores=published.centred, by_length=True),
    ),
    case(
        "sapo, without the std and by length",
        upge.sapo(advantage=upge.GroupCentered(), aggregation=upge.TokenMean()),
        partial(published.sapo_by_tokens, scores=published.centred),
    ),
    case("gspo, wide", upge.gspo(0.1, 0.2), partial(published.gspo, low=0.1, high=0.2)),
    case("sapo, steep", upge.sapo(3.0, 5.0), partial(published.sapo, positive=3.0, negative=5.0)),
    case(
        "luffy without shaping",
        upge.luffy(upge.Plain()),
        partial(published.luffy, offline=published.likelihood),
    ),
    case(
        "luffy without a clip",
        upge.luffy(mask=upge.KeepAll()),
        partial(published.luffy, online=published.importance),
    ),
    case(
        "luffy, released",
        upge.luffy(
            mask=upge.KeepAll(),
            advantage=upge.GroupCentered(with_demonstrations=True),
            aggregation=upge.ConstantLength(8192, PerGroup),
        ),
        partial(
            published.luffy,
            scores=published.centred,
            online=published.importance,
            constant=8192,
        ),
    ),
    case(
        "srft, released",
        upge.srft(upge.GroupCentered(with_demonstrations=True), upge.Shaped(0.1)),
        partial(published.srft, offline=published.shaped, scores=published.centred),
    ),
    *(
        case(
            f"grpo, corrected{how}",
            upge.corrected(upge.grpo(), **how),
            partial(published.grpo_of_another_engine, loss=published.ppo_clip(), **how),
        )
        for how in (
            dict(cap=1.2),
            dict(cap=1.2, drops=True),
            dict(cap=1.3, by_sequence=True),
            dict(cap=1.3, by_sequence=True, drops=True),
        )
    ),
    case(
        "reinforce with group advantages, corrected",
        upge.corrected(upge.reinforce(normalized, upge.SequenceMean()), 1.1),
        partial(published.grpo_of_another_engine, loss=published.log_likelihood, cap=1.1),
    ),
    case("hpt, gamma 1/4", upge.hpt(upge.Switch(0.25)), partial(published.hpt, gamma=0.25)),
    Case(
        "hpt_released, every argument",
        upge.hpt_released(upge.Switch(0.5), 100, 8, 0.3, 4, 0.1),
        lambda b, e, v: published.hpt_released(
            b,
            e,
            gamma=0.5,
            constant=100,
            rl_coefficient=8.0,
            sft_coefficient=0.3,
            sft_passes=4,
            entropy_bonus=0.1,
        ),
    ),
    case(
        "off_on without shaping",
        upge.off_on(likelihood=upge.Plain()),
        partial(published.off_on, offline=published.likelihood),
    ),
    case(
        "mix_on, other weights",
        upge.mix_on(sft_coefficient=0.7, off_coefficient=0.2),
        partial(published.mix_on, sft_coefficient=0.7, off_coefficient=0.2),
    ),
    case(
        "Clip-Cov",
        upge.grpo(upge.RatioClip(0.2) & COVARIANCE),
        lambda b: published.clip_cov(b, covariance_drops(b)),
    ),
    case(
        "top entropy",
        upge.grpo(
            upge.RatioClip(0.2, high=0.28) & upge.TopEntropy(0.3), aggregation=upge.TokenMean()
        ),
        partial(published.top_entropy, share=0.3),
    ),
]


def gradients(method: Method, batch: TokenBatch) -> list[Tensor]:
    return value_and_gradients(method.loss, batch)[1:]


def test_every_named_method_has_a_published_loss() -> None:
    assert [each.name for each in NAMED] == list(upge.NAMED)


# Finished runs are found by these: a default that changes trains all of them again.
FINGERPRINTS = {
    "sft": "0c7eb6e642f4", "dft": "8fd40134e809", "reinforce": "f85a7ec2739b",
    "rloo": "44efa5690ee7", "reinforce_pp": "5105a5a566da", "ppo": "2c755485755f",
    "grpo": "55d04b620127", "dr_grpo": "a653c33ee3aa", "dapo": "751f7282cee9",
    "cispo": "861db8e7fb40", "gspo": "b71b0ae48a20", "sapo": "303991c30a10",
    "luffy": "d602dfcd971b", "srft": "0982b643d627", "hpt": "a60cfee03967",
    "hpt_released": "7f902bce293d", "off_on": "8a674a6522d5", "mix_on": "fc8e476d0baa",
}  # fmt: skip


@pytest.mark.parametrize("name", upge.NAMED)
def test_the_defaults_of_a_method_stay_what_they_are(name: str) -> None:
    assert fingerprint(upge.NAMED[name]())[:12] == FINGERPRINTS[name]


@pytest.mark.parametrize("name", upge.NAMED)
def test_a_docstring_has_its_paper_and_all_of_its_row(name: str) -> None:
    said = " ".join((upge.NAMED[name].__doc__ or "").split())
    paper = r"\(.*\b(1992|20\d\d|2509\.04419)\b|^Supervised fine-tuning"
    row = r"Rows?\b.*pi_ref = [^;]+; (the same )?A( = [^;]+)?; [^;]+; [^;]+; [^;]*(mean|sum)"
    assert re.search(paper, said) and re.search(row, said), said


@pytest.mark.parametrize("case", NAMED + VARIANTS, ids=str)
def test_a_method_has_the_gradient_of_its_published_loss(case: Case) -> None:
    for name, batch in BATCHES.items():
        theirs = value_and_gradients(case.loss, batch)[1:]
        assert distance(gradients(case.method, batch), theirs) < 1e-10, name


@pytest.mark.parametrize("case", NAMED + VARIANTS, ids=str)
def test_a_method_trains_something(case: Case) -> None:
    assert any(g.abs().max() > 0 for g in gradients(case.method, BATCHES["random 0"]))


def test_variants_differ_from_every_named_method_and_from_each_other() -> None:
    names = ("far off policy", "two demonstrations of a question", "one rollout a question")
    batches = [BATCHES[name] for name in names]
    found = [[gradients(c.method, batch) for batch in batches] for c in NAMED + VARIANTS]
    for one, other in combinations(range(len(found)), 2):
        pairs = zip(found[one], found[other], strict=True)
        names = (NAMED + VARIANTS)[one], (NAMED + VARIANTS)[other]
        assert any(distance(a, b) > 1e-7 for a, b in pairs), names


def test_hpt_that_always_switches_is_sft() -> None:
    for batch in BATCHES.values():
        always = gradients(upge.hpt(upge.Switch(1.0)), batch)
        assert distance(always, gradients(upge.sft(), batch)) == 0


# --- Table 1: the weight on grad log pi is stable * (pi / pi_ref) * A * f' ------------------------


def group_scores(batch: TokenBatch, together: bool = False) -> Tensor:
    scores = published.by_group(batch, lambda b, q: published.normalized(b, q, together))
    return torch.tensor([[scores(i, 0)] for i in range(len(batch))], dtype=torch.float64)


def gae_scores(batch: TokenBatch) -> Tensor:
    A = published.whiten(published.gae(batch, 1.0, 1.0))
    found = torch.zeros_like(batch.logprobs)
    for i, t in published.pairs(batch, published.all_rollouts(batch)):
        found[i, t] = A(i, t)
    return found


def ppo_stable(batch: TokenBatch, A: Tensor, ratio: Tensor, low: float, high: float) -> Tensor:
    return ~(((A > 0) & (ratio > 1 + high)) | ((A < 0) & (ratio < 1 - low)))


def sequence_ratio(batch: TokenBatch) -> Tensor:
    log_ratio = torch.where(batch.trained, batch.logprobs - batch.old_logprobs, 0.0)
    return (log_ratio.sum(1) / batch.trained.sum(1).clamp(min=1)).exp()[:, None]


def table_1(batch: TokenBatch) -> dict[str, tuple[Method, Tensor, Tensor, Tensor, bool]]:
    """Rows: the method, pi_ref, A, 1_stable, and whether it is for demonstrations."""
    pi, old = batch.logprobs.exp(), batch.old_logprobs.exp()
    ratio, unit, A = pi / old, torch.ones_like(pi), group_scores(batch)
    together, token_A = group_scores(batch, together=True), gae_scores(batch)
    sign = torch.where(batch.correct, 1.0, -1.0).double()[:, None]
    s = sequence_ratio(batch)
    shaping = 0.1 / (pi + 0.1) ** 2  # f'(pi): moved to pi_ref, since only pi / pi_ref * f' is seen
    return {
        "SFT": (upge.sft(), pi, unit, unit, True),
        "PPO": (upge.ppo(), old, token_A, ppo_stable(batch, token_A, ratio, 0.2, 0.2), False),
        "GRPO": (upge.grpo(), old, A, ppo_stable(batch, A, ratio, 0.2, 0.2), False),
        "REINFORCE": (upge.reinforce(), pi, sign, unit, False),
        "CISPO": (upge.cispo(1.2), old.maximum(pi / 1.2), A, unit, False),
        "GSPO": (upge.gspo(), pi / s, A, ppo_stable(batch, A, s, 3e-4, 4e-4), False),
        "SRFT, offline": (
            Method(demonstrations=(upge.srft().demonstrations[1].estimator)),  # type: ignore[index]
            unit, together, unit, True,
        ),
        "LUFFY, offline": (upge.luffy(), 1 / shaping, together, unit, True),
        "DFT": (upge.dft(), unit, unit, unit, True),
        "DAPO": (upge.dapo(), old, A, ppo_stable(batch, A, ratio, 0.2, 0.28), False),
    }  # fmt: skip


@pytest.mark.parametrize("row", table_1(BATCHES["random 0"]))
@pytest.mark.parametrize("name", ["random 0", "random 1", "far off policy", "fully masked rows"])
def test_a_row_of_table_1_is_the_weight_on_the_gradient(row: str, name: str) -> None:
    batch = BATCHES[name]
    method, reference, A, stable, demonstrations = table_1(batch)[row]
    here = batch.trained & (batch.demonstration == demonstrations)[:, None]
    expected = torch.where(here, stable * batch.logprobs.exp() / reference * A, 0.0)
    ours = torch.where(here, method.weights(batch), 0.0)
    assert expected.abs().max() > 0
    assert distance([ours], [expected]) < 1e-10


def test_weights_of_several_terms_add_up_with_their_coefficients() -> None:
    batch, method = BATCHES["random 0"], upge.mix_on()
    imitation, off_policy = (
        Method(demonstrations=each.estimator).weights(batch)
        for each in method.demonstrations  # type: ignore[union-attr]
    )
    expected = upge.hpt().weights(batch).clone()
    expected[batch.demonstration] = (0.1 * imitation + off_policy)[batch.demonstration]
    assert distance([method.weights(batch)], [expected]) < 1e-12


# --- HPT: what the released code changes, one at a time -------------------------------------------

TEXT = upge.hpt()
assert isinstance(TEXT.rollouts, Estimator)


def rl(**changes: object) -> Method:
    fields = {
        "mask": upge.RatioClip(0.2),
        "denominator": upge.OldPolicy(),
        "advantage": normalized,
        "likelihood": upge.Plain(),
        "aggregation": upge.ConstantLength(1),
    }
    return upge.hpt(rollouts=Estimator(**{**fields, **changes}))  # type: ignore[arg-type]


def imitating(aggregation: upge.Aggregation = upge.TokenMean(), coefficient: float = 1.0) -> Method:
    estimator = Estimator(
        upge.KeepAll(), upge.CurrentPolicy(), upge.Ones(), aggregation=aggregation
    )
    return upge.hpt(demonstrations=(upge.Term(estimator, coefficient),))


DIFFERENCES: dict[str, tuple[Method, dict[str, object]]] = {
    "std": (rl(advantage=upge.GroupCentered()), {"std": False}),
    "clip": (rl(mask=upge.KeepAll()), {"clip": False}),
    "constant length": (rl(aggregation=upge.ConstantLength(8192)), {"constant": 8192}),
    "sum over a rank": (
        upge.hpt(rollouts=(upge.Term(TEXT.rollouts, 64.0),)),
        {"rl_coefficient": 64.0},
    ),
    "SFT over the gated only": (imitating(upge.TokenMean(PerStream)), {"gated_only": True}),
    "SFT passes": (imitating(coefficient=3.0), {"sft_passes": 3}),
    "entropy on demonstrations": (
        Method(
            TEXT.rollouts,
            TEXT.demonstrations,
            TEXT.gate,
            (upge.EntropyBonus(0.001, demonstrations=True),),
        ),
        {"entropy_bonus": 0.001},
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_released_hpt_differs_from_the_text_in_one_thing_at_a_time(name: str) -> None:
    method, departure = DIFFERENCES[name]
    batch = BATCHES["far off policy"]
    ours = gradients(method, batch)
    theirs = value_and_gradients(lambda b, e, v: published.hpt(b, e, **departure), batch)[1:]  # type: ignore[arg-type]
    assert distance(ours, theirs) < 1e-10
    assert distance(ours, gradients(TEXT, batch)) > 1e-6


def test_all_differences_together_are_the_released_hpt() -> None:
    departures = {k: v for _, departure in DIFFERENCES.values() for k, v in departure.items()}
    assert departures == {**published.RELEASED, "sft_passes": 3}
    assert upge.hpt_released(sft_passes=3) == Method(
        rollouts=(
            upge.Term(
                Estimator(
                    upge.KeepAll(),
                    upge.OldPolicy(),
                    upge.GroupCentered(),
                    aggregation=upge.ConstantLength(8192),
                ),
                64.0,
            ),
        ),
        demonstrations=imitating(upge.TokenMean(PerStream), 3.0).demonstrations,
        gate=upge.Switch(0.0),
        auxiliary=(upge.EntropyBonus(0.001, demonstrations=True),),
    )


def test_sft_weight_follows_the_share_of_gated_questions_in_the_text_and_not_as_released() -> None:
    one, two = (
        TokenBatch(
            logprobs=torch.full((4, 3), -1.0, dtype=torch.float64),
            old_logprobs=torch.full((4, 3), -1.0, dtype=torch.float64),
            trained=torch.ones(4, 3, dtype=torch.bool),
            rewards=torch.tensor([0.0, 1.0, second, 1.0]),
            group=torch.tensor([0, 0, 1, 1]),
            demonstration=torch.tensor([False, True, False, True]),
        )
        for second in (1.0, 0.0)
    )
    released = upge.hpt_released(entropy_bonus=0.0)
    for method, weights in ((TEXT, (0.5, 1.0)), (released, (1.0, 1.0))):
        for batch, weight in zip((one, two), weights, strict=True):
            assert float(method.loss(batch)) == pytest.approx(weight)


def test_sft_passes_multiply_beta() -> None:
    batch = BATCHES["all wrong"]
    one, four = (
        gradients(upge.hpt_released(sft_passes=n, entropy_bonus=0.0), batch) for n in (1, 4)
    )
    assert one[0].abs().max() > 0
    assert distance([4 * g for g in one], four) < 1e-12
