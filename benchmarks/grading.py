"""What a step waits for its verdicts: graded while others are drawn, and after the last is.

    python benchmarks/grading.py               # a Markdown table; --rounds

32 questions of the arithmetic world, new ones in every round, with 8 responses each of the embedded
model, up to 128 tokens as it ends by itself, in float32; Math-Verify grades them in processes of
their own, as it does for mathematics, as many as there are threads. The two ways take turns in one
process, on the same questions with graders of their own; seconds by the clock, the median of the
rounds.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from scaling import Parts, in_turn, opened
from sides import GROUP, PROMPTS, model_in

from workbench.problems import MathMatch, Problem
from workbench.problems.isolation import WORTH_A_PROCESS, Graders, allow, graders
from workbench.provenance import cores
from workbench.rollout import Request
from workbench.training.answers import verdicts
from workbench.training.sampling import answered, prompt_of
from workbench.training.trainer import Trainer

TOKENS = 128


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("| threads | grading | rollouts, s | wait for verdicts, s |")
    print("| ---: | --- | ---: | ---: |")
    for threads in sorted({1, cores()}):
        for name, parts in measured(threads, rounds).items():
            times = f"{parts['rollouts']:.3f} | {parts['wait']:.4f}"
            print(f"| {threads} | {name} | {times} |", flush=True)


def measured(threads: int, rounds: int) -> dict[str, Parts]:
    """Seconds of both ways with some threads."""
    torch.set_num_threads(threads)
    graders.cache_clear()
    allow(threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = opened(Path(folder), model_in(Path(folder), ends=True), GROUP, TOKENS)
        trainer.data = replace(trainer.data, verifier=MathMatch())
        others, turns = Graders(MathMatch(), threads), [count(), count()]
        for each in (others, graders(MathMatch())):
            each([("\\boxed{2}", "2")] * WORTH_A_PROCESS * threads)  # they start
        ways = {
            "while others are drawn": lambda: meanwhile(trainer, next(turns[0])),
            "after the last": lambda: afterwards(trainer, next(turns[1]), others),
        }
        found = in_turn(ways, rounds)
        others.close()
        graders(MathMatch()).close()
        return found


def meanwhile(trainer: Trainer, turn: int) -> Parts:
    """As training does it."""
    problems, requests = questions(trainer, turn)
    began = time.perf_counter()
    rollouts = answered(trainer, problems, requests)
    drawn = time.perf_counter()
    verdicts(trainer.engine, trainer.data, rollouts)
    return {"rollouts": drawn - began, "wait": time.perf_counter() - drawn}


def afterwards(trainer: Trainer, turn: int, others: Graders) -> Parts:
    """As if no answer were there before the last."""
    problems, requests = questions(trainer, turn)
    began = time.perf_counter()
    rollouts = trainer.engine.generate(requests, trainer.decoding)
    drawn = time.perf_counter()
    others(
        [
            (trainer.policy.decode(response.tokens), problem.answer)
            for problem, responses in zip(problems, rollouts, strict=True)
            for response in responses
        ]
    )
    return {"rollouts": drawn - began, "wait": time.perf_counter() - drawn}


def questions(trainer: Trainer, turn: int) -> tuple[list[Problem], list[Request]]:
    """A turn's own, with random numbers of their own."""
    problems = list(trainer.data.train[PROMPTS * turn : PROMPTS * (turn + 1)])
    prompts = [prompt_of(trainer, problem) for problem in problems]
    seeds = range(PROMPTS * turn, PROMPTS * (turn + 1))
    pairs = zip(prompts, seeds, strict=True)
    return problems, [Request(prompt, GROUP, seed) for prompt, seed in pairs]


if __name__ == "__main__":
    main()
