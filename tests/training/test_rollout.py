"""The transformers engine draws from the model's distribution, whatever is decoded together."""

from threading import get_ident

import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from workbench import replace, upge
from workbench.problems import Problem, Verdict
from workbench.rollout import Request, decoders, transformers_engine
from workbench.rollout.decoders import (
    Buffer,
    LlamaDecoder,
    ModelDecoder,
    is_small_llama,
    open_decoder,
)
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine, draw
from workbench.training.sequences import Sequence

QUESTIONS = ["345+812", "1", "345-(812+170)*999", "008*888+123-456"]
GREEDY = Decoding(temperature=1e-6, top_p=1.0, max_tokens=40)


@pytest.fixture
def policy(trainer_of, small):
    return trainer_of(small).policy


def requests(policy, samples):
    prompts = [policy.encode(f"{q}?\n") for q in QUESTIONS]
    return [Request(p, samples, seed=index) for index, p in enumerate(prompts)]


def engine_of(policy, sequences=512):
    return TransformersEngine(policy.model, policy.end, policy.pad, sequences)


@pytest.fixture(params=["LlamaDecoder", "ModelDecoder"])
def decoder(request, monkeypatch):
    """Either way to decode the shipped model."""
    if request.param == "ModelDecoder":
        monkeypatch.setattr(decoders, "is_small_llama", lambda model: False)
    return request.param


TINY = dict(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    eos_token_id=39,
    pad_token_id=38,
    initializer_range=0.3,
)
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**TINY, rope_theta=100.0)),
    "llama-biased": (LlamaForCausalLM, LlamaConfig(**TINY, attention_bias=True, head_dim=16)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**TINY)),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config(**TINY, tie_word_embeddings=True)),
    "llama-mlp-bias": (LlamaForCausalLM, LlamaConfig(**TINY, mlp_bias=True)),
    "llama-gelu": (LlamaForCausalLM, LlamaConfig(**TINY, hidden_act="gelu")),
    "mistral-windows": (MistralForCausalLM, MistralConfig(**TINY, sliding_window=9)),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=40, n_embd=32, n_layer=2, n_head=4, eos_token_id=39, initializer_range=0.3
        ),
    ),
}


def random_model(name):
    torch.manual_seed(3)
    kind, config = MODELS[name]
    model = kind(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_model_decodes_as_transformers_generate(name):
    model = random_model(name)
    prompts = [(5, 6, 7, 8, 9, 10, 11), (3,), (30, 2, 30, 2, 30, 2, 30, 2, 30, 2, 30, 2)]
    engine = TransformersEngine(model, frozenset({39}), 38)
    asked = [Request(p, 2, seed=index) for index, p in enumerate(prompts)]
    for prompt, responses in zip(prompts, engine.generate(asked, GREEDY), strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=GREEDY.max_tokens,
            pad_token_id=38,
        )[0, len(prompt) :]
        assert [r.tokens for r in responses] == [tuple(wanted.tolist())] * 2


@pytest.mark.parametrize("name", [n for n in MODELS if is_small_llama(random_model(n))])
@torch.no_grad()
def test_the_llama_decoder_gives_the_models_own_logits(name):
    """Step by step, with rows that leave on the way, for padded and for equal prompts."""
    model = random_model(name)
    for prompts in ([(5, 6, 7, 8), (3,)], [(5, 6), (3, 4)]):
        read = decoders._read(model, prompts, pad=38)
        source = torch.tensor([0, 0, 1, 1, 1])
        fast = LlamaDecoder(model, read, source, room=8)
        own = ModelDecoder(model, decoders._read(model, prompts, pad=38), source, room=8)
        for step, kept in enumerate([None, [0, 2, 3, 4], None, [1, 3], None]):
            torch.testing.assert_close(fast.logits, own.logits, atol=1e-5, rtol=1e-5)
            tokens = torch.arange(len(own.logits)) + step
            if kept is not None:
                fast.keep(torch.tensor(kept))
                own.keep(torch.tensor(kept))
                tokens = tokens[kept]
            fast.step(tokens)
            own.step(tokens)
        torch.testing.assert_close(fast.logits, own.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", [3, 40, 400])
def test_a_buffer_gains_room_piece_by_piece_and_holds_what_was_written(start):
    torch.manual_seed(0)
    prompts, room = torch.randn(2, 3, start, 4), 50
    rows, columns = torch.tensor([0, 1, 1]), torch.randn(room, 3, 3, 4)
    buffer = Buffer(prompts, rows, room)
    wanted, widths = prompts[rows], set()
    for index in range(room):
        if index == 20:
            kept = torch.tensor([0, 2])
            buffer.keep(kept)
            wanted, columns = wanted[kept], columns[:, kept]
        buffer.append(columns[index])
        wanted = torch.cat([wanted, columns[index][:, :, None]], dim=2)
        assert torch.equal(buffer.written, wanted)
        assert buffer.data.is_contiguous() and not buffer.data[:, :, buffer.used :].any()
        widths.add(buffer.data.shape[2])
    assert len(widths) > 1 and max(widths) == start + room


def test_which_models_take_the_short_way(policy):
    taken = {name for name in MODELS if is_small_llama(random_model(name))}
    assert taken == {"llama", "llama-biased", "qwen2", "qwen2-tied", "llama-mlp-bias"}
    assert isinstance(open_decoder(policy.model, [(3, 4)], [1], 4, policy.pad), LlamaDecoder)


def test_samples_are_distributed_as_those_of_transformers_generate(policy, decoder):
    """Lengths and third tokens of the same prompt's responses, against `generate`'s."""
    samples, tokens = 400, 24
    prompt = policy.encode("345-(812+170)*999?\n")
    (found,) = engine_of(policy).generate([Request(prompt, samples, 7)], Decoding(1.3, 1.0, tokens))
    ids = torch.tensor([prompt]).expand(samples, -1)
    torch.manual_seed(1)
    drawn = policy.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.3,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
    )[:, len(prompt) :]
    (end,) = policy.end
    theirs = [row[: row.index(end) + 1] if end in row else row for row in drawn.tolist()]
    ours = [list(r.tokens) for r in found]
    for read in (len, lambda r: r[min(5, len(r) - 1)], lambda r: r[min(11, len(r) - 1)]):
        a, b = [read(r) for r in ours], [read(r) for r in theirs]
        frequent = [v for v in set(a + b) if a.count(v) + b.count(v) >= 16]
        table = [[x.count(v) for v in frequent] for x in (a, b)]
        for row in table:
            row.append(samples - sum(row) + 1)
        assert len(frequent) > 1
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_greedy_output_equals_transformers_generate(policy, decoder):
    found = engine_of(policy).generate(requests(policy, 1), GREEDY)
    for request, (response,) in zip(requests(policy, 1), found, strict=True):
        ids = torch.tensor([request.prompt])
        wanted = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
        )[0, ids.shape[1] :]
        assert response.tokens == tuple(wanted.tolist())


def test_responses_do_not_depend_on_what_is_decoded_together(policy, decoder):
    decoding = Decoding(1.0, 1.0, 48)
    together = engine_of(policy).generate(requests(policy, 6), decoding)
    apart = engine_of(policy, sequences=6).generate(requests(policy, 6), decoding)
    assert [[r.tokens for r in rs] for rs in together] == [[r.tokens for r in rs] for rs in apart]


@pytest.mark.parametrize("look", [1, 8])
def test_prompts_are_read_once_and_finished_responses_leave(policy, decoder, monkeypatch, look):
    """Of what a token costs: rows go down as responses end, and nothing of it shows in them."""
    asked, decoding = requests(policy, 6), Decoding(1.0, 1.0, 48)
    wanted = engine_of(policy).generate(asked, decoding)
    lengths = [len(r.tokens) for responses in wanted for r in responses]
    read, rows = [], []

    def opened(*arguments):
        found = open_decoder(*arguments)
        take = found.step
        monkeypatch.setattr(found, "step", lambda t: [rows.append(len(t)), take(t)])
        return found

    def prompts_of(model, prompts, pad, kept=decoders._read):
        read.append(len(prompts))
        return kept(model, prompts, pad)

    monkeypatch.setattr(transformers_engine, "LOOK", {"cpu": look})
    monkeypatch.setattr(transformers_engine, "open_decoder", opened)
    monkeypatch.setattr(decoders, "_read", prompts_of)
    found = engine_of(policy).generate(asked, decoding)
    assert [[r.tokens for r in rs] for rs in found] == [[r.tokens for r in rs] for rs in wanted]
    assert read == [len(asked)] and rows[0] == 6 * len(asked)
    share = transformers_engine.COMPACT_BELOW
    assert rows[-1] < rows[0]
    for drawn, there in enumerate(rows, start=1):
        seen = drawn - drawn % look  # tokens after which it was last seen which rows are live
        live = sum(length > seen for length in lengths)
        assert share * there < live <= there


def test_threads_that_decode_apart_draw_the_same(policy, decoder, threads, monkeypatch):
    asked, decoding = requests(policy, 24), Decoding(1.0, 1.0, 32)
    threads(1)
    wanted = engine_of(policy).generate(asked, decoding)
    own = set()
    monkeypatch.setattr(decoders, "_read", spied(decoders._read, lambda: own.add(get_ident())))
    threads(3)
    found = engine_of(policy).generate(asked, decoding)
    assert torch.get_num_threads() == 3
    assert len(own) > 1 and get_ident() not in own
    assert [[r.tokens for r in rs] for rs in found] == [[r.tokens for r in rs] for rs in wanted]


def test_what_ends_one_thread_ends_the_call(policy, threads):
    class Stop(Exception):
        pass

    calls = []

    def get_on():
        calls.append(get_ident())
        if len(calls) > 20:
            raise Stop

    engine = engine_of(policy)
    engine.get_on = get_on
    threads(2)
    with pytest.raises(Stop):
        engine.generate(requests(policy, 24), Decoding(1.0, 1.0, 200))
    assert len(set(calls)) == 2 and len(calls) == 22  # each is told once
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_request_is_heard_of_once_with_all_its_responses(policy, threads, count):
    engine, heard = engine_of(policy), {}

    def hear(place, responses):
        assert place not in heard
        heard[place] = responses

    threads(count)
    asked, decoding = requests(policy, 12), Decoding(1.0, 1.0, 64)
    found = engine.generate(asked, decoding, hear)
    assert [heard[place] for place in range(len(asked))] == found
    assert found == engine_of(policy).generate(asked, decoding)


def test_a_request_is_heard_of_when_its_responses_are_there_and_others_are_not(policy):
    engine, tokens, heard = engine_of(policy), [], {}
    engine.get_on = lambda: tokens.append(0)
    asked = requests(policy, 12)
    found = engine.generate(
        asked, Decoding(1.0, 1.0, 64), lambda place, _: heard.setdefault(place, len(tokens))
    )
    longest = [max(len(r.tokens) for r in responses) for responses in found]
    at = [heard[place] for place in range(len(asked))]
    assert all(drawn >= needed for drawn, needed in zip(at, longest, strict=True))
    early = [drawn for drawn, needed in zip(at, longest, strict=True) if needed < max(longest)]
    assert min(early) < max(longest)  # it leaves the batch before the last one ends


def test_whoever_hears_of_responses_may_end_the_call(policy, threads):
    class Stop(Exception):
        pass

    def hear(place, responses):
        raise Stop

    threads(2)
    with pytest.raises(Stop):
        engine_of(policy).generate(requests(policy, 24), Decoding(1.0, 1.0, 64), hear)


def spied(function, seen):
    """A function that says when it is called."""

    def called(*arguments):
        seen()
        return function(*arguments)

    return called


def test_finished_responses_end_in_the_end_token_and_others_are_cut(policy, decoder):
    found = engine_of(policy).generate(requests(policy, 8), Decoding(1.0, 1.0, 12))
    responses = [response for responses in found for response in responses]
    assert {r.finished for r in responses} == {True, False}
    for response in responses:
        assert response.finished == (response.tokens[-1] in policy.end)
        assert not set(response.tokens[:-1]) & policy.end
        assert response.finished or len(response.tokens) == 12
        assert len(response.logprobs) == len(response.tokens)


def test_engine_logprobs_are_the_trainers(policy, decoder):
    decoding = Decoding(1.0, 1.0, 48)
    found = engine_of(policy).generate(requests(policy, 4), decoding)
    sequences = [
        Sequence(Problem("p", "q", "a"), 0, request.prompt, r.tokens, "", Verdict.WRONG)
        for request, responses in zip(requests(policy, 4), found, strict=True)
        for r in responses
    ]
    own = policy.score(policy.lay_out(sequences)).logprobs
    flat = [r for responses in found for r in responses]
    for row, response in enumerate(flat):
        theirs = torch.tensor(response.logprobs)
        torch.testing.assert_close(own[row, : len(theirs)], theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.6849, 0.2466, 0.0616, 0.0068]),
        (1.0, 0.7, [0.625, 0.375, 0.0, 0.0]),  # the smallest set with a mass of at least 0.7
        (1.0, 0.45, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_draws_follow_the_stated_distribution(temperature, top_p, wanted):
    draws = 20_000
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(draws, 4)
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, noise, Decoding(temperature, top_p, 1))
    counts = torch.bincount(tokens, minlength=4).numpy()
    allowed = [i for i, p in enumerate(wanted) if p > 0]
    assert counts.sum() == counts[allowed].sum()
    expected = [wanted[i] * draws / sum(wanted) for i in allowed]
    if len(allowed) > 1:
        assert stats.chisquare(counts[allowed], expected).pvalue > 1e-3
    full = (logits[0] / temperature).log_softmax(dim=0)
    torch.testing.assert_close(logprobs, full[tokens])


def test_demonstrations_can_be_scored_beside_rollouts(policy):
    ends = min(policy.end)
    sequences = [
        Sequence(
            Problem("p", "q", "a"), 0, policy.encode(q), (*policy.encode(t), ends), t, Verdict.WRONG
        )
        for q, t in (("1+1?\n", r"\boxed{2}"), ("345-812?\n", r"345-812=533;\boxed{533}"))
    ]
    both = policy.score(policy.lay_out(sequences), entropy=True)
    for row, sequence in enumerate(sequences):
        alone = policy.score(policy.lay_out([sequence]), entropy=True)
        length = len(sequence.response)
        for name in ("logprobs", "entropy"):
            got, wanted = getattr(both, name)[row, :length], getattr(alone, name)[0]
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert isinstance(both, upge.Current)


@torch.no_grad()
def test_scores_are_those_of_each_sequence_by_itself(trainer_of, small):
    """Prompts and responses of different lengths, against the model's plain forward."""
    policy = trainer_of(replace(small, method=upge.ppo())).policy
    policy.temperature = 0.7
    torch.nn.init.normal_(policy.value_head.weight)
    lengths = [(3, 9), (20, 4), (11, 1)]
    draws = torch.Generator().manual_seed(0)
    sequences = []
    for prompt, response in lengths:
        ids = torch.randint(2, 50, (prompt + response,), generator=draws).tolist()
        problem = Problem("p", "q", "a")
        sequences.append(
            Sequence(problem, 0, tuple(ids[:prompt]), tuple(ids[prompt:]), "", Verdict.WRONG)
        )
    together = policy.score(policy.lay_out(sequences), entropy=True)
    for row, s in enumerate(sequences):
        ids = torch.tensor([s.prompt + s.response])
        plain = policy.model(input_ids=ids, output_hidden_states=True)
        before = slice(len(s.prompt) - 1, -1)
        logprobs = (plain.logits[0, before] / 0.7).log_softmax(dim=-1)
        wanted = {
            "logprobs": logprobs.gather(1, ids[0, len(s.prompt) :, None])[:, 0],
            "entropy": torch.distributions.Categorical(logits=logprobs).entropy(),
            "values": policy.value_head(plain.hidden_states[-1][0, before])[:, 0],
        }
        for name, value in wanted.items():
            got = getattr(together, name)[row]
            torch.testing.assert_close(got[: len(value)], value, atol=1e-4, rtol=1e-4)
            assert not got[len(value) :].any()
