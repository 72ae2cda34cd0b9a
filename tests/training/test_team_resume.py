"""A checkpoint of so many processes is gone on with by another number of them."""

from contextlib import suppress

import pytest
from alike import assert_same, together
from safetensors.torch import load_file

from workbench.records import Interrupted, run_of
from workbench.training import checkpoint
from workbench.training.loop import train
from workbench.training.opening import open_trainer
from workbench.training.peer import serve
from workbench.training.team import assembled

FEW = [(1, 2), (2, 1)]
MANY = [(1, 4), (4, 1), (2, 4), (4, 2)]
PAIRS = [*FEW, *(pytest.param(*pair, marks=pytest.mark.integration) for pair in MANY)]


@pytest.mark.parametrize(("first", "then"), PAIRS)
def test_a_checkpoint_is_resumed_by_another_number_of_processes(small, tmp_path, first, then):
    def train_until(run, step, processes):
        with assembled(together(processes), serve) as team:
            trainer = open_trainer(run, together(processes), team)
            with suppress(Interrupted):
                train(trainer, run, stopping=lambda: trainer.progress.step >= step)
        return [row["optim/gradient_norm"] for row in run.rows() if row["step"]]

    runs = [run_of(tmp_path / each, small, 0) for each in ("alone", "by-turns")]
    for run in runs:
        run.create(small, 0)
    expected = train_until(runs[0], small.steps, 1)
    assert len(train_until(runs[1], 2, first)) == 2
    found = train_until(runs[1], small.steps, then)
    assert found == pytest.approx(expected, rel=1e-3)
    states = [load_file(run.checkpoint_path(4) / checkpoint.OPTIMIZER) for run in runs]
    assert_same(states[1], states[0], 1e-3)
