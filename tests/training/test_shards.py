"""One process whose model is in shards trains as one whose model is whole."""

from collections.abc import Iterator

import pytest
from alike import ALONE, assert_as_alone, assert_same, one_update
from torch.distributed.tensor import DTensor

from workbench import products, replace, upge
from workbench.training.opening import open_trainer
from workbench.training.team import Team, sharded_alone


@pytest.fixture(autouse=True)
def _torchs_own_products(monkeypatch):
    """Those of shards are: what a whole model does is to differ by nothing else."""
    monkeypatch.setattr(products, "by_onednn", lambda: False)


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with sharded_alone(ALONE) as found:
        yield found


# A value head, a base model, demonstrations beside rollouts, an entropy that is learned.
METHODS = {
    "ppo": upge.ppo(),
    "kl": replace(upge.rloo(), auxiliary=(upge.KLPenalty(0.01, to_base=True),)),
    "hpt": upge.hpt(),
    "srft": upge.srft(),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_update_in_shards_is_that_of_a_whole_model(small, open_run, team, name):
    assert_as_alone(open_run(small.using(METHODS[name])), team)


def test_its_parameters_are_shards(small, open_run, team):
    trainer = open_trainer(open_run(small), ALONE, team)
    assert all(isinstance(parameter, DTensor) for _, parameter in trainer.policy.parameters())


def test_several_updates_in_shards_are_those_of_a_whole_model(small, open_run, team):
    run = open_run(replace(small.using(upge.grpo()), updates_per_batch=2, epochs_per_batch=2))
    _, _, tensors = one_update(run, team)
    _, _, whole = one_update(run)
    assert_same(tensors, whole, 1e-3)
