"""Which checkpoints are kept, which are believed, and what follows a loss that is not finite."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from workbench import Optimizer, Sampling, Validation, replace, upge
from workbench.records import Corrupt, Interrupted, Run
from workbench.resources import Resources
from workbench.schema import File
from workbench.training import checkpoint, keeping
from workbench.training.keeping import NonFinite, best_step
from workbench.training.loop import train
from workbench.training.opening import open_trainer

EVERY_STEP = Resources(checkpoint_every=1)


class Poison(upge.Advantage):
    """Not a number in some optimizer steps, counted from 0."""

    at: tuple[int, ...]
    value: float = 0.0

    def __call__(self, batch):
        poisoned = math.inf if self.value else math.nan
        return torch.full_like(batch.logprobs, poisoned if batch.step in self.at else 1.0)


@pytest.fixture
def tiny(small):
    """SFT in a second; validated every second step."""
    return replace(
        small,
        method=upge.sft(),
        sampling=Sampling(max_tokens=6),
        steps=6,
        questions=2,
        validation=Validation(every=2, samples=1, problems=1),
    )


def poisoned(recipe, nonfinite, at=(3,), value=0.0):
    method = upge.Method(demonstrations=upge.Estimator(advantage=Poison(at, value)))
    return replace(recipe, method=method, optimizer=Optimizer(nonfinite=nonfinite))


def weights(run: Run, step: int):
    return load_file(run.checkpoint_path(step) / "model.safetensors")


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- what is kept ---


def test_the_last_ones_the_best_and_those_asked_for_are_kept(tiny, open_run, monkeypatch) -> None:
    run = open_run(tiny)
    accuracy = {2: 0.5, 4: 0.25, 6: 0.5}

    def validate(trainer, tally):
        tally.put("validation/pass_at_1", accuracy.get(trainer.progress.step + 1, 0.0))

    monkeypatch.setattr("workbench.training.loop.validate", validate)
    resources = Resources(checkpoint_every=1, keep_last=2)
    train(open_trainer(run, resources), run, keep=[3])
    assert best_step(run, "validation/pass_at_1") == 2  # the first of equals
    assert checkpoint.steps(run) == [2, 3, 5, 6]


def test_the_best_is_saved_when_it_is_no_step_to_be_saved_at(tiny, open_run, monkeypatch) -> None:
    run = open_run(tiny)

    def validate(trainer, tally):
        tally.put("validation/level_1", float(trainer.progress.step == 3))

    monkeypatch.setattr("workbench.training.loop.validate", validate)
    resources = Resources(checkpoint_every=100, keep_last=1, best_by="validation/level_1")
    train(open_trainer(run, resources), run)
    assert checkpoint.steps(run) == [4, 6]


def test_only_a_validation_metric_says_which_is_the_best() -> None:
    with pytest.raises(ValueError, match="validation/pass_at_1"):
        Resources(best_by="reward/mean")


# --- what is believed ---


def _manifest(change):
    def edit(path):
        file = path / checkpoint.MANIFEST
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return edit


def _flip(path):
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(bytes(data))


BROKEN = {
    "a flipped bit": (_flip, "model.safetensors"),
    "cut short": (lambda p: _resize(p / checkpoint.OPTIMIZER, 1000), checkpoint.OPTIMIZER),
    "empty": (lambda p: _resize(p / checkpoint.PROGRESS, 0), checkpoint.PROGRESS),
    "a file missing": (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json"),
    "no manifest": (lambda p: (p / checkpoint.MANIFEST).unlink(), checkpoint.MANIFEST),
    "a torn manifest": (lambda p: _resize(p / checkpoint.MANIFEST, 30), checkpoint.MANIFEST),
    "another run's": (_manifest(lambda m: {**m, "run": "ab12 seed 7"}), "ab12 seed 7"),
    "a folder alone": (lambda p: [shutil.rmtree(p), p.mkdir()], checkpoint.MANIFEST),
}


def _resize(file, size):
    with open(file, "r+b") as handle:
        handle.truncate(size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps with a checkpoint of each."""
    from workbench import Data, Recipe

    recipe = Recipe("arithmetic-1m", Data("arithmetic", train=8), method=upge.sft(), steps=2,
                    questions=2, sampling=Sampling(max_tokens=6),
                    validation=Validation(every=2, samples=1, problems=1))  # fmt: skip
    run = Run(tmp_path_factory.mktemp("trained") / "cells" / "sft" / "seed-0")
    run.create(recipe, 0)
    train(open_trainer(run, EVERY_STEP), run)
    return run


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    how, trained, tmp_path, caplog
) -> None:
    breaks, named = BROKEN[how]
    run = Run(tmp_path / "seed-0")
    shutil.copytree(trained.path, run.path)
    breaks(run.checkpoint_path(2))
    assert checkpoint.latest(run) == 1
    assert "step-000002" in caplog.text
    assert named in caplog.text
    breaks(run.checkpoint_path(1))
    assert checkpoint.latest(run) is None
    assert "training begins again" in caplog.text


# --- what is not finite ---


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["nan", "inf"])
def test_skip_makes_no_update_and_counts(tiny, open_run, value) -> None:
    run = open_run(poisoned(tiny, "skip", value=value))
    train(open_trainer(run, Resources(checkpoint_every=1, keep_last=9)), run)
    counted = {row["step"]: row["optim/nonfinite"] for row in run.rows()[1:]}
    assert counted == {1: 0, 2: 0, 3: 0, 4: 1, 5: 0, 6: 0}
    assert same(weights(run, 3), weights(run, 4))
    assert not same(weights(run, 4), weights(run, 5))


def test_stop_ends_the_run_and_says_how_to_go_on(tiny, open_run) -> None:
    run = open_run(poisoned(tiny, "stop"))
    with pytest.raises(NonFinite, match=r"step 4: .*choose 'skip' or 'rollback'"):
        train(open_trainer(run, EVERY_STEP), run)
    assert run.rows()[-1]["step"] == 3


def test_rollback_goes_back_to_the_last_validation_and_on_with_the_next_batch(
    tiny, open_run
) -> None:
    run = open_run(poisoned(tiny, "rollback"))
    train(open_trainer(run, Resources(checkpoint_every=1, keep_last=9)), run)
    assert same(weights(run, 4), weights(run, 2))
    state = [load_file(run.checkpoint_path(n) / checkpoint.OPTIMIZER) for n in (2, 4)]
    assert same(*state)
    assert [row["step"] for row in run.rows() if row.get("optim/rolled_back")] == [4]
    asked = [row["questions"] for row in run.rows(File.QUESTIONS)]
    plain = open_run(replace(tiny, method=upge.sft()))
    train(open_trainer(plain, EVERY_STEP), plain)
    assert asked == [row["questions"] for row in plain.rows(File.QUESTIONS)]


def test_rollback_before_the_first_validation_goes_back_to_the_beginning(tiny, open_run) -> None:
    run = open_run(poisoned(tiny, "rollback", at=(1,)))
    trainer = open_trainer(run, Resources(checkpoint_every=1, keep_last=9))
    began = {name: p.detach().clone() for name, p in trainer.policy.parameters()}
    monitored = {}

    def stopping():
        if trainer.progress.step == 2:
            monitored.update({n: p.detach().clone() for n, p in trainer.policy.parameters()})
        return False

    train(trainer, run, stopping=stopping)
    assert same(began, monitored)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_where_it_goes_back_to_does_not_depend_on_interruptions(
    tiny, open_run, tmp_path, stop_after
) -> None:
    recipe = poisoned(tiny, "rollback")
    whole = open_run(recipe)
    train(open_trainer(whole, EVERY_STEP), whole)
    other = Run(tmp_path / "other" / "cells" / "x" / "seed-0")
    other.create(recipe, 0)
    seldom = Resources(checkpoint_every=100, keep_last=1)
    trainer = open_trainer(other, seldom)
    with pytest.raises(Interrupted):
        train(trainer, other, stopping=lambda: trainer.progress.step == stop_after)
    train(open_trainer(other, seldom), other)
    assert same(weights(whole, 6), weights(other, 6))


def test_what_it_goes_back_to_is_checked(tiny, open_run, monkeypatch) -> None:
    run = open_run(poisoned(tiny, "rollback"))
    save = keeping.save

    def save_and_break(trainer, *more):
        save(trainer, *more)
        if trainer.progress.step == 2:
            _flip(run.checkpoint_path(2))

    monkeypatch.setattr(keeping, "save", save_and_break)
    with pytest.raises(Corrupt, match=r"step-000002 .* model.safetensors") as found:
        train(open_trainer(run, EVERY_STEP), run)
    monkeypatch.undo()
    checkpoint.discard_corrupt(found.value.run, found.value.step)
    assert checkpoint.steps(run) == []  # from those after it there is no way back to it
    train(open_trainer(run, EVERY_STEP), run)
    assert [row["step"] for row in run.rows() if row.get("optim/rolled_back")] == [4]


def test_only_what_is_corrupt_goes_from_a_finished_run(trained, tmp_path, caplog) -> None:
    run = Run(tmp_path / "seed-0")
    shutil.copytree(trained.path, run.path)
    run.finish({"steps": 2})
    checkpoint.discard_corrupt(run, 1)
    assert checkpoint.steps(run) == [1, 2]
    _flip(run.checkpoint_path(1))
    checkpoint.discard_corrupt(run, 1)
    assert checkpoint.steps(run) == [2]
    assert "step-000001 is not whole: model.safetensors" in caplog.text
