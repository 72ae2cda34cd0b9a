"""A whole training step of the workbench beside TRL's: rollouts, grading, update.

    pip install 'post-training-workbench[bench]'
    python benchmarks/step.py                  # all workloads, fp32 and bf16, 5 steps of each
    python benchmarks/step.py --steps 15 --workloads full-length --dtypes fp32
    python benchmarks/step.py --profile        # and what kinds of operators take, in a slower step

Dr. GRPO without a KL term, 32 prompts with 8 responses each, one optimizer step with the learning
rate 0, so that every step is the same work. Each trainer is in a process of its own and takes its
steps in turn with the other: what else the machine does, it does to both. Both get the same model
folder, prompts, limit, dtype and threads; each is as it comes, but that TRL does without gradient
checkpointing, which would cost it time, and takes its responses `--trl-rows` at a time.

    full-length   64 tokens each: the end is a token that the model never says
    realistic     as the model ends by itself, at most 128
    own verdicts  the same, graded by what is right; the workbench passes over questions whose
                  responses are all right or all wrong, which add nothing to the gradient

In the first two every second response counts as right, so that every one has a gradient.
"""

import argparse
import itertools
import logging
import os
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from sides import GROUP, PROMPTS, Side, Turns, median, model_in, ratio, shares

from workbench import Data, Optimizer, Recipe, Resources, Sampling, Validation, upge
from workbench.problems import Verdict, loaders
from workbench.problems.verifier import ExactMatch, Verifier
from workbench.provenance import cores
from workbench.records import Row, Run, run_of
from workbench.schema import File

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
NAMES = ("workbench", "TRL")
PARTS = ("rollout", "grade", "estimate", "update")


@dataclass(frozen=True)
class Workload:
    """What the responses are like: how long at most, whether they end, what counts as right."""

    tokens: int
    ends: bool
    graded: bool


@dataclass(frozen=True)
class Setting:
    """What both sides are given.

    Attributes:
        model: folder.
        workload: see there.
        dtype: of the arithmetic, as a `Recipe` takes it.
        device: `cpu`, or `auto` for a GPU where there is one.
        threads: of the processor.
        questions: prompts a step; each is answered `GROUP` times.
        rows: responses that TRL learns from at a time.
        together: tokens of a micro-batch of the workbench; None takes its own.
    """

    model: str
    workload: Workload
    dtype: str
    device: str = "cpu"
    threads: int = 1
    questions: int = PROMPTS
    rows: int = 64
    together: int | None = None


WORKLOADS = {
    "full-length": Workload(tokens=64, ends=False, graded=False),
    "realistic": Workload(tokens=128, ends=True, graded=False),
    "own verdicts": Workload(tokens=128, ends=True, graded=True),
}


class EverySecond(Verifier):
    """Every second response is right, whatever it says."""

    interprets: ClassVar[bool] = False

    def __call__(self, response: str, gold: str) -> Verdict:
        return Verdict.CORRECT if next(_calls) % 2 else Verdict.WRONG


_calls = itertools.count()


def main() -> None:
    """Prints a line of ratios for each workload and dtype, then where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--trl-rows", type=int, default=64)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    print(f"{cores()} cores, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    for workload, dtype in itertools.product(options.workloads, options.dtypes):
        with tempfile.TemporaryDirectory() as folder:
            work = WORKLOADS[workload]
            setting = Setting(
                model_in(Path(folder), work.ends),
                work,
                DTYPES[dtype],
                threads=options.threads,
                rows=options.trl_rows,
            )
            sides = [Side(workbench, setting), Side(trl, setting)]
            print(f"{workload} {dtype}: ", end="")
            compare(sides, options.steps)
            if options.profile:
                profile(sides)
            for side in sides:
                side.end()


def compare(sides: list[Side], steps: int) -> None:
    """Lets both take their steps in turn, and prints what they took."""
    for side in sides:
        side.take()  # warm-up
    taken = []
    for step in range(steps):  # who goes first takes turns as well
        order = sides[:: 1 if step % 2 == 0 else -1]
        found = {id(side): side.take() for side in order}
        taken.append([found[id(side)] for side in sides])
    ours, theirs = zip(*taken, strict=True)
    print(f"{ratio(ours, theirs):.2f}x")
    print(
        f"    {ratio(ours, theirs, 'processor'):.2f}x in processor seconds, "
        f"{sides[0].peak / sides[1].peak:.2f} of the memory"
    )
    for name, found, side in zip(NAMES, (ours, theirs), sides, strict=True):
        seconds = [step.seconds for step in found]
        print(
            f"    {name}: {median(found):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
            f"{median(found, 'processor'):.3f} processor seconds, "
            f"{median(found, 'tokens') / (PROMPTS * GROUP):.1f} tokens a response, "
            f"peak memory {side.peak:,.0f} MB"
        )
    parts = {part: statistics.median(step.parts[part] for step in ours) for part in PARTS}
    print(f"    workbench by part: {shares(parts, median(ours))}", flush=True)


def profile(sides: list[Side]) -> None:
    """Has each take one more step, and prints what kinds of operators take of it."""
    for name, side in zip(NAMES, sides, strict=True):
        found = side.take("profile")
        print(f"    {name} by operator: {shares(found.parts, found.seconds)}", flush=True)


def workbench(turns: Turns, setting: Setting) -> None:
    """The workbench's process: its own training loop, records and live statistics and all."""
    from workbench.training.loop import train
    from workbench.training.opening import open_checkpoint

    torch.set_num_threads(setting.threads)
    work, steps = setting.workload, 10_000
    recipe = Recipe(
        setting.model,
        Data("arithmetic", train=setting.questions),
        upge.dr_grpo(work.tokens),
        steps=steps,
        questions=setting.questions,
        rollouts=GROUP,
        sampling=Sampling(max_tokens=work.tokens),
        optimizer=Optimizer(learning_rate=0.0),
        validation=Validation(every=steps, samples=1, problems=1),
        dtype=setting.dtype,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(Path(folder), recipe, 0)
        run.create(recipe, 0)
        resources = Resources(
            device=setting.device,
            threads=setting.threads,
            tokens=setting.together,
            checkpoint_every=steps,
        )
        trainer = open_checkpoint(run, 0, resources)
        if not work.graded:
            trainer.data = replace(trainer.data, verifier=EverySecond())
        reported = 0

        def take_turns() -> bool:
            """Called before every token too, when the step under way is not yet over."""
            nonlocal reported
            if trainer.progress.step > reported:
                reported = trainer.progress.step
                row = recorded(run, reported)
                parts = {part: row[f"time/{part}"] for part in PARTS}
                turns.done(round(row["length/all"] * setting.questions * GROUP), parts)
                turns.wait()
            return False

        turns.wait()
        train(trainer, run, stopping=take_turns)


def recorded(run: Run, step: int) -> Row:
    """The line of a step, once it is written: here, for nothing of it to be left to TRL's turn.

    Raises:
        TimeoutError: it is not there after a minute.
    """
    deadline = time.monotonic() + 60
    while (run.path / File.METRICS).read_bytes().count(b"\n") <= step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the line of step {step} is not written")
        time.sleep(1e-4)
    return run.rows()[step]


def trl(turns: Turns, setting: Setting) -> None:
    """TRL's process: `GRPOTrainer` with a callback that takes turns."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    disable_progress_bar()

    torch.set_num_threads(setting.threads)
    work, steps = setting.workload, 1000
    data = loaders.load(Data("arithmetic", train=setting.questions))
    tokens: list[int] = []  # of each step

    def reward(completions: list[str], completion_ids: Any, answer: Any, **_: Any) -> Any:
        """1 where the response is right."""
        tokens.append(sum(map(len, completion_ids)))
        verifier = ExactMatch() if work.graded else EverySecond()
        pairs = zip(completions, answer, strict=True)
        return [float(verifier(*pair) is Verdict.CORRECT) for pair in pairs]

    class Turning(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.done(tokens[-1], {})
            turns.wait()

    rows = [{"prompt": data.prompt(p.question), "answer": p.answer} for p in data.train]
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder,
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            num_generations=GROUP,
            per_device_train_batch_size=setting.rows,
            gradient_accumulation_steps=setting.questions * GROUP // setting.rows,
            max_completion_length=work.tokens,
            learning_rate=0.0,
            max_steps=steps,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=setting.dtype == "bfloat16",
            use_cpu=setting.device == "cpu" or not torch.cuda.is_available(),
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            setting.model,
            reward,
            settings,
            train_dataset=Dataset.from_list(rows * steps),
            callbacks=[Turning()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
