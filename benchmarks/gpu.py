"""Trains in every way that the GPUs of this machine allow, and prints speed and memory.

    python benchmarks/gpu.py             # random Qwen2s of 0.3 and of 1.5 billion parameters
    python benchmarks/gpu.py --size 300m
    python benchmarks/gpu.py --size tiny # a minute, on a processor too: does the script run?

It downloads nothing. For each way (whole, with layers recomputed, and in shards by FSDP2 on one
GPU, drawing with transformers; vLLM beside the trainer, which sleeps while that works; with two
GPUs or more vLLM on one of its own, and spread over two) it takes steps and prints tokens a second,
model FLOP utilization of the update, the live statistics of the gradient, peak memory beside the
estimate of `workbench plan`, and how far the engine's log-probabilities are from the trainer's.
Then it takes whole steps of Dr. GRPO with the workbench and with TRL's `GRPOTrainer`, on the same
model and prompts, each in a process of its own (see `step.py`).

It fails where statistics are not finite, where an engine does not draw with the weights of the last
update, where a sleeping one keeps its memory, and where its log-probabilities are further than
bfloat16 explains. What this machine has no packages or GPUs for is named and left out.
"""

import argparse
import gc
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from dataclasses import replace as with_fields
from importlib.util import find_spec
from pathlib import Path

import torch
from sides import GROUP, Side, median, ratio
from step import Setting, Workload, trl, workbench
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from workbench import Data, Optimizer, Recipe, Resources, Sampling, replace, upge
from workbench.devices import GIB
from workbench.footprint import device_here, memory, seconds, shape_of
from workbench.models import locate
from workbench.records import run_of
from workbench.rollout import Request
from workbench.training.opening import open_checkpoint
from workbench.training.sampling import grade, prompt_of, sample
from workbench.training.scoring import collate
from workbench.training.statistics import batch_statistics, rollout_statistics
from workbench.training.tally import Tally
from workbench.training.team import ALONE, sharded_alone
from workbench.training.trainer import Trainer
from workbench.training.update import update

SIZES = {  # layers, width, MLP, heads, heads of keys and values, vocabulary
    "tiny": (2, 128, 256, 4, 2, 512),
    "300m": (20, 768, 3072, 12, 4, 151_936),
    "1.5b": (28, 1536, 8960, 12, 2, 151_936),
}
TOKENS = {"tiny": 32, "300m": 1024, "1.5b": 1024}
QUESTIONS = {"tiny": 4, "300m": 32, "1.5b": 32}
TOGETHER = 8192  # tokens of a micro-batch; TRL gets as many in responses of full length
STEPS = 3  # the first is warm-up
MEASURED = ("grad/variance", "grad/square", "grad/norm_rl")  # in every update
NEAR = 0.05  # nats a token, on average, between engines that compute in bfloat16
ASLEEP = 3 * GIB  # what a sleeping engine may keep: its CUDA context and graphs


@dataclass(frozen=True)
class Way:
    """One way to train: what it is called, and what it is done with."""

    name: str
    recipe: Recipe
    resources: Resources
    in_shards: bool = False


def main() -> None:
    """Goes every way that this machine can, with each size, and fails if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["300m", "1.5b"])
    sizes = parser.parse_args().size
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{name}, torch {torch.__version__}, {torch.cuda.device_count()} GPUs")
    failures = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            model = made(size, Path(folder))
            found = [what for way in ways(recipe_of(model, size)) for what in checked(way)]
            failures += [f"{size}, {what}" for what in (*found, *beside_trl(model, size))]
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
    model = Qwen2ForCausalLM(config)
    print(f"{size}: {model.num_parameters():,} parameters")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe_of(model: str, size: str) -> Recipe:
    """GRPO with updates large enough that a stale engine would be seen."""
    return Recipe(
        model,
        Data("arithmetic"),
        upge.reinforce(),  # random answers are all wrong: GRPO's advantage would be 0
        questions=QUESTIONS[size],
        rollouts=GROUP,
        sampling=Sampling(max_tokens=TOKENS[size]),
        optimizer=Optimizer(learning_rate=1e-4),
        dtype="bfloat16",
    )


def ways(recipe: Recipe) -> Iterator[Way]:
    """Each way that this machine has what it needs for."""
    vllm = replace(recipe, sampling=replace(recipe.sampling, engine="vllm"))
    one = Resources(tokens=TOGETHER)
    yield Way("transformers", recipe, one)
    yield Way("transformers, layers recomputed", recipe, with_fields(one, recompute=True))
    yield Way("transformers, in shards (FSDP2, one process)", recipe, one, in_shards=True)
    if find_spec("vllm") is None:
        print("left out: vLLM is not installed (pip install 'post-training-workbench[vllm]')")
        return
    yield Way("vLLM beside the trainer", vllm, one)
    if torch.cuda.device_count() < 2:
        print("left out: vLLM apart, and over two GPUs, need two GPUs")
        return
    yield Way("vLLM apart", vllm, with_fields(one, gpus=2, engine_apart=True))
    yield Way("vLLM over two GPUs", vllm, with_fields(one, gpus=2, tensor_parallel=2))


def checked(way: Way) -> list[str]:
    """Takes the steps, prints what they took, and returns what was wrong."""
    gc.collect()  # what the way before it left is no part of its peak
    alone = sharded_alone(way.resources) if way.in_shards else nullcontext(ALONE)
    with tempfile.TemporaryDirectory() as folder, alone as team:
        run = run_of(Path(folder), way.recipe, 0)
        run.create(way.recipe, 0)
        trainer = open_checkpoint(run, 0, way.resources, team=team)
        with closing(trainer.engine):
            return [f"{way.name}: {what}" for what in _measured(way.name, trainer)]


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
    apart = found["ratio/engine_mismatch"]
    print(f"{way}: rollout {drawn:,.0f} tokens/s, update {trained:,.0f} tokens/s, "
          f"mismatch {apart:.2g} nats a token")  # fmt: skip
    print(f"  {_utilization(trainer, trained)}")
    wrong += _odd_statistics({k: v for k, v in found.items() if k.startswith("grad/")})
    if apart > NEAR:
        wrong.append(f"log-probabilities differ by {apart:.3f} nats a token, over {NEAR}")
    if not _follows(trainer):
        wrong.append("the engine does not draw with the weights that the trainer has")
    if on_gpu:
        _print_memory(trainer)
        wrong += _awake(trainer)
    return wrong


def _odd_statistics(found: dict[str, float]) -> list[str]:
    """Prints the live statistics of the gradient; what is missing or not finite of them."""
    print(f"  gradient: {', '.join(f'{key} {value:.3g}' for key, value in found.items())}")
    every = {**dict.fromkeys(MEASURED, math.nan), **found}
    odd = [key for key, value in every.items() if not math.isfinite(value)]
    return [f"{', '.join(odd)} missing or not finite"] if odd else []


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
    ended = _now()
    batch_statistics(trainer.method, sequences, batch, tally)
    tokens = sum(len(s.response) for s in sequences)
    whole = tokens + sum(len(s.prompt) for s in sequences)
    return tokens / (middle - began), whole / (ended - graded)


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


def _utilization(trainer: Trainer, rate: float) -> str:
    """Of the device's peak arithmetic, what a model needs for as many tokens a second."""
    device, shape = device_here(trainer.resources), shape_of(trainer.recipe.base)
    if device is None or shape is None:
        return "model FLOP utilization unknown: the peak arithmetic of this device is not known"
    share = 6 * shape.multiplied * rate / device.dense[trainer.recipe.dtype]
    return f"model FLOP utilization of the update {share:.1%}"


def _print_memory(trainer: Trainer) -> None:
    device, shape = device_here(trainer.resources), shape_of(trainer.recipe.base)
    peak = torch.cuda.max_memory_allocated()
    print(f"  the trainer's own peak {peak / GIB:.1f} GiB")
    if device is None or shape is None or trainer.team.mesh is not None:
        return  # nothing is estimated of shards that one process has all of
    plan = memory(trainer.recipe, trainer.resources, shape, device)
    guess = seconds(trainer.recipe, trainer.resources, shape, device)
    print(f"  estimated {plan.peak / GIB:.1f} GiB with the engine, {guess.rollout_rate:,.0f} and "
          f"{guess.update_rate:,.0f} tokens/s")  # fmt: skip


def _awake(trainer: Trainer) -> list[str]:
    """What a sleeping engine keeps of the GPU, if that is too much."""
    if trainer.recipe.sampling.engine != "vllm" or trainer.resources.engine_apart:
        return []
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    others = whole - free - torch.cuda.memory_reserved()
    print(f"  asleep, the engine leaves all but {others / GIB:.1f} GiB")
    return [f"a sleeping engine keeps {others / GIB:.1f} GiB"] if others > ASLEEP else []


# --- beside TRL -----------------------------------------------------------------------------------


def beside_trl(model: str, size: str) -> list[str]:
    """Takes whole steps with the workbench and with TRL, prints both, returns what was wrong."""
    if find_spec("trl") is None:
        print("left out: TRL is not installed, so no step is compared with one of its own "
              "(pip install 'post-training-workbench[bench]')")  # fmt: skip
        return []
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    work = Workload(TOKENS[size], ends=True, graded=False)
    rows = min(QUESTIONS[size] * GROUP, TOGETHER // TOKENS[size])
    setting = Setting(model, work, "bfloat16", "auto", 1, QUESTIONS[size], rows, TOGETHER)
    taken = {}
    for name, body in (("the workbench", workbench), ("TRL", trl)):
        side = Side(body, setting)
        try:
            side.take()  # warm-up
            taken[name] = [side.take() for _ in range(STEPS)]
        except EOFError:
            return [f"{name} ended without taking its steps, for the reason above"]
        side.end()
        middle, tokens = median(taken[name]), median(taken[name], "tokens")
        allocated = taken[name][-1].allocated / GIB
        print(f"a whole step of {name}: {middle:.2f} s, {tokens:,.0f} tokens, "
              f"{tokens / middle:,.0f} tokens/s"
              f"{f', at most {allocated:.1f} GiB of the GPU' if allocated else ''}")  # fmt: skip
    print(f"  TRL takes {ratio(*taken.values()):.2f} times as long")
    return []


if __name__ == "__main__":
    main()
