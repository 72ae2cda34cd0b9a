"""A checkpoint with a flipped bit is named, never used, and made again for whoever needs it."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest
from harness import RECIPE, RESOURCES, assert_same, attempt, log_of
from lives import flip

from workbench import Resources, replace, upge
from workbench.launch import Launcher
from workbench.plan import Job
from workbench.records import Run, run_of
from workbench.schema import Failure, File
from workbench.training import checkpoint

pytestmark = pytest.mark.faults


def test_weights_that_are_not_what_was_trained_are_not_measured(
    begun: Callable[[str], Run], undisturbed: Callable[[str], Run]
) -> None:
    run = begun("with a flipped bit")
    rmtree(run.path / File.EVALUATIONS)
    assert attempt(run) == 0
    assert "step-000003 is not whole: model.safetensors" in log_of(run)
    assert_same(run, undisturbed("from its beginning"))


def test_a_run_that_starts_from_a_flipped_bit_waits_until_it_is_made_again(tmp_path: Path) -> None:
    source = replace(RECIPE, method=upge.sft())
    recipe = RECIPE.start_from(source, step=2)
    first = Job("first", source, 0, run_of(tmp_path, source, 0), keep=(2,))
    then = Job("then", recipe, 0, run_of(tmp_path, recipe, 0), needs=first.run.path)

    def launch(*jobs: Job) -> list[tuple[str, str]]:
        launcher = Launcher(list(jobs), Resources(**RESOURCES), tmp_path)
        told = [(e.job.label, e.reason) for e in launcher.run() if e is not None and e.reason]
        assert launcher.failed == []
        return told

    assert launch(first) == []
    path = first.run.checkpoint_path(2)
    before = (path / "model.safetensors").read_bytes()
    flip(path)
    (failed, why), (lacking, what) = launch(first, then)
    assert (failed, lacking, what) == ("then", "first", "lacks the checkpoint of step 2")
    assert why.startswith(f"{Failure.CORRUPT}: Corrupt: checkpoint {path} is not whole: model")
    assert (path / "model.safetensors").read_bytes() == before
    assert len(json.loads((then.run.path / File.PROVENANCE).read_text())["attempts"]) == 2
    checkpoint.verify(first.run, 2)
