"""Logits in parts are those that are computed at once, and no more of them are held than said."""

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM

from workbench import replace, upge
from workbench.products import products
from workbench.resources import Resources
from workbench.training import attention
from workbench.training.layout import Layout
from workbench.training.policy import Policy
from workbench.training.sampling import grade

VOCABULARY = 55  # of the shipped model


def policy_and_rows(trainer_of, recipe, logits=None):
    resources = Resources(device="cpu") if logits is None else Resources("cpu", logits=logits)
    trainer = trainer_of(recipe, resources)
    problems = list(trainer.data.train[:6])
    sequences = grade(trainer, problems, [[] for _ in problems], demonstrations=True)
    return trainer.policy, trainer.policy.lay_out(sequences)


def scored(policy: Policy, layout: Layout, learned: bool):
    """What is said of the rows, and the gradient of a sum of all that is learned."""
    found = policy.score(layout, entropy=True, entropy_gradient=learned)
    assert found.entropy is not None
    assert found.entropy.requires_grad is learned
    weights = torch.linspace(-1, 1, found.logprobs.numel()).view_as(found.logprobs)
    loss = (weights * found.logprobs).sum() + (weights.flip(1) * found.entropy).sum()
    if found.values is not None:
        loss = loss + (weights * found.values).square().sum()
    loss.backward()
    said = [t for t in (found.logprobs, found.entropy, found.values) if t is not None]
    gradients = [p.grad for _, p in policy.parameters() if p.grad is not None]
    return [t.detach() for t in said], gradients


@pytest.mark.parametrize("rows", [300, 37, 1])
@pytest.mark.parametrize("learned", [True, False])
def test_parts_say_and_teach_what_the_whole_does(small, trainer_of, rows, learned):
    found = []
    for logits in (rows * VOCABULARY, None):
        policy, layout = policy_and_rows(trainer_of, small.using(upge.ppo()), logits)
        policy.model.double()
        assert policy.value_head is not None
        torch.nn.init.ones_(policy.value_head.weight)
        found.append(scored(policy, layout, learned))
    for parts, whole in zip(*found, strict=True):
        assert len(parts) == len(whole) > 2
        for part, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)


def test_parts_in_bfloat16_are_the_whole_to_its_rounding(small, trainer_of):
    found = []
    for logits in (50 * VOCABULARY, None):
        policy, layout = policy_and_rows(trainer_of, replace(small, dtype="bfloat16"), logits)
        found.append(scored(policy, layout, learned=True))
    (said, gradients), (expected, whole) = found
    for one, other in zip((*said, *gradients), (*expected, *whole), strict=True):
        assert float((one - other).norm()) <= 0.02 * float(other.norm())


def test_attention_by_plain_products_in_bfloat16_is_as_near_the_truth_as_fused(
    small, trainer_of, monkeypatch
):
    found = []
    for dtype, short in (("float32", 0), ("bfloat16", 0), ("bfloat16", attention.SHORT)):
        monkeypatch.setattr(attention, "SHORT", short)
        policy, layout = policy_and_rows(trainer_of, replace(small, dtype=dtype))
        (logprobs, _), gradients = scored(policy, layout, learned=True)
        found.append((logprobs, torch.cat([each.flatten() for each in gradients])))
    for exact, fused, plain in zip(*found, strict=True):
        assert not torch.equal(plain, fused)  # or this would compare one with itself
        assert float((plain - exact).norm()) <= 1.25 * float((fused - exact).norm())


def test_layers_in_bfloat16_are_computed_again_as_they_were(small, trainer_of):
    trainer = trainer_of(replace(small, dtype="bfloat16"), Resources("cpu", recompute=True))
    problems = list(trainer.data.train[:3])
    sequences = grade(trainer, problems, [[] for _ in problems], demonstrations=True)
    layout = trainer.policy.lay_out(sequences)
    _, gradients = scored(trainer.policy, layout, learned=False)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_small_world_is_computed_at_once_bit_for_bit(small, trainer_of):
    policy, layout = policy_and_rows(trainer_of, small)
    found = policy.score(layout, entropy=True)
    with products(policy.device, policy.dtype):
        logits = policy.model(**layout.inputs).logits
    chosen = logits.gather(2, layout.targets[:, :, None])[:, :, 0]
    logprobs = logits - logits.logsumexp(2, keepdim=True)
    entropy = -(logprobs.exp() * logprobs).sum(2)
    assert torch.equal(found.logprobs, layout.by_response(chosen - logits.logsumexp(2)))
    assert found.entropy is not None
    assert torch.equal(found.entropy, layout.by_response(entropy))


@pytest.mark.parametrize("gradient", [True, False])
def test_the_layer_never_takes_more_rows_than_there_is_room_for(small, trainer_of, gradient):
    """Each row once, and once more for the gradient; recomputing layers too changes nothing."""
    policy, layout = policy_and_rows(trainer_of, small, 64 * VOCABULARY + 54)
    seen: list[int] = []
    head = policy.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda *given: seen.append(given[2].shape[:-1].numel()))
    with torch.set_grad_enabled(gradient):
        found = policy.score(layout)
    handle.remove()
    assert seen[0] == layout.targets.numel()  # they are passed by
    assert max(seen[1:]) == 64
    assert sum(seen[1:]) == layout.targets.numel()
    assert found.logprobs.requires_grad is gradient


def test_a_model_that_changes_its_logits_afterwards_says_what_to_do():
    config = CohereConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        logit_scale=0.5,
        pad_token_id=0,
    )
    model = CohereForCausalLM(config)
    ids, places = torch.arange(20)[None], torch.arange(19)
    trained = torch.ones(1, 19, dtype=torch.bool)
    layout = Layout(ids, places, ids[:, 1:], places[None], trained, (20,), (19,))
    Policy(model, None, logits=19 * 40).score(layout)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"caps its logits .* use Resources\(logits=760\)"):
        Policy(model, None, logits=18 * 40).score(layout)  # type: ignore[arg-type]
