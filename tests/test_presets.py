"""The paper's HPT and the released one as recipes: every difference, and nothing beside them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from workbench import Data, Optimizer, Recipe, Study, presets, replace, upge
from workbench.problems import published
from workbench.training.statistics import batch_statistics
from workbench.training.tally import Tally

MODEL, DATA = "Qwen/Qwen2.5-Math-1.5B", published.openr1_math_46k()
PAPER, RELEASED = presets.hpt_paper(MODEL, DATA), presets.hpt_released(MODEL, DATA)


def method_of(recipe: Recipe) -> upge.Method:
    assert isinstance(recipe.method, upge.Method)
    return recipe.method


def term(recipe: Recipe, stream: str) -> upge.Term:
    (only,) = upge.method.terms(getattr(method_of(recipe), stream))
    return only


def batch_of(solved: list[int], rollouts: int) -> upge.TokenBatch:
    """A question for each count of solved rollouts, and a demonstration of it; two tokens a row."""
    right = [[float(i < k) for i in range(rollouts)] + [1.0] for k in solved]
    rewards = torch.tensor(right, dtype=torch.float64).flatten()
    rows = len(rewards)
    logprobs = torch.linspace(-2, -0.1, 2 * rows, dtype=torch.float64).view(rows, 2)
    return upge.TokenBatch(
        logprobs=logprobs,
        old_logprobs=logprobs,
        trained=torch.ones(rows, 2, dtype=torch.bool),
        rewards=rewards,
        group=torch.arange(len(solved)).repeat_interleave(rollouts + 1),
        demonstration=torch.tensor(([False] * rollouts + [True]) * len(solved)),
        old_entropy=torch.ones(rows, 2, dtype=torch.float64),
        engine_logprobs=logprobs,
    )


def gated(recipe: Recipe, rollouts: int) -> list[int]:
    """Counts of right rollouts, of so many, at which a question trains on its demonstration."""
    batch = batch_of(list(range(rollouts + 1)), rollouts)
    return method_of(recipe).gate_weights(batch)[1].nonzero().flatten().tolist()


def estimator_of(field: str, stream: str = "rollouts") -> Callable[[Recipe], Any]:
    return lambda recipe: getattr(term(recipe, stream).estimator, field)


DIFFERENCES: dict[str, tuple[Callable[[Recipe], Any], Any, Any]] = {
    "no std": (estimator_of("advantage"), upge.GroupNormalized(), upge.GroupCentered()),
    "no clip on the ratio": (estimator_of("mask"), upge.RatioClip(0.2), upge.KeepAll()),
    "a constant length": (
        estimator_of("aggregation"), upge.ConstantLength(1), upge.ConstantLength(8192),
    ),
    "sums over the 64 sequences of a rank, not a mean over the batch": (
        lambda recipe: term(recipe, "rollouts").coefficient, 1.0, 64.0,
    ),
    "SFT as a mean over gated demonstrations": (
        estimator_of("aggregation", "demonstrations"),
        upge.TokenMean(), upge.TokenMean(upge.PerStream()),
    ),
    "an entropy bonus, on demonstrations too": (
        lambda recipe: method_of(recipe).auxiliary,
        (), (upge.EntropyBonus(0.001, demonstrations=True),),
    ),
    "gradients clipped at 1": (lambda recipe: recipe.optimizer.max_norm, 1e9, 1.0),
    "updates over 80 skipped": (lambda recipe: recipe.optimizer.skip_above, None, 80.0),
    "two mini-batches": (lambda recipe: recipe.updates_per_batch, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_released_recipe_differs_from_the_text_in(name: str) -> None:
    read, text, released = DIFFERENCES[name]
    assert (read(PAPER), read(RELEASED)) == (text, released)
    assert text != released


def test_the_recipes_differ_in_nothing_else() -> None:
    assert (
        replace(
            PAPER,
            method=upge.hpt_released(),
            optimizer=replace(PAPER.optimizer, max_norm=1.0, skip_above=80.0),
            updates_per_batch=2,
        )
        == RELEASED
    )
    assert PAPER.method == upge.hpt()


@pytest.mark.parametrize("recipe", [PAPER, RELEASED], ids=["paper", "released"])
def test_the_setting_is_the_papers(recipe: Recipe) -> None:
    assert (recipe.steps, recipe.questions, recipe.rollouts) == (500, 128, 8)
    assert (recipe.sampling.temperature, recipe.sampling.max_tokens) == (1.0, 8192)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.schedule) == (
        5e-6,
        Optimizer().schedule,
    )


def test_the_small_model_has_an_sft_coefficient_of_its_own() -> None:
    small = presets.hpt_released(MODEL, DATA, sft_coefficient=0.3)
    assert term(small, "demonstrations").coefficient == 0.3
    assert term(RELEASED, "demonstrations").coefficient == 1.0


def test_sft_passes_make_the_weight_of_sft_and_leave_rl_alone() -> None:
    batch = batch_of([0, 3], rollouts=8)
    everything = torch.arange(len(batch))
    losses = []
    for passes in (1, 4):
        method = method_of(presets.hpt_released(MODEL, DATA, sft_passes=passes))
        current = upge.Current(batch.logprobs, batch.old_entropy)
        losses.append(method.prepare(batch).losses(everything, current))
    one, four = losses
    assert one["demonstrations"] > 0
    assert four["demonstrations"] == pytest.approx(4 * one["demonstrations"])
    assert (four["rollouts"], four["auxiliary"]) == (one["rollouts"], one["auxiliary"])


@pytest.mark.parametrize(("rollouts", "share", "count"), [
    (8, [0, 1, 2], [0, 1, 2]),
    (16, [0, 1, 2, 3, 4], [0, 1, 2]),
    (4, [0, 1], [0, 1, 2]),
])  # fmt: skip
def test_the_gate_is_a_share_in_the_text_and_a_count_as_released(
    rollouts: int, share: list[int], count: list[int]
) -> None:
    assert gated(presets.hpt_paper(MODEL, DATA, "llama"), rollouts) == share
    assert gated(presets.hpt_released(MODEL, DATA, "llama", rollouts), rollouts) == count


@pytest.mark.parametrize("recipe", [PAPER, RELEASED], ids=["paper", "released"])
def test_qwen_is_gated_where_nothing_is_solved(recipe: Recipe) -> None:
    assert gated(recipe, 8) == [0]


def test_llama_skips_no_update() -> None:
    assert presets.hpt_released(MODEL, DATA, "llama").optimizer.skip_above is None


def test_a_sum_over_a_rank_follows_its_sequences() -> None:
    once = presets.hpt_released(MODEL, DATA, rollouts=16, updates_per_batch=1)
    assert term(once, "rollouts").coefficient == 128 * 16 / 8


@pytest.mark.parametrize("r", [0, 1, 64, 73, 128])
def test_the_reported_offline_ratio_is_of_kept_sequences(r: int) -> None:
    """r demonstrations over 1024 - 7r sequences: 11% where half of the questions are gated."""
    tally = Tally()
    batch_statistics(method_of(PAPER), [], batch_of([0] * r + [3] * (128 - r), rollouts=8), tally)
    measured = tally.metrics()
    assert measured["offline/sequences"] == pytest.approx(r / (1024 - 7 * r))
    assert measured["offline/questions"] == pytest.approx(r / 128)
    if r == 64:
        assert round(100 * measured["offline/sequences"]) == 11


def test_a_family_that_is_not_one_is_refused() -> None:
    for preset in (presets.hpt_paper, presets.hpt_released):
        with pytest.raises(ValueError, match="family is 'lama'; did you mean llama"):
            preset(MODEL, DATA, "lama")


def test_a_preset_is_a_cell_of_a_study_and_takes_changes() -> None:
    data = Data("arithmetic", train=256)
    small = {"text": presets.hpt_paper, "released": presets.hpt_released}
    cells = {k: replace(v("arithmetic-1m", data), steps=2) for k, v in small.items()}
    assert [each.label for each in Study("presets", cells, [0]).cells] == ["text", "released"]
