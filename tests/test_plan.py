"""Which runs a study needs, what they cost, and what is wrong with it, before anything starts."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from workbench import provenance, upge
from workbench.identity import Component
from workbench.models import shipped
from workbench.plan import (
    Cost,
    cost,
    is_stale,
    jobs,
    resolve,
    seconds_a_step,
    simplified,
    status,
    tokens_of,
)
from workbench.problems import loaders
from workbench.recipe import Data, Evaluation, Recipe, Sampling, Validation
from workbench.records import write_json
from workbench.schema import File
from workbench.study import Study, grid
from workbench.validate import validate

BASE = Recipe("arithmetic-1m", Data("arithmetic"), steps=10)
CLIPPED, UNCLIPPED = (
    upge.Estimator(mask, upge.OldPolicy(), upge.GroupNormalized())
    for mask in (upge.RatioClip(0.2), upge.KeepAll())
)


def study(**arms: Recipe) -> Study:
    return Study("planned", arms)


def test_cells_that_are_the_same_estimator_share_the_first_ones_run(tmp_path: Path) -> None:
    planned = resolve(study(clip=BASE.using(CLIPPED), free=BASE.using(UNCLIPPED)), tmp_path)
    assert [each.same_as for each in planned] == [None, "clip"]
    assert planned[0].run == planned[1].run
    found = jobs(study(clip=BASE.using(CLIPPED), free=BASE.using(UNCLIPPED)), tmp_path)
    assert [(job.label, job.also) for job in found] == [("clip", ("free",))]


@pytest.mark.parametrize("changes", [{"updates_per_batch": 2}, {"epochs_per_batch": 2}], ids=str)
def test_cells_differ_once_the_policy_moves_within_a_batch(
    changes: dict[str, int], tmp_path: Path
) -> None:
    arms = {m: BASE.using(e, **changes) for m, e in (("clip", CLIPPED), ("free", UNCLIPPED))}
    planned = resolve(Study("planned", arms), tmp_path)
    assert [each.same_as for each in planned] == [None, None]
    assert planned[0].run != planned[1].run


def test_what_starts_from_the_same_estimator_is_the_same(tmp_path: Path) -> None:
    one = BASE.using(upge.sft()).start_from(BASE.using(CLIPPED))
    other = BASE.using(upge.sft()).start_from(BASE.using(UNCLIPPED))
    assert one != other
    assert simplified(one) == simplified(other)


def test_a_run_comes_after_the_arm_it_starts_from_which_keeps_the_step(tmp_path: Path) -> None:
    sft = BASE.using(upge.sft())
    then = BASE.using(upge.grpo()).start_from(sft, step=4)
    second, first = jobs(study(then=then, sft=sft), tmp_path)[::-1]
    assert (first.label, first.keep) == ("sft", (4,))
    assert (second.label, second.needs) == ("then", first.run.path)


def test_a_start_that_is_no_arm_is_planned_and_not_measured(tmp_path: Path) -> None:
    sft = BASE.using(upge.sft(), steps=7)
    found = jobs(study(then=BASE.using(upge.grpo()).start_from(sft)), tmp_path)
    assert [job.label for job in found] == ["sft (for then)", "then"]
    assert found[0].keep == (7,)
    assert found[0].measurements == ()
    assert len(found[1].measurements) == len(loaders.load(BASE.data).suites)


def test_starts_are_followed_to_their_own_start(tmp_path: Path) -> None:
    first = BASE.using(upge.sft())
    second = BASE.using(upge.grpo()).start_from(first)
    third = BASE.using(upge.dft()).start_from(second)
    found = jobs(study(third=third), tmp_path)
    assert [job.recipe for job in found] == [first, second, third]
    assert [job.needs for job in found[1:]] == [job.run.path for job in found[:-1]]


def test_of_the_same_estimators_the_one_that_others_start_from_is_trained(tmp_path: Path) -> None:
    clip, free = BASE.using(CLIPPED), BASE.using(UNCLIPPED)
    arms = study(clip=clip, free=free, then=BASE.using(upge.sft()).start_from(free))
    assert [each.same_as for each in resolve(arms, tmp_path)] == ["free", None, None]
    assert [job.label for job in jobs(arms, tmp_path)] == ["free", "then"]


def test_a_model_left_as_it_is_has_one_run_whatever_the_seeds(tmp_path: Path) -> None:
    arms = Study("planned", {"base": BASE, "sft": BASE.using(upge.sft())}, seeds=(3, 4))
    found = [(job.label, job.seed) for job in jobs(arms, tmp_path)]
    assert found == [("base", 0), ("sft", 3), ("sft", 4)]


# --- status, staleness, cost ---


def test_a_status_follows_from_the_directory_alone(tmp_path: Path) -> None:
    job = jobs(study(sft=BASE.using(upge.sft())), tmp_path)[0]
    kinds = [status(job).kind]
    job.run.create(job.recipe, job.seed)
    with job.run.claim():
        kinds.append(status(job).kind)
    job.run.append(File.METRICS, {"step": 1, "timestamp": 1})
    kinds.append(status(job).kind)
    job.run.fail("error", "out of memory")
    assert status(job).detail == "out of memory"
    kinds.append(status(job).kind)
    job.run.finish({"steps": 10})
    kinds.append(status(job).kind)
    assert not job.done
    for measurement in job.measurements:
        write_json(job.run.evaluation_path(measurement), {})
    kinds.append(status(job).kind)
    assert job.done
    assert kinds == ["waiting", "running", "interrupted", "failed", "trained", "finished"]


def test_a_finished_run_without_the_checkpoint_that_others_need_is_not_done(tmp_path: Path) -> None:
    then = BASE.using(upge.grpo()).start_from(BASE.using(upge.sft()), step=4)
    source = jobs(study(then=then), tmp_path)[0]
    source.run.finish({})
    assert source.missing == ["the checkpoint of step 4"]


def test_a_run_is_stale_when_the_code_that_computes_results_changed(tmp_path: Path) -> None:
    job = jobs(study(sft=BASE.using(upge.sft())), tmp_path)[0]
    now = provenance.code()
    assert not is_stale(job, now)
    provenance.record(job.run)
    assert not is_stale(job, now)
    assert is_stale(job, replace(now, sources="other"))
    assert not is_stale(job, replace(now, commit="other"))  # of a document, say


def test_provenance_keeps_every_attempt(tmp_path: Path) -> None:
    job = jobs(study(sft=BASE.using(upge.sft())), tmp_path)[0]
    provenance.record(job.run)
    provenance.record(job.run)
    attempts = json.loads((job.run.path / File.PROVENANCE).read_text())["attempts"]
    assert len(attempts) == 2
    assert {"commit", "dirty", "diff", "sources", "packages", "devices", "command"} <= set(
        attempts[0]
    )


def test_provenance_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    provenance.code.cache_clear()
    try:
        found = provenance.code()
        assert (found.commit, found.dirty, found.diff) == (None, False, None)
        assert found.sources
    finally:
        provenance.code.cache_clear()


def test_a_cost_counts_what_is_left_and_times_it_by_recorded_runs(tmp_path: Path) -> None:
    grpo = BASE.using(upge.grpo())
    arms = Study(
        "planned", {"base": BASE, "grpo": grpo, "sft": BASE.using(upge.sft())}, seeds=(0, 1)
    )
    found = jobs(arms, tmp_path)
    tokens = 10 * 16 * 8 * 128
    assert tokens_of(grpo) == tokens
    assert cost(found, tmp_path) == Cost(steps=40, tokens=2 * tokens, seconds=None)
    done = next(job for job in found if job.label == "grpo")
    done.run.create(done.recipe, done.seed)
    for step, seconds in ((1, 2.0), (2, 4.0)):
        row = {"step": step, "time/step": seconds, "budget/sampled_tokens": 5}
        done.run.append(File.METRICS, row)
    done.run.finish({})
    assert cost(found, tmp_path) == Cost(steps=30, tokens=tokens, seconds=30.0)
    assert seconds_a_step(set(), tmp_path) == {}


# --- what is wrong ---


MISTAKES = {
    "model": (BASE, {"model": "arithmetic-2m"}, "did you mean arithmetic-1m"),
    "folder": (BASE, {"model": "/nowhere/at/all"}, "no model '/nowhere/at/all'"),
    "data": (BASE, {"data": Data("arithmetik")}, "did you mean arithmetic"),
    "questions": (BASE, {"questions": 601}, "use at most questions=600"),
    "tokens": (BASE, {"sampling": Sampling(max_tokens=9999)}, "use at most"),
    "temperature": (BASE, {"sampling": Sampling(0.005, engine="vllm")}, "0.005 .* at least 0.01"),
    "problems": (BASE, {"validation": Validation(problems=9999)}, "64 validation problems"),
}


def _with(recipe: Recipe, changes: dict[str, Component | str | int]) -> Recipe:
    return recipe.using(upge.grpo(), **changes)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_value_rule_and_the_nearest_choice(name: str) -> None:
    recipe, changes, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        validate(study(arm=_with(recipe, changes)))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_engine_that_is_not_installed_is_named_with_what_to_install() -> None:
    arm = BASE.using(upge.grpo(), sampling=Sampling(engine="vllm"))
    with pytest.raises(ValueError, match=r"'vllm'.*not installed.*\[vllm\].*'transformers'"):
        validate(study(arm=arm))


def test_a_mistake_in_what_an_arm_starts_from_is_found() -> None:
    source = BASE.using(upge.sft(), model="arithmetic-2m")
    with pytest.raises(ValueError, match="arithmetic-1m"):
        validate(study(arm=BASE.using(upge.grpo()).start_from(source)))


EVALUATIONS = {
    "unknown suite": (Evaluation(suites=("chian",)), "did you mean chain"),
    "unknown in more": (Evaluation(more=(("chian", 64),)), "did you mean chain"),
    "left out": (Evaluation(suites=("words",), more=(("chain", 64),)), "leaves out"),
    "tokens": (Evaluation(max_tokens=9999), "Evaluation.max_tokens is 9999.*use at most"),
    "problems": (Evaluation(problems=5000), "is 5000.*the largest has .* use at most that, or No"),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_names_suites_of_the_data(name: str) -> None:
    evaluation, message = EVALUATIONS[name]
    with pytest.raises(ValueError, match=message):
        validate(Study("planned", {"base": BASE}, evaluation=evaluation))


def test_demonstrations_must_be_there_for_a_method_that_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = loaders.load(BASE.data)
    bare = replace(data, train=tuple(replace(p, demonstration=None) for p in data.train))
    monkeypatch.setattr(loaders, "load", lambda _: bare)
    validate(study(arm=BASE.using(upge.grpo())))
    with pytest.raises(ValueError, match=r"arm 'arm' .* 'arithmetic' has none.*upge.grpo"):
        validate(study(arm=BASE.using(upge.sft())))
    some = replace(data, train=(*data.train[:3], *bare.train[3:]))
    monkeypatch.setattr(loaders, "load", lambda _: some)
    validate(study(arm=BASE.using(upge.luffy())))
    validate(study(arm=BASE.using(upge.sft(), questions=3)))
    with pytest.raises(ValueError, match=r"only 3 have one; use at most questions=3"):
        validate(study(arm=BASE.using(upge.sft(), questions=4)))


def test_the_shipped_model_is_valid() -> None:
    assert "arithmetic-1m" in shipped()
    validate(study(base=BASE, sft=BASE.using(upge.sft())))


def test_a_thousand_cells_are_planned(tmp_path: Path) -> None:
    pi_refs = [upge.CurrentPolicy(), upge.OldPolicy(), upge.Unit(), upge.Capped(2), upge.Capped(3)]
    estimators = grid(
        upge.Estimator,
        mask=[upge.RatioClip(0.05 * n) for n in range(1, 11)],
        denominator=pi_refs,
        advantage=[upge.GroupCentered(), upge.GroupNormalized(), upge.Signed(), upge.Reward()],
    )
    arms = Study("many", [BASE.using(e, updates_per_batch=2) for e in estimators], seeds=range(5))
    validate(arms)
    found = jobs(arms, tmp_path)
    kinds = {status(job).kind for job in found}
    total = cost(found, tmp_path)
    assert (len(found), kinds, total.steps) == (1000, {"waiting"}, 10_000)
