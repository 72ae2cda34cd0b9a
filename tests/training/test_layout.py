"""Layouts: what a model says of sequences laid end to end is what it says of each by itself."""

from itertools import combinations, pairwise

import pytest
import torch
import transformers
from torch import Tensor, nn

from workbench.problems import Problem, Verdict
from workbench.products import ROWS
from workbench.resources import LOGITS
from workbench.training.attention import FAMILIES, read_rows
from workbench.training.layout import AGAIN, PASS, Layout, micro_batches, pack, pad
from workbench.training.parting import DRAWN, Parting, can_part
from workbench.training.policy import Policy
from workbench.training.sequences import Sequence

PROBLEM = Problem(id="p", question="1+1", answer="2")
CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.3,  # so that predictions are far from uniform
}


def sequence(question: int, prompt: int, response: int, demonstration: bool = False) -> Sequence:
    """Random tokens; a question's prompt is always the same."""
    draws = torch.Generator().manual_seed(question)
    asked = tuple(torch.randint(2, 60, (prompt,), generator=draws).tolist())
    draws.manual_seed(1000 * question + response)
    said = tuple(torch.randint(2, 60, (response,), generator=draws).tolist())
    return Sequence(PROBLEM, question, asked, said, "", Verdict.WRONG, True, demonstration)


SHARED = [sequence(0, 5, 7), sequence(0, 5, 3), sequence(1, 9, 40), sequence(1, 9, 1)]
TABLE = {
    "one": [sequence(0, 5, 7)],
    "prompts of their own": [sequence(0, 5, 7), sequence(1, 2, 7), sequence(2, 11, 1)],
    "prompts shared": SHARED,
    "apart": [SHARED[0], SHARED[2], sequence(2, 3, 4), SHARED[1], SHARED[3]],
    "the very same": [SHARED[1], SHARED[1]],
}


def model_of(family: str, **changes: object) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).train()


def scored(model: nn.Module, layout: Layout, *weights: Tensor) -> list[Tensor]:
    """Log-probabilities, entropies, values, and the gradient of a weighted sum of them."""
    torch.manual_seed(1)
    head = nn.Linear(32, 1)
    policy = Policy(model, None, 0.7, torch.float32, head)  # type: ignore[arg-type]
    current = policy.score(layout, entropy=True, entropy_gradient=True)
    found = [current.logprobs, current.entropy, current.values]
    model.zero_grad()
    loss = sum((w * f).sum() for w, f in zip(weights, found, strict=True))
    loss.backward()
    return found + [p.grad for p in model.parameters() if p.grad is not None]


def assert_read_alike(model: nn.Module, sequences: list[Sequence]) -> None:
    lined, packed = pad(sequences, 0, CPU), pack(sequences, 0, CPU)
    weights = torch.randn(3, *lined.trained.shape, generator=torch.Generator().manual_seed(2))
    expected = scored(model, lined, *weights)
    assert read_rows(model)
    for one, other in zip(scored(model, packed, *weights), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sequences", TABLE.values(), ids=TABLE)
def test_sequences_end_to_end_are_read_as_padded_ones(sequences: list[Sequence]) -> None:
    assert_read_alike(model_of("qwen2"), sequences)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_family_reads_rows(family: str) -> None:
    assert_read_alike(model_of(family, sliding_window=None), SHARED)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "bloom"])
def test_positions_of_another_kind_or_windows_are_read_in_lines(family: str) -> None:
    """Mistral has a window unless told otherwise; all give what their own forward gives."""
    model = model_of(family).eval()  # without dropout
    assert not read_rows(model)
    policy = Policy(model, None)  # type: ignore[arg-type]
    assert not policy.packs
    found = policy.score(pad(SHARED, 0, CPU)).logprobs
    for row, each in enumerate(SHARED):
        ids = torch.tensor([each.prompt + each.response])
        plain = model(input_ids=ids).logits[0, len(each.prompt) - 1 : -1].log_softmax(dim=-1)
        wanted = plain.gather(1, ids[0, len(each.prompt) :, None])[:, 0]
        torch.testing.assert_close(found[row, : len(wanted)], wanted, atol=1e-4, rtol=1e-4)


def test_recomputed_layers_read_the_same_rows() -> None:
    model = model_of("qwen2")
    assert read_rows(model)
    layout = pack(SHARED, 0, CPU)
    weights = torch.randn(3, *layout.trained.shape, generator=torch.Generator().manual_seed(2))
    expected = scored(model, layout, *weights)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(scored(model, layout, *weights), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "tokens"), [("prompts of their own", 33), ("prompts shared", 65), ("apart", 72)]
)
def test_a_shared_prompt_is_laid_out_once_and_the_end_alone_is_filled(
    name: str, tokens: int
) -> None:
    layout = pack(TABLE[name], 7, CPU)
    assert layout.ids.shape == (1, -(-tokens // ROWS) * ROWS)
    assert layout.ids[0, tokens:].eq(7).all() and not layout.ids[0, :tokens].eq(7).all()


# --- the parts of a gradient ----------------------------------------------------------------------


@pytest.mark.parametrize("logits", [LOGITS, 64 * 5], ids=["at once", "in parts"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_pass_are_the_gradients_of_its_sequences(
    family: str, recompute: bool, logits: int
) -> None:
    model = model_of(family, sliding_window=None)
    if family in ("gemma", "mixtral", "qwen3_moe"):  # scaled embeddings; experts
        assert not can_part(model)
        return
    assert read_rows(model) and can_part(model)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model, None, 0.7, logits=logits)  # type: ignore[arg-type]
    if logits != LOGITS and family in ("cohere", "granite"):
        return  # they change their logits after the output layer
    sequences = TABLE["apart"]
    layout, parting = pack(sequences, 0, CPU), Parting(model, None)
    weights = torch.randn(layout.trained.shape, generator=torch.Generator().manual_seed(2))
    parting.begin(3, seed=0)
    with parting.watch(layout, [each.question for each in sequences]):
        (weights * policy.score(layout).logprobs).sum().backward()
    layers = [layer for layer in model.modules() if layer._parameters]
    both = [p for each in layers for p in (each.weight, getattr(each, "bias", None))]
    parameters = list({id(p): p for p in both if p is not None}.values())
    for question in range(3):
        model.zero_grad()
        rows = [row for row, each in enumerate(sequences) if each.question == question]
        layout = pack([sequences[row] for row in rows], 0, CPU)
        (weights[rows, : layout.width] * policy.score(layout).logprobs).sum().backward()
        expected = torch.cat([p.grad.t().flatten() for p in parameters])  # type: ignore[union-attr]
        torch.testing.assert_close(parting.parts[question], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox", "qwen2"])
def test_sums_of_inputs_keep_products_on_average_where_layers_share_an_input(family: str) -> None:
    """In phi attention and MLP do; 300 signs and draws, and each parameter's products of parts."""
    model, sequences = model_of(family), TABLE["apart"]
    assert read_rows(model)
    policy, layout = Policy(model, None, 0.7), pack(sequences, 0, CPU)  # type: ignore[arg-type]
    weights = torch.randn(layout.trained.shape, generator=torch.Generator().manual_seed(2))

    def products(parting: Parting, seed: int) -> Tensor:
        parting.begin(3, seed)
        with parting.watch(layout, [each.question for each in sequences]):
            (weights * policy.score(layout).logprobs).sum().backward()
        each = [place.added.flatten(1).double() for place in parting._places.values()]
        return torch.stack([parts @ parts.T for parts in each])

    exact, parting = products(Parting(model, None), 0), Parting(model, 4)
    found = torch.stack([products(parting, seed) for seed in range(300)])
    assert ((found.mean(dim=0) - exact).abs() <= 5 * found.std(dim=0) / 300**0.5 + 1e-9).all()


def test_of_each_kind_of_light_parameters_as_many_are_drawn_as_stand_for_all() -> None:
    model = model_of("qwen2", num_hidden_layers=5)
    first, second, *_ = model.model.layers
    second.input_layernorm.weight = first.input_layernorm.weight  # one parameter, drawn once
    parting = Parting(model, 4)
    drawn = []
    for seed in range(200):
        parting.begin(2, seed)
        scales = {kind: [p.scale for p in light] for kind, light in parting._light.items()}
        assert {k: len(each) for k, each in scales.items()} == {"norm": 10, "bias": 15, "wide": 15}
        for each in scales.values():
            assert sum(scale > 0 for scale in each) == -(-len(each) // DRAWN)
            assert sum(scale**2 for scale in each) == pytest.approx(len(each))
        drawn.append(torch.tensor([scale > 0 for each in scales.values() for scale in each]))
    assert torch.stack(drawn).any(dim=0).all()


# --- micro-batches --------------------------------------------------------------------------------


def rows_of(lengths: list[int], demonstration: bool = False) -> list[Sequence]:
    return [sequence(n, 1, n - 1, demonstration) for n in lengths]


def cost(groups: list[list[int]], tokens: int) -> float:
    return sum(len(group) * max(group) + PASS * tokens for group in groups)


def every_grouping(lengths: list[int], tokens: int) -> list[list[list[int]]]:
    """All ways to cut sorted lengths into groups that fit, or have one sequence."""
    ordered, found = sorted(lengths), []
    for cuts in range(len(lengths)):
        for inner in combinations(range(1, len(lengths)), cuts):
            edges = (0, *inner, len(lengths))
            groups = [ordered[first:last] for first, last in pairwise(edges)]
            if all(len(g) == 1 or len(g) * max(g) <= tokens for g in groups):
                found.append(groups)
    return found


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        ([5], 64),
        ([5, 5, 5, 5], 64),
        ([40, 3, 3, 2, 38, 9], 128),
        ([2, 60, 2, 60, 2, 60], 120),
        ([100, 7, 8, 9], 64),  # one is longer than the budget
        ([3, 50, 4, 5, 30, 31, 6, 7, 8, 9], 160),
    ],
)
def test_no_other_grouping_of_padded_rows_costs_less(lengths: list[int], tokens: int) -> None:
    groups = micro_batches(rows_of(lengths), range(len(lengths)), tokens, packed=False)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    found = [[lengths[row] for row in group] for group in groups]
    assert all(len(g) == 1 or len(g) * max(g) <= tokens for g in found)
    assert cost(found, tokens) == min(cost(g, tokens) for g in every_grouping(lengths, tokens))


@pytest.mark.parametrize("tokens", [16, 64, 100, 1000])
def test_packed_rows_fill_their_micro_batches_question_by_question(tokens: int) -> None:
    lengths = [(q, 8 + q, 1 + 7 * q + r) for r in range(4) for q in range(3)]
    sequences = [sequence(*each) for each in lengths]
    groups = micro_batches(sequences, range(len(sequences)), tokens, packed=True)
    order = [row for group in groups for row in group]
    assert sorted(order) == list(range(len(sequences)))
    assert [sequences[row].question for row in order] == sorted(q for q, _, _ in lengths)

    def needed(rows: list[int]) -> float:
        once = sum(map(len, {sequences[row].prompt for row in rows}))
        again = sum(len(sequences[row].prompt) for row in rows) - once
        return once + AGAIN * again + sum(len(sequences[row].response) for row in rows)

    assert all(len(group) == 1 or needed(group) <= tokens for group in groups)
    # No group has room for the row that begins the next.
    assert all(needed([*one, other[0]]) > tokens for one, other in pairwise(groups))


@pytest.mark.parametrize("packed", [True, False])
def test_streams_are_never_mixed(packed: bool) -> None:
    sequences = rows_of([4, 4]) + rows_of([4, 4], demonstration=True)
    assert micro_batches(sequences, [0, 2, 3], 64, packed) == [[2, 3], [0]]
    assert micro_batches(sequences, [], 64, packed) == []
