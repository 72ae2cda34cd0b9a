"""The transformers engine beside transformers' own `generate`: tokens a second.

    python benchmarks/rollout.py               # 5 calls of each; --steps, --threads

Each is in a process of its own and they take turns. A call draws 8 responses to each of the same 32
prompts from the embedded model in float32, at temperature 1: 64 tokens each with an end token that
the model never says, and up to 128 as it ends by itself. Tokens after the end do not count. Then
both answer 64 other prompts with the most probable tokens, which are compared.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from sides import DATA, GROUP, PROMPTS, Side, Turns, median, model_in, ratio

from workbench import replace
from workbench.models import locate
from workbench.problems import Dataset, loaders
from workbench.provenance import cores
from workbench.rollout import Request
from workbench.rollout.engine import Decoding
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.training.data import prompt_ids
from workbench.training.policy import Policy, load_policy

WORKLOADS = {"full-length": (64, False), "realistic": (128, True)}
GREEDY_PROMPTS = 64
GREEDY = 1e-6  # a temperature at which rounding alone could draw another than the likeliest token
NAMES = ("engine", "generate")

Tokens = list[list[int]]


def main() -> None:
    """Prints rates and their ratio for each workload, then how many greedy responses are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    print(f"{cores()} cores, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    for workload, (tokens, ends) in WORKLOADS.items():
        with tempfile.TemporaryDirectory() as folder:
            setting = (model_in(Path(folder), ends), tokens, options.threads)
            sides = [Side(contestant, name, *setting) for name in NAMES]
            for side in sides:
                side.take()  # warm-up
            taken = [[side.take() for side in sides] for _ in range(options.steps)]
            ours, theirs = zip(*taken, strict=True)
            print(f"{workload} rollouts: {ratio(ours, theirs, 'per_token'):.2f}x", end="")
            for name, found, side in zip(NAMES, (ours, theirs), sides, strict=True):
                print(f", {name} {1 / median(found, 'per_token'):,.0f} tokens/s", end="")
                print(f" ({median(found, 'tokens') / (PROMPTS * GROUP):.1f} a response,", end="")
                print(f" peak memory {side.peak:,.0f} MB)", end="")
                side.end()
            print(flush=True)
    print(greedy())


def contestant(turns: Turns, name: str, model: str, tokens: int, threads: int) -> None:
    """The process of one of the two."""
    torch.set_num_threads(threads)
    policy = opened(model)
    asked = prompts(policy, loaders.load(DATA), PROMPTS)
    draw = {"engine": by_engine, "generate": by_generate}[name]
    while True:
        turns.wait()
        found = draw(policy, asked, GROUP, tokens, greedy=False)
        turns.done(sum(map(len, found)), {})


def opened(model: str) -> Policy:
    """The model in a folder, as training opens it."""
    return load_policy(model, torch.device("cpu"), "float32", temperature=1.0, values=False)


def prompts(policy: Policy, data: Dataset, count: int) -> Tokens:
    """The first of the data's prompts, as tokens."""
    problems = data.train[:count]
    return [list(prompt_ids(policy.tokenizer, data.prompt, p.question)) for p in problems]


def by_engine(policy: Policy, asked: Tokens, samples: int, tokens: int, greedy: bool) -> Tokens:
    """Responses of the workbench's engine."""
    requests = [Request(tuple(each), samples, seed) for seed, each in enumerate(asked)]
    engine = TransformersEngine(policy.model, policy.end, policy.pad)
    decoding = Decoding(GREEDY if greedy else 1.0, 1.0, tokens)
    return [list(r.tokens) for found in engine.generate(requests, decoding) for r in found]


def by_generate(policy: Policy, asked: Tokens, samples: int, tokens: int, greedy: bool) -> Tokens:
    """Responses of transformers' `generate`, cut after their first end."""
    model: Any = policy.model.eval()
    inputs = policy.tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
    how = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    found = model.generate(
        **inputs,
        do_sample=not greedy,
        num_return_sequences=samples,
        max_new_tokens=tokens,
        **how,
    )
    (end,) = policy.end
    responses = found[:, inputs["input_ids"].shape[1] :].tolist()
    return [r[: r.index(end) + 1] if end in r else r for r in responses]


def greedy() -> str:
    """How many greedy responses to prompts of the data are equal, token by token."""
    policy = opened(locate("arithmetic-1m"))
    asked = prompts(policy, loaders.load(replace(DATA, train=GREEDY_PROMPTS)), GREEDY_PROMPTS)
    ours, theirs = (draw(policy, asked, 1, 128, greedy=True) for draw in (by_engine, by_generate))
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return f"greedy: {equal} of {len(asked)} responses are equal, {sum(map(len, ours)):,} tokens"


if __name__ == "__main__":
    main()
