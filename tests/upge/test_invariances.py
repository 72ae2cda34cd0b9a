"""What must not change a step's loss and gradient: micro-batches, padding, order, names."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from math import inf, nan

import pytest
import torch
from batches import BATCHES, PER_TOKEN, distance, ordinary, value_and_gradients
from every_component import ACTING, EVERY_COMPONENT, concrete
from torch import Tensor

from workbench import upge
from workbench.upge import Method, TokenBatch

BATCH = ordinary(seed=7, step=3)


@cache
def expected_of(method: Method) -> list[Tensor]:
    """The loss of the whole step at once, and its gradients."""
    return value_and_gradients(method.loss, BATCH)


every_method = pytest.mark.parametrize("method", ACTING.values(), ids=ACTING)


def test_every_component_is_in_the_table() -> None:
    assert concrete() == set(EVERY_COMPONENT)
    for cls, values in EVERY_COMPONENT.items():
        assert values and all(type(value) is cls for value in values)


# --- micro-batches --------------------------------------------------------------------------------


def split_loss(method: Method, parts: Sequence[Tensor]) -> Callable[..., Tensor]:
    def loss(batch: TokenBatch, entropy: Tensor, values: Tensor) -> Tensor:
        step = method.prepare(batch)
        each = [step.loss(i, batch.logprobs[i], entropy[i], values[i]) for i in parts]
        return torch.stack(each).sum()

    return loss


def splits(rows: int) -> list[list[Tensor]]:
    """Every micro-batch size in order, then cuts of shuffled rows at random places."""
    generator = torch.Generator().manual_seed(0)
    found = [list(torch.arange(rows).split(size)) for size in (1, 3, 7, rows)]
    for _ in range(2):
        order = torch.randperm(rows, generator=generator)
        cuts = torch.randperm(rows - 1, generator=generator)[:4].sort().values + 1
        found.append(list(order.tensor_split(cuts)))
    return found


@every_method
def test_losses_of_any_split_of_the_rows_add_up(method: Method) -> None:
    whole = expected_of(method)
    for parts in splits(len(BATCH)):
        assert distance(value_and_gradients(split_loss(method, parts), BATCH), whole) < 1e-12


@every_method
def test_so_do_losses_of_single_rows_of_a_degenerate_batch(method: Method) -> None:
    for name in ("no rollout", "fully masked rows"):
        batch = BATCHES[name]
        parts = list(torch.arange(len(batch)).split(1))
        whole = value_and_gradients(method.loss, batch)
        ours = value_and_gradients(split_loss(method, parts), batch)
        assert distance(ours, whole) < 1e-12, name


def test_the_parts_of_a_loss_add_up_and_belong_to_their_streams() -> None:
    everything = torch.arange(len(BATCH))
    assert BATCH.old_entropy is not None
    current = upge.Current(BATCH.logprobs, BATCH.old_entropy, BATCH.values)
    for method in ACTING.values():
        parts = method.prepare(BATCH).losses(everything, current)
        whole = method.loss(BATCH, BATCH.old_entropy, BATCH.values)
        assert float(sum(parts.values())) == pytest.approx(float(whole), abs=1e-12)
        assert method.needs_demonstrations or parts["demonstrations"] == 0
        assert method.rollouts is not None or parts["rollouts"] == 0
        assert method.auxiliary or parts["auxiliary"] == 0


# --- padding --------------------------------------------------------------------------------------

GARBAGE = torch.tensor([0.0, 1e4, -inf, inf, nan], dtype=torch.float64)


def padded(x: Tensor, extra: Tensor, left: bool) -> Tensor:
    extra = extra.to(x.dtype).expand(len(x), -1)
    return torch.cat([extra, x] if left else [x, extra], dim=1)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@every_method
def test_what_is_not_trained_does_not_matter(method: Method, left: bool) -> None:
    wide = {
        name: padded(torch.where(BATCH.trained, getattr(BATCH, name), nan), GARBAGE, left)
        for name in PER_TOKEN
    }
    trained = padded(BATCH.trained, torch.zeros(len(GARBAGE)), left)
    batch = replace(BATCH, trained=trained, **wide)
    expected = expected_of(method)
    ours = value_and_gradients(method.loss, batch)
    inner = slice(len(GARBAGE), None) if left else slice(None, -len(GARBAGE))
    assert distance([ours[0], *(g[:, inner] for g in ours[1:])], expected) < 1e-12
    for gradient in ours[1:]:
        assert (gradient[~batch.trained] == 0).all()
    assert (method.weights(batch)[~batch.trained] == 0).all()


# --- the old policy -------------------------------------------------------------------------------


def settled(method: Method, batch: TokenBatch) -> list[Tensor]:
    step = method.prepare(batch)
    parts = [[term.advantage, term.selected, term.share] for term in step.terms]
    return [step.alpha, step.beta, step.active, *(each for part in parts for each in part)]


@every_method
def test_what_a_method_settles_reads_the_old_policy_where_it_says_so(method: Method) -> None:
    garbage = replace(BATCH, **{name: torch.full_like(BATCH.logprobs, nan) for name in PER_TOKEN})
    pairs = zip(settled(method, BATCH), settled(method, garbage), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) != method.needs_old


# --- order and names ------------------------------------------------------------------------------


@every_method
def test_the_order_of_rows_does_not_matter(method: Method) -> None:
    expected = expected_of(method)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        order = torch.randperm(len(BATCH), generator=generator)
        value, *found = value_and_gradients(method.loss, BATCH.rows(order))
        back = [g[order.argsort()] for g in found]
        assert distance([value, *back], expected) < 1e-12


@every_method
def test_the_names_of_groups_do_not_matter(method: Method) -> None:
    if "ClipCov" in str(method):
        return  # its draw is seeded by the question's id
    expected = expected_of(method)
    for names in ((0, 1, 2, 3), (90, 4, 71, 2)):
        batch = replace(BATCH, group=torch.tensor(names)[BATCH.question])
        assert distance(value_and_gradients(method.loss, batch), expected) < 1e-12


def test_rows_keep_all_that_belongs_to_them() -> None:
    index = torch.tensor([3, 0])
    cut = BATCH.rows(index)
    assert cut.step == 3
    for field in fields(TokenBatch):
        if field.name != "step":
            assert torch.equal(getattr(cut, field.name), getattr(BATCH, field.name)[index])


# --- the estimator's weights are numbers, not functions -------------------------------------------


@every_method
def test_no_gradient_flows_through_the_weights(method: Method) -> None:
    leaf = BATCH.logprobs.clone().requires_grad_()
    batch = replace(BATCH, logprobs=leaf)
    assert not method.weights(batch).requires_grad
    alone = Method(method.rollouts, method.demonstrations, method.gate)
    gradient = torch.autograd.grad(alone.loss(batch), leaf, create_graph=True)[0]
    assert not gradient.requires_grad  # the loss is linear in log pi


@every_method
def test_float32_agrees_with_float64(method: Method) -> None:
    parts = {f.name: getattr(BATCH, f.name) for f in fields(TokenBatch)}
    low = {k: v.float() if k in PER_TOKEN or k == "rewards" else v for k, v in parts.items()}
    ours = value_and_gradients(method.loss, TokenBatch(**low))
    assert all(each.dtype == torch.float32 for each in ours)
    if "ClipCov" in str(method):
        return  # its draw reads the bits of log pi_old
    assert distance(ours, expected_of(method)) < 1e-4
