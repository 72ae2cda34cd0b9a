"""Threads that go through micro-batches of their own train as one thread does, bit by bit again."""

import random
import time
from threading import get_ident

import pytest
import torch
from alike import ALONE, assert_alike, one_update
from steps import one_step

from workbench import replace, upge
from workbench.threads import SMALL, threads_for
from workbench.training.opening import open_trainer

THREE = replace(ALONE, tokens=1024)  # in lanes of 341

# A value head, a base model, demonstrations beside rollouts, an entropy that is learned, an old
# policy that is scored first.
METHODS = {
    "ppo": upge.ppo(),
    "kl": replace(upge.rloo(), auxiliary=(upge.KLPenalty(0.01, to_base=True),)),
    "grpo": upge.grpo(),
    "hpt": upge.hpt(),
    "srft": upge.srft(),
}


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_an_update_by_lanes_is_that_of_one_thread(name, updates, small, open_run, threads):
    run = open_run(replace(small.using(METHODS[name]), updates_per_batch=updates))
    threads(1)
    wanted = one_update(run)
    threads(3)
    assert len(open_trainer(run, THREE).lanes) == 3
    found = one_update(run, resources=THREE)
    assert torch.get_num_threads() == 3
    if updates == 1:
        return assert_alike(found, wanted, 5e-4)  # SRFT's of keys are small sums of large terms
    assert found[1]["optim/gradient_norm"] == pytest.approx(
        wanted[1]["optim/gradient_norm"], rel=1e-2
    )


def test_how_fast_a_thread_is_changes_not_a_bit(small, open_run, threads):
    threads(3)
    found = []
    for seed in range(3):
        trainer = open_trainer(open_run(replace(small, steps=4 + seed)), THREE)
        own, delays = set(), random.Random(seed)

        def beat(own=own, delays=delays):
            own.add(get_ident())
            time.sleep(delays.uniform(0, 0.05))

        trainer.beat = beat
        _, _, metrics = one_step(trainer, precise=False)
        assert len(own) >= 3 and get_ident() not in own
        parameters = [p.detach().clone() for _, p in trainer.policy.parameters()]
        found.append((metrics, parameters, [p.grad for _, p in trainer.policy.parameters()]))
    for metrics, *tensors in found[1:]:
        assert metrics == found[0][0]
        for one, other in zip(tensors, found[0][1:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_lanes_have_the_weights_in_common_and_gradients_apart(small, trainer_of, threads):
    threads(2)
    trainer = trainer_of(small.using(METHODS["ppo"]), THREE)
    one, other = (lane.policy for lane in trainer.lanes)
    assert [n for n, _ in one.parameters()] == [n for n, _ in other.parameters()]
    one_step(trainer, precise=False)
    for (_, p), (_, q) in zip(one.parameters(), other.parameters(), strict=True):
        assert p is not q and p.data_ptr() == q.data_ptr()
        assert p.grad is not None and q.grad is None  # gathered
    assert other.model.lm_head.weight is other.model.model.embed_tokens.weight  # tied


def test_what_ends_a_lane_ends_the_update_and_leaves_no_gradient_to_the_next(
    small, trainer_of, threads
):
    threads(2)
    trainer = trainer_of(small, THREE)
    told = []

    def beat():
        told.append(get_ident())
        if len(told) == 3:
            raise KeyError("stop")

    trainer.beat = beat
    with pytest.raises(KeyError):
        one_step(trainer, precise=False)
    trainer.clear_gradients()
    assert all(p.grad is None for lane in trainer.lanes for _, p in lane.policy.parameters())


def test_a_large_model_keeps_the_threads_of_its_products(threads):
    threads(2)
    small, large = torch.nn.Linear(SMALL // 4, 4, bias=False), torch.nn.Linear(SMALL // 4, 4)
    assert (threads_for(small), threads_for(large)) == (2, 1)
