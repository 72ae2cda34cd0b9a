"""Searches with the real Optuna and real processes; only what a run scores is made up.

A worker here is a few lines of shell that leave what a trained run leaves: rows and a result.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from rich.console import Console

from analysis import search as shown
from workbench import (
    Data,
    Evaluation,
    FullGrid,
    Hyperband,
    Median,
    Optimizer,
    Random,
    Recipe,
    Search,
    Tpe,
    Wilcoxon,
    choose,
    cli_search,
    trials,
    upge,
)
from workbench.launch import local
from workbench.launch.local import Event, Launcher, Slot, State
from workbench.plan import Job
from workbench.resources import Resources
from workbench.schema import File
from workbench.search import Dashboard, Ended, Searcher, check, plots, run
from workbench.search.display import SearchDisplay
from workbench.tracking import Mirror, experiments, store_uri
from workbench.trials import Given

BASE = Recipe("arithmetic-1m", Data("arithmetic"), steps=8)
KEY = "validation/pass_at_1"


def threshold(trial: Any) -> Recipe:
    at_most = trial.suggest_float("at_most", 0.0, 1.0, step=0.125)
    return BASE.using(upge.hpt(gate=upge.Switch(at_most)))


def search(
    name: str = "gate", propose: Callable[[Any], Recipe] = threshold, **fields: Any
) -> Search:
    return Search(name, propose, **{"maximize": KEY, "seeds": (0, 1), "trials": 6, **fields})


# --- declarations ---------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "name": ({"name": "My gate"}, ValueError, "'my-gate'"),
    "no objective": ({"maximize": ()}, ValueError, "has no objective; for example maximize="),
    "twice": ({"minimize": KEY}, ValueError, "names an objective twice"),
    "no trials": ({"trials": 0}, ValueError, "Search.trials must be at least 1, got 0"),
    "no seeds": ({"seeds": ()}, ValueError, "has no seeds"),
    "confirms nothing": ({"confirm": (1, 2)}, ValueError, r"confirm=range\(2, 5\)"),
    "not a function": ({"propose": BASE}, TypeError, "Search.propose is a function"),
    "a sampler's name": ({"sampler": "tpe"}, TypeError, r"did you mean Tpe\(\)"),
    "a pruner's name": ({"within_run": "median"}, TypeError, r"did you mean Median\(\)"),
    "too few seeds": ({"between_seeds": Wilcoxon(0.1)}, ValueError, "use at least 5 seeds"),
    "several goals": (
        {"minimize": "length/all", "within_run": Median()}, ValueError, "leave out between_seeds"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_in_a_search_is_named_with_its_rule(what: str) -> None:
    fields, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        search(**fields)


def test_a_value_outside_its_rule_is_refused() -> None:
    for make in (
        lambda: Tpe(startup=0), lambda: Wilcoxon(1.5), lambda: Hyperband(factor=1),
        lambda: Median(metric="loss/total"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            make()


def test_a_choice_may_be_any_value() -> None:
    clips = [upge.KeepAll(), upge.RatioClip(0.2)]
    assert choose(Given({"mask": "RatioClip(0.2)"}), "mask", clips) == clips[1]
    with pytest.raises(ValueError, match="did you mean KeepAll"):
        choose(Given({"mask": "KeepAl()"}), "mask", clips)
    with pytest.raises(ValueError, match="at least one choice"):
        choose(Given({}), "mask", [])
    with pytest.raises(ValueError, match="print the same"):
        choose(Given({}), "mask", [upge.KeepAll(), upge.KeepAll()])


calls = iter(range(10_000))

UNCHECKED: dict[str, tuple[dict[str, Any], str]] = {
    "no recipe": ({"propose": lambda trial: upge.grpo()}, r"base.using\(method\)"),
    "unknown objective": ({"maximize": "validation/pas_at_1"}, "did you mean validation/pass"),
    "unknown suite": ({"maximize": "eval/chian/pass_at_1"}, "did you mean eval/chain/pass_at_1"),
    "a known point outside": ({"known": [{"at_most": 1.5}]}, "at_most is 1.5, outside of 0.0 to 1"),
    "a known point between": ({"known": [{"at_most": 0.1}]}, "in steps of 0.125"),
    "a known point of nothing": ({"known": [{"at_least": 0.5}]}, "propose asks for 'at_most'"),
    "too much of it": (
        {"known": [{"at_most": 0.5, "at_mots": 1}]}, "did you mean at_most"),
    "not a function of the answers": (
        {"propose": lambda trial: replace_steps(threshold(trial))}, "two recipes from the same"),
    "an endless grid": (
        {"propose": lambda trial: BASE.using(upge.grpo(), optimizer=Optimizer(
            trial.suggest_float("rate", 0.1, 1))), "sampler": FullGrid()}, "step"),
    "a recipe that cannot be": ({"propose": lambda trial: BASE.using(
        upge.grpo(), questions=trial.suggest_int("questions", 10**6, 10**7))}, "only"),
    "a level that is not measured": (
        {"within_run": Median(metric="validation/level_9")},
        "WithinRun.metric is 'validation/level_9'.*did you mean validation/level_"),
}  # fmt: skip


def replace_steps(recipe: Recipe) -> Recipe:
    return recipe.using(recipe.method, steps=1 + next(calls))


@pytest.mark.parametrize("what", UNCHECKED)
def test_what_is_wrong_is_known_before_training(what: str) -> None:
    fields, message = UNCHECKED[what]
    with pytest.raises((ValueError, TypeError), match=message):
        check(search(**fields))


def test_a_right_search_passes() -> None:
    check(search(known=[{"at_most": 0.5}], within_run=Hyperband(least=2)))


# --- running --------------------------------------------------------------------------------------

Curve = Callable[[Job], list[float | str]]

STAND_IN = """
i=0
for value in $VALUES; do
  i=$((i + 1))
  start="{\\"step\\":$i,\\"timestamp\\":$i,\\"length/all\\":$LENGTH"
  echo "$start,\\"validation/pass_at_1\\":$value}" >> metrics.jsonl
  if [ -n "$SLOW" ]; then sleep 0.1; fi
  if [ -e stop.json ]; then exit 130; fi
done
if [ -n "$FAILS" ]; then exit 7; fi
for step in $KEEP; do mkdir -p checkpoints/step-$(printf %06d $step); done
for file in $MEASURED; do mkdir -p evaluations; cp ../../../counts.parquet evaluations/$file; done
echo '{"steps": 1}' > result.json
"""


class Stand:
    """A tracking folder, and workers that record the scores they are given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.curve: Curve = lambda job: [at_most(job) + 0.01 * job.seed]
        self.length: Callable[[Job], float] = lambda job: 1.0
        self.fails: Callable[[Job], bool] = lambda job: False
        self.slow = False
        self.started: list[tuple[str, int]] = []

    def command(self, job: Job) -> list[str]:
        self.started.append((job.label, job.seed))
        environment = {
            "VALUES": " ".join(map(str, self.curve(job))),
            "LENGTH": str(self.length(job)),
            "SLOW": "1" * self.slow,
            "FAILS": "1" * self.fails(job),
            "KEEP": " ".join(map(str, job.keep)),
            "MEASURED": " ".join(job.run.evaluation_path(m).name for m in job.measurements),
        }
        values = [f"{name}={value}" for name, value in environment.items()]
        return ["env", "-C", str(job.run.path), *values, "sh", "-c", STAND_IN]

    def launcher(self) -> Launcher:
        return Launcher([], Resources(device="cpu"), self.root, self.command, poll=0.01)

    def run(self, of: Search) -> list[Ended]:
        searcher = Searcher(of, self.root)
        found = list(run(searcher, self.launcher(), of.trials))
        return [each for each in found if isinstance(each, Ended)]

    def trials(self, of: Search) -> list[trials.Trial]:
        return trials.trials(of, self.root)


def at_most(job: Job) -> float:
    assert isinstance(job.recipe.method, upge.Method)
    gate = job.recipe.method.gate
    assert isinstance(gate, upge.Switch)
    return gate.at_most


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(local, "slots", lambda _: [Slot("one"), Slot("two")])
    return Stand(tmp_path / "mlruns")


@pytest.fixture
def one_slot(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(local, "slots", lambda _: [Slot("one")])
    return stand


def test_a_search_trains_each_trial_under_every_seed_and_finds_the_best(stand: Stand) -> None:
    of = search(sampler=Tpe(startup=4), trials=16)
    stand.curve = lambda job: [1 - (at_most(job) - 0.75) ** 2 + 0.001 * job.seed]
    ended = stand.run(of)
    found = stand.trials(of)
    assert len(ended) == len(found) == 16
    assert {each.state for each in ended} == {"complete"}
    assert len(stand.started) == len(set(stand.started)) == 2 * len({t.recipe for t in found})
    (best,) = trials.winners(of, found)
    assert best.params == {"at_most": 0.75}
    assert best.scores == {0: (1.0,), 1: (1.001,)}
    assert best.means == pytest.approx((1.0005,))


def test_a_full_grid_is_every_combination_once_and_then_over(stand: Stand) -> None:
    def propose(trial: Any) -> Recipe:
        method = choose(trial, "method", [upge.grpo(), upge.sft()])
        return BASE.using(method, rollouts=trial.suggest_int("rollouts", 2, 4))

    of = search(propose=propose, sampler=FullGrid(), trials=99, seeds=[0])
    stand.curve = lambda job: [0.5]
    stand.run(of)
    assert len({t.drawn for t in stand.trials(of)}) == len(stand.trials(of)) == 6
    assert stand.run(of) == []


def test_seeds_are_trained_side_by_side_unless_the_next_depends_on_them(one_slot: Stand) -> None:
    of = search(trials=2, seeds=range(5), sampler=Random(seed=1), known=[{"at_most": 1.0}])
    one_slot.run(of)
    assert one_slot.started == [(f"trial {n}", seed) for n in (0, 1) for seed in range(5)]


def test_a_trial_that_is_worse_is_stopped_between_seeds(one_slot: Stand) -> None:
    known = [{"at_most": 1.0}, {"at_most": 0.5}, {"at_most": 0.25}]
    of = search(trials=3, seeds=range(6), between_seeds=Wilcoxon(0.1), known=known)
    ended = one_slot.run(of)
    assert [(each.trial.number, each.state) for each in ended] == [
        (0, "complete"), (1, "pruned"), (2, "pruned")]  # fmt: skip
    assert "Wilcoxon() stopped it after 4 seeds" in ended[1].reason
    assert [len(t.scores) for t in one_slot.trials(of)] == [6, 4, 4]
    assert len(one_slot.started) == 14
    again = Searcher(of, one_slot.root)
    told = [(t.state.name, t.value, t.intermediate_values) for t in again.study.trials]
    assert told[1] == ("COMPLETE", pytest.approx(0.515), {s: 0.5 + 0.01 * s for s in range(4)})
    assert one_slot.run(of) == []


@pytest.mark.parametrize("pruner", [Median(startup=2), Hyperband(least=2, factor=2)], ids=str)
def test_a_run_that_falls_behind_is_stopped_at_its_next_step(one_slot: Stand, pruner: Any) -> None:
    one_slot.slow = True
    one_slot.curve = lambda job: [at_most(job)] * 12
    known = [{"at_most": value} for value in (1.0, 0.875, 0.75, 0.125, 0.0)]
    of = search(trials=5, seeds=[0], within_run=pruner, known=known)
    ended = one_slot.run(of)
    assert ended[0].state == "complete"
    stopped = [each.trial for each in ended if each.state == "pruned"]
    assert stopped and all(trial.params["at_most"] < 0.9 for trial in stopped)
    for trial in stopped:
        job = trials.own_job(of, trial, 0, one_slot.root)
        assert not job.run.finished
        assert len(job.run.rows()) < 12
        assert str(pruner) in trial.stopped
    again = Searcher(of, one_slot.root)
    states = {t.params["at_most"]: t.state.name for t in again.study.trials if t.params}
    assert all(states[trial.params["at_most"]] == "PRUNED" for trial in stopped)
    assert one_slot.run(of) == []


def test_a_search_that_was_interrupted_is_the_one_that_was_not(
    one_slot: Stand, tmp_path: Path
) -> None:
    of = search(trials=14, sampler=Tpe(startup=3))
    one_slot.run(of)
    other = Stand(tmp_path / "other")
    for most in (1, 4, 9):
        searcher, launcher = Searcher(of, other.root), other.launcher()
        seen = 0
        for event in run(searcher, launcher, of.trials):
            seen += isinstance(event, Event) and event.state is State.DONE
            if seen == most and not launcher.stopping:
                os.kill(os.getpid(), signal.SIGINT)
        assert launcher.stopping
    other.run(of)
    assert [t.params for t in other.trials(of)] == [t.params for t in one_slot.trials(of)]
    assert [t.scores for t in other.trials(of)] == [t.scores for t in one_slot.trials(of)]
    assert sorted(other.started) == sorted(one_slot.started)  # nothing was trained twice


def test_optunas_study_is_made_again_from_the_records(stand: Stand) -> None:
    of = search(trials=8)
    searcher = Searcher(of, stand.root)
    list(run(searcher, stand.launcher(), of.trials))
    again = Searcher(of, stand.root)
    pairs = zip(searcher.study.trials, again.study.trials, strict=True)
    for before, after in pairs:
        assert (before.params, before.values) == (after.params, after.values)
        assert (before.state, before.distributions) == (after.state, after.distributions)
        assert before.intermediate_values == after.intermediate_values


def test_a_trial_whose_cells_exist_costs_nothing(stand: Stand) -> None:
    of = search(trials=5)
    stand.run(of)
    before = len(stand.started)
    same = search(name="another", trials=5)
    ended = stand.run(same)
    assert len(ended) == 5
    assert len(stand.started) == before
    more = search(trials=5, seeds=(0, 1, 2))
    stand.run(more)
    assert {seed for _, seed in stand.started[before:]} == {2}


def test_known_points_come_first_and_once(stand: Stand) -> None:
    of = search(trials=3, known=[{"at_most": 0.875}, {"at_most": 0.0}])
    stand.run(of)
    stand.run(replace(of, trials=6))
    values = [t.params["at_most"] for t in stand.trials(of)]
    assert values[:2] == [0.875, 0.0]
    assert len(values) == 6


def test_several_objectives_have_a_front(stand: Stand) -> None:
    known = [{"at_most": value} for value in (0.25, 0.5, 1.0, 0.75)]
    of = search(trials=4, minimize="length/all", known=known)
    stand.curve = lambda job: [{0.25: 0.1, 0.5: 0.5, 1.0: 0.9, 0.75: 0.4}[at_most(job)]]
    stand.length = lambda job: 10 * at_most(job)
    stand.run(of)
    front = trials.winners(of, stand.trials(of))
    assert [trial.params["at_most"] for trial in front] == [0.25, 0.5, 1.0]
    assert [t.values for t in Searcher(of, stand.root).study.best_trials] == [
        [0.1, 2.5], [0.5, 5.0], [0.9, 10.0]]  # fmt: skip


def test_a_failed_trial_stops_no_other_and_is_tried_again(one_slot: Stand) -> None:
    of = search(trials=3, known=[{"at_most": 0.5}])
    one_slot.fails = lambda job: at_most(job) == 0.5
    ended = one_slot.run(of)
    assert [each.state for each in ended] == ["failed", "complete", "complete"]
    assert "exited with status 7" in ended[0].reason
    assert one_slot.trials(of)[0].state == "open"
    one_slot.fails = lambda job: False
    (again,) = one_slot.run(of)
    assert (again.trial.number, again.state) == (0, "complete")


def test_a_search_in_which_everything_fails_gives_up(one_slot: Stand) -> None:
    one_slot.fails = lambda job: True
    one_slot.run(search(trials=50, sampler=Random(seed=1)))
    assert len(one_slot.started) == 5


def test_a_search_that_gives_up_says_so(one_slot: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    one_slot.fails = lambda job: True
    of = search(trials=50, sampler=Random(seed=1))
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=200, file=nowhere)
        cli_search.run(of, one_slot.root, console, lambda *_: one_slot.launcher())
        told = console.export_text()
    assert "no more trials are asked for: 5 failed and none was completed; see why above" in told


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_score_that_is_not_finite_is_a_failure(one_slot: Stand, value: str) -> None:
    one_slot.curve = lambda job: [value]
    (ended,) = one_slot.run(search(trials=1))
    assert ended.state == "failed"
    assert "no finite score" in ended.reason


def test_trials_of_another_form_of_the_search_are_left_aside(stand: Stand) -> None:
    of = search(trials=3, known=[{"at_most": 1.0}])
    stand.run(of)
    changed = replace(of, propose=lambda trial: threshold(trial).using(upge.sft()))
    assert stand.trials(changed) == []
    assert trials.left_aside(changed, stand.root) == 3
    assert trials.next_number(changed, stand.root) == 3


def test_one_process_at_a_time_runs_a_search(tmp_path: Path) -> None:
    record = trials.record_of(search(), tmp_path)
    code = f"""
from pathlib import Path
from workbench.records import Held
from workbench.trials import Record
try:
    with Record(Path({str(record.path)!r})).claim():
        print("both")
except Held as error:
    print(error)
"""
    with record.claim():
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert f"is run by process {os.getpid()}" in done.stdout
    with record.claim():
        pass


def test_the_winner_and_known_points_are_confirmed_on_fresh_seeds(stand: Stand) -> None:
    of = search(trials=3, known=[{"at_most": 0.0}], confirm=(7, 8), sampler=Random(seed=3))
    assert trials.confirmed_arms(of, []) == {}
    stand.run(of)
    study = of.confirmation(trials.confirmed_arms(of, stand.trials(of)))
    (best,) = trials.winners(of, stand.trials(of))
    assert study.name == "gate-winner"
    assert study.seeds == (7, 8)
    assert list(study.recipes) == [f"winner ({best.drawn})", "known (at_most=0)"]
    assert study.recipes[f"winner ({best.drawn})"] == best.recipe


# --- what it shows --------------------------------------------------------------------------------


def test_trials_are_runs_in_mlflow(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    of = search(trials=2, known=[{"at_most": 0.5}, {"at_most": 1.0}], question="Where?")
    searcher = Searcher(of, stand.root)
    mirror = Mirror(of, stand.root, searcher.jobs)
    list(run(searcher, stand.launcher(), of.trials))
    assert mirror.close() == {}
    from mlflow import MlflowClient

    uri = store_uri(stand.root)
    client = MlflowClient(uri)
    runs = client.search_runs([experiments(uri, ["gate"])["gate"]])
    assert sorted(each.info.run_name for each in runs) == [
        f"trial {n} · seed {seed}" for n in (0, 1) for seed in (0, 1)
    ]
    assert {each.data.params["trial.at_most"] for each in runs} == {"0.5", "1"}
    assert {each.data.metrics[KEY] for each in runs} == {0.5, 0.51, 1.0, 1.01}
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._engine_map[uri].dispose()


def test_a_run_that_all_trials_start_from_is_one_run_in_mlflow(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    source = BASE.using(upge.sft())
    known = [{"at_most": value} for value in (0.0, 0.5, 1.0)]
    of = search(
        propose=lambda trial: threshold(trial).start_from(source), trials=3, seeds=[0], known=known
    )
    stand.curve = lambda job: [0.25, 0.5, 0.75]
    searcher = Searcher(of, stand.root)
    mirror = Mirror(of, stand.root, searcher.jobs)
    for event in run(searcher, stand.launcher(), of.trials):
        if isinstance(event, Event) and event.row is not None:
            mirror.sync()
    assert len(searcher.jobs) == 4
    assert mirror.close() == {}
    from mlflow import MlflowClient
    from mlflow.entities import ViewType
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = store_uri(stand.root)
    client = MlflowClient(uri)
    runs = client.search_runs([experiments(uri, ["gate"])["gate"]], run_view_type=ViewType.ALL)
    assert sorted(each.info.run_name.partition(" (")[0] for each in runs) == [
        "sft", "trial 0 · seed 0", "trial 1 · seed 0", "trial 2 · seed 0"]  # fmt: skip
    for each in runs:  # none was deleted and made anew, and none lacks a point
        points = client.get_metric_history(each.info.run_id, KEY)
        assert [(p.step, p.value) for p in points] == [(1, 0.25), (2, 0.5), (3, 0.75)]
        assert (each.info.lifecycle_stage, each.info.status) == ("active", "FINISHED")
    SqlAlchemyStore._engine_map[uri].dispose()


def test_a_trial_that_others_start_from_is_measured_all_the_same(one_slot: Stand) -> None:
    def propose(trial: Any) -> Recipe:
        recipe = BASE.using(upge.sft())
        phases = trial.suggest_int("phases", 1, 2)
        return recipe if phases == 1 else recipe.using(upge.grpo()).start_from(recipe)

    of = search(
        propose=propose, trials=2, seeds=[0], known=[{"phases": 2}, {"phases": 1}],
        maximize="eval/chain/pass_at_1", evaluation=Evaluation(samples=2, suites=("chain",)),
    )  # fmt: skip
    one_slot.curve = lambda job: [0.5]
    one_slot.root.mkdir()
    counts = pd.DataFrame({"samples": [2], "correct": [1], "tokens": [9]})
    counts.to_parquet(one_slot.root / "counts.parquet")
    ended = one_slot.run(of)
    assert {each.trial.params["phases"]: each.state for each in ended} == {
        1: "complete", 2: "complete"}  # fmt: skip


def test_a_storage_shows_what_the_records_hold_and_is_made_anew(
    stand: Stand, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'optuna.db'}"
    of = search(trials=4)
    searcher = Searcher(of, stand.root)
    board = Dashboard(searcher.study, uri)
    for event in run(searcher, stand.launcher(), of.trials):
        if isinstance(event, Ended):
            board.sync()
    Dashboard(Searcher(of, stand.root).study, uri)
    loaded = optuna.load_study(study_name="gate", storage=uri)
    assert [(t.params, t.values) for t in loaded.trials] == [
        (t.params, t.values) for t in searcher.study.trials
    ]
    foreign = optuna.create_study(study_name="foreign", storage=uri)
    with pytest.raises(ValueError, match="that no search made"):
        Dashboard(optuna.create_study(study_name=foreign.study_name), uri)
    with pytest.raises(ValueError, match="does not open"):
        Dashboard(searcher.study, "sqlite:////nowhere/at/all.db")


@pytest.fixture
def done(stand: Stand) -> tuple[Search, Stand]:
    def propose(trial: Any) -> Recipe:
        recipe = threshold(trial)
        return recipe.using(recipe.method, rollouts=trial.suggest_int("rollouts", 2, 9))

    known = [{"at_most": a, "rollouts": r} for a in (0.0, 0.5) for r in (2, 8)]
    of = search(propose=propose, trials=4, known=known, seeds=(0, 1, 2))
    stand.curve = lambda job: [at_most(job) + job.recipe.rollouts + (job.seed - 1)]
    stand.run(of)
    return of, stand


def test_the_response_is_over_seeds_of_the_mean_over_trials(done: tuple[Search, Stand]) -> None:
    of, stand = done
    answers = shown.responses(of, stand.trials(of), "at_most", 0)
    assert [(a.value, a.score.mean, a.trials) for a in answers] == [(0.0, 5.0, 2), (0.5, 5.5, 2)]
    # Seeds 4, 5, 6: a standard deviation of 1, and t with 2 degrees of freedom is 4.303.
    assert answers[0].score.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    rollouts = shown.responses(of, stand.trials(of), "rollouts", 0)
    assert [(a.value, a.score.mean) for a in rollouts] == [(2, 2.25), (8, 8.25)]


def test_a_report_has_trials_response_and_optunas_plots(done: tuple[Search, Stand]) -> None:
    of, stand = done
    written = shown.report(of, stand.root, plots(Searcher(of, stand.root)))
    names = {path.stem for path in written.paths}
    assert names == {"trials", "response", "history", "importance", "slice"}
    assert all(path.stat().st_size > 0 for path in written.paths)
    table = (written.folder / "trials.md").read_text()
    assert "| 3 | 0.5 | 8 | 8.500 ± 2.484 | 3 | complete |" in table
    assert "**" not in table  # the winner's score is biased, so nothing is emphasised
    assert "on fresh seeds" in table
    assert any("best of 4 trials: trial 3" in note for note in written.notes)


def test_a_search_without_runs_is_not_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no finished run"):
        shown.report(search(), tmp_path, {})


def test_progress_names_trials_and_the_best(stand: Stand) -> None:
    of = search(trials=3, known=[{"at_most": v} for v in (0.5, 0.25, 1.0)], seeds=[0])
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    with SearchDisplay(console, (), search=of, budget=3, known=()) as display:
        for event in run(Searcher(of, stand.root), stand.launcher(), 3):
            if isinstance(event, Event):
                display(event)
            elif event is not None:
                display.ended(event)
    lines = console.export_text().splitlines()
    told = [line for line in lines if "at_most=" in line]
    assert len(told) == 3
    assert "validation/pass_at_1 1.000 (1 seed)  best so far" in next(t for t in told if "=1 " in t)
    console.file.close()


@pytest.fixture(autouse=True)
def _no_shared_state() -> Iterator[None]:
    yield
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")


def test_records_are_lines_that_people_can_read(stand: Stand) -> None:
    of = search(trials=1, known=[{"at_most": 0.5}])
    stand.run(of)
    (line,) = (stand.root / "searches" / "gate" / File.TRIALS).read_text().splitlines()
    assert json.loads(line)["params"] == {"at_most": 0.5}
