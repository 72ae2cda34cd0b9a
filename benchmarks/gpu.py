"""Checks training and both rollout engines on the GPUs of this machine, and prints their speed.

    python benchmarks/gpu.py             # a random Qwen2 of 0.2 billion parameters
    python benchmarks/gpu.py --size 1.5b # with the sizes of Qwen2.5-Math-1.5B
    python benchmarks/gpu.py --size tiny # a few seconds, on a processor too: does the script run?

It downloads nothing. For each way to draw rollouts (transformers; vLLM beside the trainer, which
sleeps while that works; with two GPUs or more vLLM on one of its own, and spread over two) it takes
GRPO steps and prints tokens a second, model FLOP utilization of the update, peak memory beside the
estimate of `workbench plan`, and how far the engine's log-probabilities are from the trainer's. It
fails where an engine does not draw with the weights of the last update, where a sleeping one keeps
its memory, and where its log-probabilities are further than bfloat16 explains. Ways that this
machine has no packages or GPUs for are named and left out.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace as with_fields
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from workbench import Data, Optimizer, Recipe, Resources, Sampling, replace, upge
from workbench.devices import GIB
from workbench.footprint import device_here, memory, seconds, shape_of
from workbench.models import locate
from workbench.records import run_of
from workbench.rollout import Request
from workbench.training.sampling import grade, prompt_of, sample
from workbench.training.scoring import collate
from workbench.training.statistics import rollout_statistics
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer, open_checkpoint
from workbench.training.update import update

SIZES = {  # layers, width, MLP, heads, heads of keys and values, vocabulary
    "tiny": (2, 64, 128, 4, 2, 512),
    "0.2b": (12, 768, 3072, 12, 4, 151_936),
    "1.5b": (28, 1536, 8960, 12, 2, 151_936),
}
TOKENS = {"tiny": 32, "0.2b": 1024, "1.5b": 1024}
STEPS = 3  # the first is warm-up
NEAR = 0.05  # nats a token, on average, between engines that compute in bfloat16
ASLEEP = 3 * GIB  # what a sleeping engine may keep: its CUDA context and graphs


def main() -> None:
    """Runs every way that this machine can, and fails if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.2b")
    size = parser.parse_args().size
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{name}, torch {torch.__version__}, {torch.cuda.device_count()} GPUs, model {size}")
    folder = tempfile.mkdtemp()
    recipe = recipe_of(made(size, Path(folder)), size)
    failures = [what for way in ways(recipe) for what in checked(*way)]
    for failure in failures:
        print(f"FAILED  {failure}")
    sys.exit(bool(failures))


def made(size: str, folder: Path) -> str:
    """A random model of that size with the small world's tokenizer: its folder."""
    layers, hidden, inner, heads, kv_heads, vocabulary = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(locate("arithmetic-1m"))
    config = Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe_of(model: str, size: str) -> Recipe:
    """GRPO with updates large enough that a stale engine would be seen."""
    return Recipe(
        model,
        Data("arithmetic"),
        upge.reinforce(),  # random answers are all wrong: GRPO's advantage would be 0
        questions=4 if size == "tiny" else 32,
        rollouts=8,
        sampling=Sampling(max_tokens=TOKENS[size]),
        optimizer=Optimizer(learning_rate=1e-4),
        dtype="bfloat16",
    )


def ways(recipe: Recipe) -> Iterator[tuple[str, Recipe, Resources]]:
    """Each way to draw rollouts that this machine has what it needs for."""
    vllm = replace(recipe, sampling=replace(recipe.sampling, engine="vllm"))
    one = Resources(tokens=8192)
    yield "transformers", recipe, one
    yield "transformers, layers recomputed", recipe, with_fields(one, recompute=True)
    if find_spec("vllm") is None:
        print("left out: vLLM is not installed (pip install 'post-training-workbench[vllm]')")
        return
    yield "vLLM beside the trainer", vllm, one
    if torch.cuda.device_count() < 2:
        print("left out: vLLM apart, and over two GPUs, need two GPUs")
        return
    yield "vLLM apart", vllm, with_fields(one, gpus=2, engine_apart=True)
    yield "vLLM over two GPUs", vllm, with_fields(one, gpus=2, tensor_parallel=2)


def checked(way: str, recipe: Recipe, resources: Resources) -> list[str]:
    """Takes the steps, prints what they took, and returns what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(Path(folder), recipe, 0)
        run.create(recipe, 0)
        trainer = open_checkpoint(run, 0, resources)
        with closing(trainer.engine):
            return [f"{way}: {what}" for what in _measured(way, trainer)]


def _measured(way: str, trainer: Trainer) -> list[str]:
    wrong, rates, tally = [], [], Tally()
    on_gpu = trainer.policy.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(1, STEPS + 1):
        tally = Tally()
        rates.append(_step(trainer, step, tally))
    drawn, trained = (sum(r[n] for r in rates[1:]) / (STEPS - 1) for n in (0, 1))
    found = tally.metrics()
    apart = found.get("ratio/engine_mismatch", 0.0)
    print(f"{way}: rollout {drawn:,.0f} tokens/s, update {trained:,.0f} tokens/s, "
          f"mismatch {apart:.2g} nats a token")  # fmt: skip
    if apart > NEAR:
        wrong.append(f"log-probabilities differ by {apart:.3f} nats a token, over {NEAR}")
    if not _follows(trainer):
        wrong.append("the engine does not draw with the weights that the trainer has")
    if on_gpu:
        _print_memory(trainer, trained)
        wrong += _awake(trainer)
    return wrong


def _step(trainer: Trainer, step: int, tally: Tally) -> tuple[float, float]:
    """Tokens a second of one step's rollout and of its update."""
    count = trainer.recipe.questions
    problems = list(trainer.data.train[count * (step - 1) : count * step])
    began = _now()
    rollouts = sample(trainer, problems, step)
    middle = _now()
    sequences = grade(trainer, problems, rollouts)
    rollout_statistics(sequences, tally)
    graded = _now()
    batch = collate(trainer, sequences)
    update(trainer, sequences, batch, tally)
    tokens = sum(len(s.response) for s in sequences)
    whole = tokens + sum(len(s.prompt) for s in sequences)
    return tokens / (middle - began), whole / (_now() - graded)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _follows(trainer: Trainer) -> bool:
    """Whether the engine's first token is the one that the trainer, as it is now, holds for best.

    Weights are turned upside down first, so that an engine with older ones would say another.
    """
    prompt = prompt_of(trainer, trainer.data.train[0])
    with torch.no_grad():
        trainer.policy.model.lm_head.weight.mul_(-1)
        ids = torch.tensor([prompt], device=trainer.policy.device)
        best = (
            trainer.policy.model(input_ids=ids, use_cache=False)
            .logits[0, -1]
            .float()
            .topk(3)
            .indices.tolist()
        )
    greedy = with_fields(trainer.decoding, temperature=1e-6, max_tokens=1)
    ((found,),) = trainer.engine.generate([Request(prompt, 1, 0)], greedy)
    return found.tokens[0] in best  # rounding may change places among the best


def _print_memory(trainer: Trainer, rate: float) -> None:
    device, shape = device_here(trainer.resources), shape_of(trainer.recipe.base)
    peak = torch.cuda.max_memory_allocated()
    print(f"  the trainer's own peak {peak / GIB:.1f} GiB")
    if device is None or shape is None:
        return
    plan = memory(trainer.recipe, trainer.resources, shape, device)
    guess = seconds(trainer.recipe, trainer.resources, shape, device)
    share = 6 * shape.multiplied * rate / device.dense[trainer.recipe.dtype]
    print(f"  estimated {plan.peak / GIB:.1f} GiB with the engine, {guess.rollout_rate:,.0f} and "
          f"{guess.update_rate:,.0f} tokens/s; model FLOP utilization {share:.1%}")  # fmt: skip


def _awake(trainer: Trainer) -> list[str]:
    """What a sleeping engine keeps of the GPU, if that is too much."""
    if trainer.recipe.sampling.engine != "vllm" or trainer.resources.engine_apart:
        return []
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    others = whole - free - torch.cuda.memory_reserved()
    print(f"  asleep, the engine leaves all but {others / GIB:.1f} GiB")
    return [f"a sleeping engine keeps {others / GIB:.1f} GiB"] if others > ASLEEP else []


if __name__ == "__main__":
    main()
