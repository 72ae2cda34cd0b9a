"""Live gradient statistics: unbiased, independent of memory, and what a direct computation says."""

from itertools import permutations

import pytest
import torch
from steps import one_step

from workbench import Optimizer, replace, upge
from workbench.resources import Resources
from workbench.training import gradient
from workbench.training.gradient import Blocks, Sketch, blocks_of, ratios, windowed
from workbench.training.parting import Parting
from workbench.training.tally import Tally
from workbench.training.update import update


def direct(each):
    """Variance and squared length of the mean of independent rows, by their textbook formulas."""
    count = len(each)
    variance = float(each.var(dim=0).sum()) / count
    return variance, float(each.mean(dim=0).square().sum()) - variance


def of_blocks(demonstrations, rollouts, sizes):
    """Blocks whose parts [block, dimension] are known whole."""
    parts = torch.stack([demonstrations, rollouts])
    return Blocks(parts.sum(dim=1), parts, sizes)


@pytest.mark.parametrize(("questions", "blocks"), [(4, 2), (5, 2), (5, 3), (4, 4)])
def test_over_all_partitions_the_blocks_average_to_the_direct_estimate(questions, blocks):
    torch.manual_seed(0)
    each = torch.randn(questions, 7, dtype=torch.float64) + 1
    place = torch.tensor(blocks_of(questions, blocks))
    found = []
    for order in permutations(range(questions)):
        part = torch.zeros(blocks, 7, dtype=torch.float64)
        part.index_add_(0, place, each[list(order)] / questions)
        moments = of_blocks(torch.zeros_like(part), part, place.bincount()).moments()
        found.append((moments["grad/variance"], moments["grad/square"]))
    torch.testing.assert_close(torch.tensor(found).mean(dim=0), torch.tensor(direct(each)))


def test_products_across_streams_are_those_of_independent_questions():
    """Demonstrations and rollouts of one question may go together; those of two do not."""
    torch.manual_seed(1)
    common = torch.randn(4_000, 8, 1, dtype=torch.float64)
    rollouts, demonstrations = common + 0.5, common + 0.25
    sizes = torch.full((8,), 2)
    pairs = zip(demonstrations, rollouts, strict=True)
    found = [of_blocks(a / 8, b / 8, sizes).moments() for a, b in pairs]
    mean = {key: sum(each[key] for each in found) / len(found) for key in found[0]}
    assert mean["grad/inner_sft_rl"] == pytest.approx(0.125, abs=0.03)
    assert mean["grad/square_rl"] == pytest.approx(0.25, abs=0.03)
    assert mean["grad/square_sft"] == pytest.approx(0.0625, abs=0.03)
    assert mean["grad/variance"] == pytest.approx(4 / 8, abs=0.03)


def keep_whole(trainer, parted=True):
    """Has the trainer measure without sketches: blocks in one pass or in passes of their own."""
    trainer.sketch = Sketch(trainer.policy.model.parameters(), None)
    (lane,) = trainer.lanes
    assert lane.parting is not None
    lane.parting = Parting(trainer.policy.model, None) if parted else None


@pytest.mark.parametrize(
    "method", [upge.sft(), upge.grpo(), upge.hpt(), upge.luffy()], ids=lambda m: m.label
)
@pytest.mark.parametrize("parted", [True, False])
def test_the_trainers_blocks_are_the_gradients_of_its_questions(method, parted, small, trainer_of):
    recipe = replace(
        small, method=method, optimizer=Optimizer(learning_rate=0.0), gradient_blocks=4
    )
    trainer = trainer_of(recipe, Resources(tokens=300))
    keep_whole(trainer, parted)
    sequences, batch, metrics = one_step(trainer)
    step = method.prepare(batch)
    each = []
    for question in range(4):
        rows = (batch.question == question).nonzero()[:, 0]
        layout = trainer.policy.lay_out([sequences[row] for row in rows])
        logprobs = trainer.policy.score(layout).logprobs
        wide = torch.nn.functional.pad(logprobs, (0, batch.logprobs.shape[1] - layout.width))
        trainer.optimizer.zero_grad(set_to_none=True)
        step.loss(rows, wide.double()).backward()
        parts = [
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for p in trainer.policy.model.parameters()
        ]
        each.append(4 * torch.cat(parts).double())
    variance, square = direct(torch.stack(each))
    assert variance > 0
    assert metrics["grad/variance"] == pytest.approx(variance, rel=1e-3)
    assert metrics["grad/square"] == pytest.approx(square, rel=1e-3, abs=1e-4 * variance)


def test_what_is_measured_changes_no_number_of_the_training(small, trainer_of):
    found = []
    for blocks in (1, 4):
        trainer = trainer_of(replace(small, gradient_blocks=blocks))
        _, _, metrics = one_step(trainer, precise=False)
        found.append((metrics, [p.detach().clone() for _, p in trainer.policy.parameters()]))
    (without, before), (having, after) = found
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert {k: v for k, v in having.items() if k in without} == without


@pytest.mark.parametrize("method", [upge.grpo(), upge.luffy()], ids=lambda m: m.label)
def test_sums_with_signs_say_the_same_on_average_and_do_not_depend_on_memory(
    method, small, trainer_of
):
    """40 signs and draws of one step, and the moments of the parts themselves."""
    recipe = replace(
        small, method=method, optimizer=Optimizer(learning_rate=0.0), gradient_blocks=4
    )
    trainer = trainer_of(recipe, Resources(tokens=300))
    sequences, batch, _ = one_step(trainer)
    keys = ("grad/variance", "grad/square", "grad/inner_sft_rl")

    def moments(seed):
        trainer.progress.updates, tally = seed, Tally()
        update(trainer, sequences, batch, tally)
        return torch.tensor([tally.metrics()[key] for key in keys], dtype=torch.float64)

    (lane,) = trainer.lanes
    parting, lane.parting = lane.parting, Parting(trainer.policy.model, None)
    exact = moments(0)
    lane.parting = parting
    found = torch.stack([moments(seed) for seed in range(40)])
    error = found.std(dim=0)
    assert ((found.mean(dim=0) - exact).abs() <= 4 * error / 40**0.5 + 1e-9).all()
    assert error[0] < 0.3 * exact[0]
    trainer.resources = Resources(tokens=2_000)
    torch.testing.assert_close(moments(7), found[7], rtol=1e-4, atol=1e-4 * float(exact[0]))


def test_one_block_measures_no_moments_but_still_the_norms(small, trainer_of):
    _, _, metrics = one_step(trainer_of(replace(small, gradient_blocks=1)), precise=False)
    assert metrics["grad/norm_sft"] > 0 and metrics["grad/norm_rl"] > 0
    assert 0 < metrics["offline/gradient"] < 1
    assert "grad/variance" not in metrics


@pytest.mark.parametrize("size", [256, 2048])
def test_a_sketch_keeps_products_on_average_and_its_error_is_as_stated(size):
    torch.manual_seed(2)
    shapes = [torch.zeros(40, 30), torch.zeros(17), torch.zeros(300, 11)]
    one, other = ([torch.randn_like(s) for s in shapes] for _ in range(2))
    mixed = [0.5 * a + b for a, b in zip(one, other, strict=True)]
    flat = [torch.cat([g.flatten() for g in each]) for each in (one, mixed)]
    squares, products = [], []
    for seed in range(400):
        sketch = Sketch(shapes, size, seed)
        a, b = sketch(one), sketch(mixed)
        torch.testing.assert_close(sketch([g + h for g, h in zip(one, mixed, strict=True)]), a + b)
        squares.append(float(a @ a / (flat[0] @ flat[0])))
        products.append(float(a @ b / (flat[0] @ flat[1])))
    error = torch.tensor(squares).std()
    assert torch.tensor(squares).mean() == pytest.approx(1, abs=4 * float(error) / 20)
    assert torch.tensor(products).mean() == pytest.approx(1, abs=8 * float(error) / 20)
    assert float(error) == pytest.approx((2 / size) ** 0.5, rel=0.25)


@pytest.mark.parametrize("size", [7, 64, None])
def test_what_is_put_together_for_a_sketch_is_bounded_and_changes_no_number(size, monkeypatch):
    torch.manual_seed(3)
    shapes = [(13, 50), (31,), (200, 9), (1,), (40, 40), (3, 3)]
    gradients = [torch.randn(shape) for shape in shapes]
    gradients[3] = None
    parameters = [torch.zeros(shape) for shape in shapes]
    expected, together, numbers = Sketch(parameters, size)(gradients), torch.cat, []

    def cat(parts):
        numbers.append(sum(map(len, parts)))
        return together(parts)

    monkeypatch.setattr(gradient, "_TOGETHER", 128)
    monkeypatch.setattr(torch, "cat", cat)
    assert torch.equal(Sketch(parameters, size)(gradients), expected)
    row = size or 1
    assert len(numbers) > 1
    # Rows that are added up at once stay together, behind one that began before them.
    assert max(numbers) <= max(128, 16 * row) + row


def test_a_short_gradient_is_kept_whole():
    parameters = [torch.zeros(3), torch.zeros(2, 2)]
    found = Sketch(parameters, 7)([torch.ones(3), None])
    assert found.tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_ratios_are_of_windowed_sums_and_left_out_where_undefined():
    once = {
        "grad/variance": 2.0,
        "grad/square": 1.0,
        "grad/square_rl": 4.0,
        "grad/square_sft": 1.0,
        "grad/inner_sft_rl": -1.0,
    }
    recent = windowed(windowed({}, once), {**once, "grad/inner_sft_rl": 1.0})
    found = ratios(recent, questions=8)
    assert found["grad/noise_scale"] == pytest.approx(16)
    assert found["grad/cosine_sft_rl"] == pytest.approx((1 - 0.9) / 1.9 / 2)
    assert found["grad/share_sft"] == pytest.approx(1 / 3)
    assert ratios({**once, "grad/square": -1.0, "grad/square_sft": 0.0}, 8) == {}
