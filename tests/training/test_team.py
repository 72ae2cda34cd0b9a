"""Several processes train one model together, and it is the training of one process."""

import dataclasses
from collections.abc import Iterator

import pytest
from alike import ALONE, DIFFERENCES, assert_as_alone, assert_same, one_update, together
from pyarrow import parquet

from workbench import products, replace, upge
from workbench.recipe import Measurement
from workbench.records import Interrupted
from workbench.rollout import Request
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.training.data import open_data, prompt_ids
from workbench.training.evaluation import measure
from workbench.training.layout import micro_batches
from workbench.training.loop import train
from workbench.training.opening import initial_weights, open_answering, open_trainer
from workbench.training.peer import serve
from workbench.training.team import Team, assembled

SIZES = [2, pytest.param(4, marks=pytest.mark.integration)]

METHODS = {
    **{name: make() for name, make in upge.NAMED.items()},
    "kl": replace(upge.rloo(), auxiliary=(upge.KLPenalty(0.01, to_base=True),)),
    "corrected": upge.corrected(upge.grpo(), 2.0),
}
# With something that others lack: a group, a value head, demonstrations alone and beside rollouts,
# an entropy that is learned, a gate, a base model, the engine's log-probabilities. The others
# differ from these in what a token weighs, which every process works out for all.
KINDS = {
    "grpo", "dapo", "ppo", "sft", "luffy", "srft", "hpt", "hpt_released", "kl", "corrected",
}  # fmt: skip
ALL = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.integration) for name in METHODS
]


@pytest.fixture(autouse=True)
def _torchs_own_products(monkeypatch):
    """Those of shards are: what a whole model does is to differ by nothing else."""
    monkeypatch.setattr(products, "by_onednn", lambda: False)


@pytest.fixture(scope="module", params=SIZES)
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    with assembled(together(request.param), serve) as found:
        yield found


@pytest.mark.parametrize("name", ALL)
def test_an_update_is_that_of_one_process(small, open_run, team, name):
    assert_as_alone(open_run(small.using(METHODS[name])), team)


def test_an_update_is_that_of_one_process_where_others_draw_and_learn_from_no_rollout(
    small, open_run, team
):
    recipe = replace(small.using(upge.reinforce()), questions=1, rollouts=1)
    assert len(assert_as_alone(open_run(recipe), team)) == 1


def test_an_update_is_that_of_one_process_where_no_rollout_is_right(small, open_run, team):
    """So that a demonstration, which one process has, is all that anybody learns from."""
    sequences = assert_as_alone(open_run(replace(small.using(upge.hpt()), questions=1)), team)
    assert [s.correct for s in sequences] == [False] * small.rollouts + [True]


def test_several_optimizer_steps_over_one_batch_are_those_of_one_process(small, open_run, team):
    run = open_run(replace(small.using(upge.grpo()), updates_per_batch=2, epochs_per_batch=2))
    _, metrics, tensors = one_update(run, team)
    _, expected, whole = one_update(run)
    assert metrics["optim/gradient_norm"] == pytest.approx(expected["optim/gradient_norm"], 1e-3)
    assert_same(tensors, whole, 1e-3)


def test_layers_that_are_recomputed_are_put_together_again(small, open_run, team):
    """Of a model in shards the second pass through a layer needs the other processes' parts too."""
    run = open_run(small)
    again = dataclasses.replace(together(team.size), recompute=True)
    _, _, tensors = one_update(run, team, again)
    _, _, whole = one_update(run)
    assert_same(tensors, whole, 1e-4)


@pytest.mark.parametrize("name", ["ppo", "kl", "srft"])
def test_logits_in_parts_of_a_model_in_shards_are_the_whole_of_one_process(
    small, open_run, team, name
):
    run = open_run(small.using(METHODS[name]))
    parts = dataclasses.replace(together(team.size), logits=20 * 55, recompute=True)
    _, metrics, tensors = one_update(run, team, parts)
    _, expected, whole = one_update(run)
    settled = [key for key in metrics if key not in DIFFERENCES]
    assert [metrics[k] for k in settled] == pytest.approx([expected[k] for k in settled], rel=1e-4)
    assert_same(tensors, whole, 1e-4)


def test_arithmetic_in_bfloat16_is_that_of_one_process_to_its_rounding(small, open_run, team):
    run = open_run(replace(small, dtype="bfloat16"))
    _, metrics, _ = one_update(run, team)
    _, expected, _ = one_update(run)
    for key in ("optim/gradient_norm", "loss/total", "grad/norm_sft", "grad/norm_rl"):
        assert metrics[key] == pytest.approx(expected[key], rel=0.01, abs=1e-3), key


def test_some_processes_have_no_demonstration_while_others_do(small, open_run):
    """What the updates above are tested with, or they would not show it."""
    sequences, _, _ = one_update(open_run(small.using(upge.luffy())))
    rows = [row for row, s in enumerate(sequences) if s.demonstration]
    groups = micro_batches(sequences, rows, ALONE.tokens or 0, packed=True)
    teams = [Team(rank, 4) for rank in range(4)]
    assert None in [group for each in teams for group in each.share(groups)]


def test_all_processes_answer_in_an_evaluation_and_say_what_one_does(
    small, open_run, team, monkeypatch
):
    drawn: list[int] = []
    own = TransformersEngine.generate
    monkeypatch.setattr(
        TransformersEngine, "generate", lambda *given: drawn.append(len(given[1])) or own(*given)
    )
    plan = Measurement(
        "chain", samples=2, temperature=0.6, top_p=0.95, max_tokens=24, seed=0, problems=7
    )
    found = []
    for seed, (resources, whom) in enumerate(((together(team.size), [team]), (ALONE, []))):
        run = open_run(small, seed)
        weights = initial_weights(run, small, seed)
        policy, engine = open_answering(run, weights, resources, run.beat, *whom)
        data = open_data(run, policy.tokenizer)
        measure(run, policy, engine, data, plan)
        requests = [Request(prompt_ids(policy.tokenizer, data.prompt, "2+2"), 3, s) for s in (1, 2)]
        heard = {}
        answers = engine.generate(requests, Decoding(1.0, 1.0, 24), heard.__setitem__)
        assert [heard[place] for place in range(2)] == answers
        counts = parquet.read_table(run.evaluation_path(plan)).to_pylist()
        found.append((counts, [[response.tokens for response in each] for each in answers]))
    assert found[0] == found[1]
    assert drawn[0] == -(-7 // team.size)
    assert drawn[-2:] == [7, 2]


def test_whoever_hears_of_another_processs_responses_may_end_the_call(small, open_run, team):
    class Enough(Exception):
        pass

    def hear(place, responses):
        if place == 1:  # the second request is the second process's
            raise Enough

    run = open_run(small)
    weights = initial_weights(run, small, 0)
    policy, engine = open_answering(run, weights, together(team.size), run.beat, team)
    prompt = tuple(policy.encode("2+2?\n"))
    asked, decoding = [Request(prompt, 3, seed) for seed in range(5)], Decoding(1.0, 1.0, 24)
    with pytest.raises(Enough):
        engine.generate(asked, decoding, hear)
    assert [len(found) for found in engine.generate(asked, decoding)] == [3] * 5


def test_a_stop_ends_the_rollouts_of_all_processes_and_they_go_on(small, open_run, team):
    run = open_run(small)
    trainer = open_trainer(run, together(team.size), team)
    asked = iter([False] * 60)
    with pytest.raises(Interrupted):
        train(trainer, run, stopping=lambda: next(asked, True))
    train(open_trainer(run, together(team.size), team), run)
    assert run.rows()[-1]["step"] == small.steps
