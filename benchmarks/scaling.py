"""How cost grows: with group size, response length, model size and the number of runs.

    python benchmarks/scaling.py               # all four tables as Markdown; --rounds

A training step (8 questions, Dr. GRPO, every second response counts as right) of the embedded
model, with responses that never end before their limit, and of random models of its architecture.
Processor seconds with one thread; the sizes of a table take their steps in turn, and the median of
the rounds counts. Below each table is b of the fit cost = a size^b, by least squares of logarithms,
with the 95% interval of a line through so few points.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from load import record
from scipy import stats
from sides import model_in
from step import EverySecond

import analysis
from workbench import Data, Evaluation, Optimizer, Recipe, Resources, Sampling, Study, plan, upge
from workbench.compact import write_tables
from workbench.records import run_of
from workbench.training.opening import open_checkpoint
from workbench.training.sampling import grade, sample
from workbench.training.scoring import collate
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer
from workbench.training.update import update

QUESTIONS, GROUP, TOKENS = 8, 8, 64
GROUPS = (2, 4, 8, 16, 32)
LENGTHS = (16, 32, 64, 128, 256)
WIDTHS = (64, 128, 256, 512)  # of the hidden state; the layers are always 4
RUNS = (50, 100, 200, 400)

Parts = dict[str, float]  # seconds of each part
Key = TypeVar("Key", int, str)  # a size, or the name of what is tried


def main() -> None:
    """Measures and prints the four tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        never = model_in(root, ends=False)
        groups = {n: opened(root, never, n, TOKENS) for n in GROUPS}
        table("rollouts a question", steps_of(groups, rounds))
        lengths = {n: opened(root, never, GROUP, n) for n in LENGTHS}
        table("tokens a response", steps_of(lengths, rounds))
        wider = {w: widened(root / f"wide-{w}", never, w) for w in WIDTHS}
        models = [opened(root, model, GROUP, TOKENS) for model in wider.values()]
        table("parameters", steps_of({parameters(m): m for m in models}, rounds))
        table("runs", loads(root, rounds))


def opened(root: Path, model: str, group: int, tokens: int) -> Trainer:
    """A trainer of a model with some rollouts a question, of some tokens each."""
    recipe = Recipe(
        model,
        Data("arithmetic", train=600),
        upge.dr_grpo(tokens),
        questions=QUESTIONS,
        rollouts=group,
        sampling=Sampling(max_tokens=tokens),
        optimizer=Optimizer(learning_rate=0.0),
    )
    run = run_of(Path(tempfile.mkdtemp(dir=root)), recipe, 0)
    run.create(recipe, 0)
    trainer = open_checkpoint(run, 0, Resources(device="cpu"))
    trainer.data = replace(trainer.data, verifier=EverySecond())
    return trainer


def widened(folder: Path, like: str, width: int) -> str:
    """The folder of a random model of another width, with the tokenizer of the one it is like."""
    config = transformers.AutoConfig.from_pretrained(like)
    config.hidden_size, config.intermediate_size = width, 4 * width
    config.num_attention_heads = config.num_key_value_heads = width // 32
    transformers.AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig.from_pretrained(like)
    model.save_pretrained(folder)
    return str(folder)


def parameters(trainer: Trainer) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for _, p in trainer.policy.parameters())


def steps_of(trainers: Mapping[int, Trainer], rounds: int) -> dict[int, Parts]:
    """Seconds of the parts of a training step, by size."""
    sizes = {size: lambda trainer=trainer: one_step(trainer) for size, trainer in trainers.items()}
    return in_turn(sizes, rounds)


def one_step(trainer: Trainer, clock: Callable[[], float] = time.process_time) -> Parts:
    """Seconds, by some clock, of one step's rollouts and of what is learnt from them."""
    problems = list(trainer.data.train[:QUESTIONS])
    began = clock()
    rollouts = sample(trainer, problems, 1)
    drawn = clock()
    sequences = grade(trainer, problems, rollouts)
    update(trainer, sequences, collate(trainer, sequences), Tally())
    return {"rollouts": drawn - began, "update": clock() - drawn}


def loads(root: Path, rounds: int) -> dict[int, Parts]:
    """Seconds to plan studies of finished runs, and to load their histories, by number of runs."""
    studies = {}
    for count in RUNS:
        base = Recipe("arithmetic-1m", Data("arithmetic"), upge.sft(), steps=200)
        study = Study("many", {"SFT": base}, range(count), Evaluation(suites=("chain",)))
        record(study, root / f"runs-{count}")
        for job in plan.jobs(study, root / f"runs-{count}"):
            write_tables(job.run, job.run.path)
        studies[count] = study

    def one(count: int) -> Parts:
        place = root / f"runs-{count}"
        began = time.process_time()
        for job in plan.jobs(studies[count], place):
            plan.status(job)
        planned = time.process_time()
        assert len(analysis.runs(studies[count], place).history) == 200 * count
        return {"plan": planned - began, "load": time.process_time() - planned}

    return in_turn({count: lambda count=count: one(count) for count in RUNS}, rounds)


def in_turn(sizes: Mapping[Key, Callable[[], Parts]], rounds: int) -> dict[Key, Parts]:
    """The median seconds of every part, after one round that does not count."""
    taken = [{size: take() for size, take in sizes.items()} for _ in range(rounds + 1)][1:]
    return {
        size: {
            part: statistics.median(each[size][part] for each in taken) for part in taken[0][size]
        }
        for size in sizes
    }


def table(what: str, found: Mapping[int, Parts]) -> None:
    """Prints the seconds by size, and how each part grows."""
    parts = list(next(iter(found.values())))
    print(f"\n| {what} | {' | '.join(f'{part}, s' for part in parts)} |")
    print(f"| ---: |{' ---: |' * len(parts)}")
    for size, seconds in found.items():
        print(f"| {size:,} | {' | '.join(f'{seconds[part]:.3f}' for part in parts)} |")
    grows = [exponent(list(found), [each[part] for each in found.values()]) for part in parts]
    print(f"| exponent | {' | '.join(grows)} |", flush=True)


def exponent(sizes: list[int], seconds: list[float]) -> str:
    """The slope of the logarithms with its 95% interval."""
    found: Any = stats.linregress(np.log(sizes), np.log(seconds))
    half = stats.t.ppf(0.975, len(sizes) - 2) * found.stderr
    return f"{found.slope:.2f} ({found.slope - half:.2f} to {found.slope + half:.2f})"


if __name__ == "__main__":
    main()
