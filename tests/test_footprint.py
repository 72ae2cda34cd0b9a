"""Memory and time worked out beforehand, against sums by hand and against counted tensors."""

import re
import weakref
from pathlib import Path

import datasets
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM as AutoModel
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from workbench import (
    Benchmark,
    Data,
    Probe,
    Recipe,
    Resources,
    Rows,
    Sampling,
    Study,
    Validation,
    presets,
    replace,
    upge,
)
from workbench.cli_estimate import describe
from workbench.devices import DEVICES, GIB
from workbench.footprint import (
    PUBLISHED,
    Shape,
    answering,
    memory,
    micro_batch,
    seconds,
    shape_of,
    total,
)
from workbench.plan import jobs
from workbench.presets import EVALUATION, PASS_AT_K
from workbench.problems import published
from workbench.problems.loaders import size_of
from workbench.records import run_of
from workbench.training.layout import Layout
from workbench.training.opening import open_checkpoint
from workbench.training.parting import Parting, sums_of
from workbench.training.policy import Policy
from workbench.training.sampling import grade
from workbench.training.scoring import collate
from workbench.training.tally import Tally
from workbench.training.update import update

DATA = published.openr1_math_46k()
H100 = DEVICES["h100-80gb"]
LARGE = Resources(tokens=9216, recompute=True)
SMALL = Recipe("arithmetic-1m", Data("arithmetic"), upge.sft())
PARTS = 16  # demonstrations' and rollouts' of eight blocks
TINY = Shape(4, 128, 512, 4, 4, 55, tied=True, qkv_bias=True)


def paper(model: str) -> Recipe:
    return presets.paper_arms(presets.long_qwen(model), DATA)["GRPO"]


# --- parameters -----------------------------------------------------------------------------------

# As the models' pages on the hub count them.
PARAMETERS = {
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_count(name: str) -> None:
    assert PUBLISHED[name].parameters == PARAMETERS[name]


def test_the_shape_of_the_shipped_model_is_read_from_its_configuration() -> None:
    assert shape_of(SMALL.base) == TINY


def test_a_model_that_is_not_known_has_no_shape() -> None:
    assert shape_of(replace(SMALL, model="someone/something").base) is None


# --- memory, by hand ------------------------------------------------------------------------------

# GiB on one H100 at 9,216 tokens, recomputed, with vLLM beside the trainer. By hand for 1.5B:
# 16 x 1.5437e9 = 24.70e9 bytes always, and 64 of each of 28 x (4 x 23,040 + 2,048 + 3,072) + 32 x
# 151,936 + 1,536 = 7.587e6 sums; 4 x 1536 x 28 x 9216 = 1.5855e9 of activations and, of 883 tokens
# at a time, 6 x 0.23337e9 + 20 x 151936 x 883 + 16 x 1536 x 9216 = 4.3099e9 of the output layer in
# an update; 45% of 79 GiB in a rollout. For 7B 16 x 7.6156e9 and 64 x 15.628e6; 3.6994e9 and,
# because twelve bytes of the layer's weights are more, 12 x 0.54500e9 + 16 x 3584 x 9216 =
# 7.0685e9; the same 45%.
BY_HAND = {
    "Qwen/Qwen2.5-Math-1.5B": (23.46, 5.49, 35.55),
    "Qwen/Qwen2.5-Math-7B": (114.41, 10.03, 35.55),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_memory_is_as_worked_out_by_hand(name: str) -> None:
    found = memory(paper(name), LARGE, PUBLISHED[name], H100)
    parts = [total(lines) / GIB for lines in (found.always, found.update, found.rollout)]
    assert parts == pytest.approx(BY_HAND[name], abs=0.01)
    assert found.peak / GIB == pytest.approx(parts[0] + max(parts[1:]), abs=0.01)


def test_a_micro_batch_holds_the_longest_sequence() -> None:
    recipe = paper("Qwen/Qwen2.5-Math-1.5B")
    assert micro_batch(recipe, Resources(tokens=1000), on_gpu=True) == 1024 + 8192
    assert micro_batch(recipe, Resources(), on_gpu=True) == 32_768


def test_an_engine_apart_takes_nothing_of_the_trainers_gpu() -> None:
    apart = replace_resources(LARGE, gpus=2, engine_apart=True)
    shape = PUBLISHED["Qwen/Qwen2.5-Math-1.5B"]
    assert memory(paper("Qwen/Qwen2.5-Math-1.5B"), apart, shape, H100).rollout == ()


def test_shards_leave_each_gpu_its_part_of_what_is_always_held() -> None:
    name, spread = "Qwen/Qwen2.5-Math-7B", replace_resources(LARGE, gpus=8, processes=8)
    alone, found = (memory(paper(name), each, PUBLISHED[name], H100) for each in (LARGE, spread))
    whole, parted = total(alone.always[:3]), alone.always[3]  # parts are whole on every process
    assert total(found.always[:3]) == pytest.approx(whole / 8)
    assert found.always[3:] == (parted,)
    # By hand: 1.09e9 outside of layers and 2.33e8 in each, 8 bytes of them and of two layers.
    extra = (total(found.update) - total(alone.update)) / GIB
    assert extra == pytest.approx(8 * (1.0900e9 + 2 * 0.23306e9) / GIB, rel=0.001)
    one, eight = (seconds(paper(name), each, PUBLISHED[name], H100) for each in (LARGE, spread))
    assert eight.update == pytest.approx(one.update / 8)


def test_a_model_that_does_not_fit_is_told_how_many_gpus_it_fits_on(tmp_path: Path) -> None:
    by_vllm = paper("Qwen/Qwen2.5-Math-7B")
    by_transformers = replace(by_vllm, sampling=replace(by_vllm.sampling, engine="transformers"))
    eight = replace_resources(LARGE, gpus=8, processes=8)
    for recipe, resources, words in (
        (by_vllm, LARGE, r"GiB: does not fit; Resources\(gpus=\d, processes=\d\) would take"),
        (by_vllm, eight, "GiB: fits"),
        (by_transformers, eight, "does not fit; nor with processes=8: recompute, or less tokens"),
        (by_transformers, replace_resources(eight, sequences=16), "GiB: fits"),
    ):
        study = Study("large", {"HPT": recipe}, resources=resources)
        lines = describe(study, jobs(study, tmp_path), "h100-80gb")
        assert any(re.search(words, line) for line in lines), lines


def replace_resources(resources: Resources, **changes: object) -> Resources:
    return Resources(**{**vars(resources), **changes})


def test_a_kl_penalty_has_a_second_model() -> None:
    grpo = replace(upge.grpo(), auxiliary=(upge.KLPenalty(0.1, to_base=True),))
    lines = memory(SMALL.using(grpo, gradient_blocks=1), Resources(), TINY, None).always
    assert total(lines) == (16 + 4) * TINY.parameters


# Sequences whose keys and values are held: of the rollouts or of the validation, 512 at most.
VALIDATED = {
    "none drawn to train on": (upge.sft(), Validation(samples=4, problems=10), 40),
    "more to validate": (upge.grpo(), Validation(samples=4, problems=100), 400),
    "more to train on": (upge.grpo(), Validation(samples=4, problems=10), 128),
    "all problems": (upge.sft(), Validation(), 512),
}


@pytest.mark.parametrize("case", VALIDATED)
def test_the_engine_is_there_for_validation_whether_or_not_training_draws(case) -> None:
    method, validation, sequences = VALIDATED[case]
    recipe = replace(SMALL.using(method), validation=validation)
    (line,) = memory(recipe, Resources(), TINY, None).rollout
    assert line.bytes == sequences * (64 + 128) * TINY.cached(4)
    with_vllm = replace(recipe, sampling=Sampling(engine="vllm"))
    assert total(memory(with_vllm, Resources(), TINY, H100).rollout) == int(0.45 * H100.memory)


def test_an_evaluation_holds_the_whole_policy_beside_the_engine_on_every_process() -> None:
    name, spread = "meta-llama/Llama-3.1-8B", replace_resources(LARGE, gpus=8, processes=8)
    found = memory(paper(name), spread, PUBLISHED[name], H100)
    expected = 4 * PARAMETERS[name] + 0.45 * H100.memory
    assert total(found.evaluation) == pytest.approx(expected, rel=1e-9)
    shared = replace_resources(spread, processes=1, gpus=2, engine_apart=True)
    assert total(memory(paper(name), shared, PUBLISHED[name], H100).evaluation) < expected / 2
    alone = memory(paper(name).using(None), spread, PUBLISHED[name], H100)
    assert alone.peak == total(alone.evaluation)


def test_going_back_holds_a_second_model_for_a_moment() -> None:
    name, spread = "Qwen/Qwen2.5-Math-7B", replace_resources(LARGE, gpus=8, processes=8)
    skips = paper(name)
    undoes = replace(skips, optimizer=replace(skips.optimizer, nonfinite="rollback"))
    assert memory(skips, spread, PUBLISHED[name], H100).going_back == ()
    found = memory(undoes, spread, PUBLISHED[name], H100)
    assert total(found.going_back) == 4 * PARAMETERS[name]  # whole on every process
    few = replace(undoes, sampling=replace(undoes.sampling, max_tokens=8, engine="transformers"))
    brief = memory(few, Resources(tokens=8, sequences=1), PUBLISHED[name], H100)
    assert brief.peak == total(brief.always) + 4 * PARAMETERS[name]


def test_a_probe_holds_a_whole_trainer_on_one_gpu_and_a_gradient_more_where_it_moves() -> None:
    name, spread = "Qwen/Qwen2.5-Math-7B", replace_resources(LARGE, gpus=8, processes=8)
    recipe, shape = paper(name), PUBLISHED[name]
    still, moved = Probe((upge.grpo(),)), Probe((upge.grpo(),), distance=4)
    none, one, far = (
        memory(recipe, spread, shape, H100, p) for p in ((), (still,), (still, moved))
    )
    assert none.probe == ()
    assert none.peak < H100.memory
    always, update, rollout = BY_HAND[name]  # of one process
    assert total(one.probe) / GIB == pytest.approx(always + rollout, abs=0.01)
    gradient = 4 * PARAMETERS[name] / GIB
    assert total(far.probe) / GIB == pytest.approx(always + update + gradient, abs=0.01)
    assert far.peak == total(far.probe) > H100.memory


def test_a_plan_says_what_a_probe_takes(tmp_path: Path) -> None:
    recipe = paper("Qwen/Qwen2.5-Math-1.5B")
    study = Study("large", {"GRPO": recipe}, resources=LARGE, probes=[Probe((upge.grpo(),))])
    lines = describe(study, jobs(study, tmp_path), "h100-80gb")
    assert any(re.match(r" +instead, in a probe: AdamW 11.5 GiB = 8 P", line) for line in lines)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_tells_a_gradient_apart_has_as_many_numbers_as_are_counted(name: str) -> None:
    shape = Shape(**{**vars(PUBLISHED[name]), "layers": 3})
    with FakeTensorMode():
        parting = begun(AutoModel.from_config(config_of(name, 3), dtype=torch.float32))
    assert parting.parts.shape == (PARTS, shape.parted())


# --- memory, counted ------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Counts the bytes of live storages that were made under it, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def config_of(name: str, layers: int) -> PreTrainedConfig:
    shape = PUBLISHED[name]
    kind = LlamaConfig if "llama" in name else Qwen2Config
    return kind(
        num_hidden_layers=layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )


class InOrder(list):
    def tolist(self) -> list[int]:
        return self


def begun(model: PreTrainedModel) -> Parting:
    """What parts the gradient; which layers are measured needs an order that has data."""
    parting = Parting(model, sums_of(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda count, generator: InOrder(range(count)))
        parting.begin(PARTS, seed=0)
    return parting


def counted(name: str, layers: int, dtype: str, resources: Resources) -> int:
    """Bytes at the peak of a micro-batch's passes, without the gradients; tensors have no data."""
    tokens = resources.tokens or 0
    with FakeTensorMode(), Counting() as counting:
        model = AutoModel.from_config(config_of(name, layers), dtype=torch.float32).train()
        if resources.recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = Policy(model, None, 1.0, getattr(torch, dtype), None, resources.logits)  # type: ignore[arg-type]
        ids, places = torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens - 1)
        trained = torch.ones(1, tokens - 1, dtype=torch.bool)
        layout = Layout(ids, places, ids[:, 1:], places[None], trained, (tokens,), (tokens - 1,))
        model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)
        parting = begun(model)
        before = counting.peak = counting.now
        with parting.watch(layout, [0]):
            current = policy.score(layout, entropy=True)
            current.logprobs.sum().backward(inputs=[model.lm_head.weight])
        return counting.peak - before


@pytest.mark.parametrize(("name", "dtype", "recompute", "rows"), [
    ("Qwen/Qwen2.5-Math-1.5B", "bfloat16", False, 1024),
    ("Qwen/Qwen2.5-Math-1.5B", "bfloat16", True, 1024),
    ("Qwen/Qwen2.5-Math-1.5B", "bfloat16", True, 800),
    ("Qwen/Qwen2.5-Math-1.5B", "bfloat16", True, 100),
    ("Qwen/Qwen2.5-Math-1.5B", "float32", False, 1024),
    ("Qwen/Qwen2.5-Math-1.5B", "float32", False, 800),
    ("Qwen/Qwen2.5-Math-7B", "bfloat16", True, 1024),
    ("meta-llama/Llama-3.1-8B", "bfloat16", False, 1024),
    ("meta-llama/Llama-3.1-8B", "bfloat16", False, 400),
])  # fmt: skip
def test_an_update_takes_what_counting_its_tensors_gives(name, dtype, recompute, rows) -> None:
    layers, tokens = 3, 1024
    recipe = replace(paper(name), dtype=dtype, data=Data("arithmetic"), sampling=Sampling())
    shape = Shape(**{**vars(PUBLISHED[name]), "layers": layers})
    resources = Resources(tokens=tokens, recompute=recompute, logits=rows * shape.vocabulary)
    estimated = total(memory(recipe, resources, shape, H100).update)
    assert estimated == pytest.approx(counted(name, layers, dtype, resources), rel=0.07)


def test_the_measured_small_model_takes_what_was_estimated(tmp_path: Path) -> None:
    """One SFT update of 48 demonstrations, in micro-batches of at most 2,048 tokens."""
    recipe = replace(SMALL, questions=48, gradient_blocks=1)
    run = run_of(tmp_path, recipe, 0)
    run.create(recipe, 0)
    trainer = open_checkpoint(run, 0, Resources(device="cpu"))
    parameters = sum(p.numel() for p in trainer.policy.model.parameters())
    assert parameters == TINY.parameters
    with Counting() as counting:
        for weights in trainer.policy.model.parameters():
            weights.data.mul_(1)  # counted from now on: they were loaded before
        problems = list(trainer.data.train[:48])
        sequences = grade(trainer, problems, [[] for _ in problems])
        batch = collate(trainer, sequences)
        before = counting.peak = counting.now
        update(trainer, sequences, batch, Tally())
        after, peak = counting.now - before, counting.peak - before
    assert after == pytest.approx(12 * parameters, rel=0.02)  # gradients, AdamW's two moments
    groups = trainer.micro_batches(sequences, list(range(len(sequences))))
    tokens = max(sum(sequences[row].length for row in group) for group in groups)
    short = replace(recipe, sampling=Sampling(max_tokens=1))
    found = memory(short, Resources(tokens=tokens), TINY, None)
    gradients = 4 * parameters
    assert peak == pytest.approx(total(found.update) + gradients, rel=0.15)


# --- time, by hand --------------------------------------------------------------------------------


def test_seconds_are_as_worked_out_by_hand() -> None:
    """1.5B on one H100: what a reader gets with a pencil.

    Cache: 45% of 79 GiB less 3.087e9 bytes of weights is 35.08e9; a sequence of 9,216 tokens has
    28,672 bytes each, 264.2e6: 132 of them. A token of all reads 3.087e9 bytes of weights and 132 x
    4,608 x 28,672 of keys and values, 20.53e9 together: 12.26 ms at half of 3.35e12 bytes a second.
    A forward pass takes 2 x (1.5437e9 + 28 x 1536 x 9216) = 3.880e9 operations a token, an update
    four of them (backward two, recomputed one) and the output layer's 2 x 151936 x 1536 = 0.4667e9
    once more, at 40% of 989e12.
    """
    name = "Qwen/Qwen2.5-Math-1.5B"
    found = seconds(paper(name), LARGE, PUBLISHED[name], H100)
    assert found.together == 132
    assert found.rollout_rate == pytest.approx(132 / 12.255e-3, rel=1e-3)
    assert found.rollout == pytest.approx(128 * 8 * 8192 / 10_771, rel=1e-3)
    assert found.update_rate == pytest.approx(0.4 * 989e12 / (4 * 3.8802e9 + 0.4667e9), rel=1e-3)
    assert found.update == pytest.approx(128 * 8 * 9216 / 24_745, rel=1e-3)


def test_an_evaluation_is_as_worked_out_by_hand() -> None:
    """As a rollout: 2,048 answers to 30 problems of 8,192 tokens, at the rate of 132 together."""
    name = "Qwen/Qwen2.5-Math-1.5B"
    (first, *_) = PASS_AT_K.measurements(PASS_AT_K.suites, paper(name))
    found = answering(paper(name), first, 30, LARGE, PUBLISHED[name], H100)
    assert (found.answers, found.tokens) == (61_440, 61_440 * 8192)
    assert found.seconds == pytest.approx(61_440 * 8192 / 10_771, rel=1e-3)
    few = answering(paper(name), replace(first, problems=2), 30, LARGE, PUBLISHED[name], H100)
    assert few.answers == 4096
    eight = replace_resources(LARGE, gpus=8, processes=8)
    spread = answering(paper(name), first, 30, eight, PUBLISHED[name], H100)
    assert spread.seconds == pytest.approx(found.seconds / 8)


def test_a_plan_counts_the_evaluations_that_are_left(tmp_path: Path) -> None:
    """100 problems x 2,048 answers of two arms, of which the base only has to be measured.

    204,800 x 8,192 tokens at 10,771 a second are 43.3 hours; of AIME 2024 it is three tenths.
    """
    recipe = paper("Qwen/Qwen2.5-Math-1.5B")
    arms = {"Base": replace(recipe, method=None), "GRPO": recipe}
    study = Study("large", arms, evaluation=PASS_AT_K, resources=LARGE)
    lines = describe(study, jobs(study, tmp_path), "h100-80gb")
    assert any("204,800 answers, 1,677,721,600 tokens" in line for line in lines)
    assert left_to_evaluate(lines) == pytest.approx(2 * 43.27, abs=0.2)
    done = next(job for job in jobs(study, tmp_path) if job.label == "GRPO")
    path = done.run.evaluation_path(done.measurements[0])
    path.parent.mkdir(parents=True)
    path.touch()
    lines = describe(study, jobs(study, tmp_path), "h100-80gb")
    assert left_to_evaluate(lines) == pytest.approx((1 + 0.7) * 43.27, abs=0.2)


def left_to_evaluate(lines: list[str]) -> float:
    (found,) = re.findall(r"left to evaluate takes ([\d.]+) GPU hours at most", "\n".join(lines))
    return float(found)


def test_an_evaluation_on_a_table_that_is_not_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    suites = (*DATA.suites, Benchmark("mine", Rows("nobody/has-this")))
    recipe = replace(paper("Qwen/Qwen2.5-Math-1.5B"), data=replace(DATA, suites=suites))
    evaluation = replace(PASS_AT_K, suites=("aime24", "mine"))
    study = Study("large", {"GRPO": recipe}, evaluation=evaluation, resources=LARGE)
    lines = describe(study, jobs(study, tmp_path), "h100-80gb")
    assert "  evaluation on mine not counted: its table is not here" in lines
    assert left_to_evaluate(lines) == pytest.approx(0.3 * 43.27, abs=0.1)


def test_the_published_sizes_are_those_of_the_papers_evaluation() -> None:
    """100 problems of AIME and AMC 32 times each and 2,816 others once."""
    recipe = paper("Qwen/Qwen2.5-Math-1.5B")
    asked = EVALUATION.measurements(tuple(suite.name for suite in DATA.suites), recipe)
    assert sum((size_of(DATA, m.suite) or 0) * m.samples for m in asked) == 6016


def test_a_pass_of_its_own_for_the_old_policy_takes_its_time() -> None:
    recipe, shape = paper("Qwen/Qwen2.5-Math-1.5B"), PUBLISHED["Qwen/Qwen2.5-Math-1.5B"]
    at_once = Resources(logits=2**40)
    one = seconds(recipe, at_once, shape, H100)
    two = seconds(replace(recipe, updates_per_batch=2), at_once, shape, H100)
    assert two.update == pytest.approx(one.update * 4 / 3)
    sft = seconds(recipe.using(upge.sft()), at_once, shape, H100)
    assert sft.rollout == 0
    assert sft.update == pytest.approx(one.update / 8)  # 128 sequences, not 1,024
