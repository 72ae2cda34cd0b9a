"""The paper's experiment as whole recipes: as its text has it, and as its released code runs it.

"Towards a Unified View of Large Language Model Post-Training" (2509.04419): 500 steps of 128
questions with 8 rollouts each at temperature 1, up to 8,192 tokens, AdamW at a constant rate. Its
data are `workbench.problems.published.openr1_math_46k()`, its base models Qwen2.5-Math
(`long_qwen`) and Llama-3.1-8B. `paper_arms` are all that it trains on one of them;
`hpt_paper` and `hpt_released` differ where the released code departs from the text.

Two of its departures are not offered. The checkpoint that was best on benchmarks that are reported:
here the last one is tested. An entropy bonus that grows with the number of micro-batches, that is
with a memory setting: here it is one mean over the step.
"""

from dataclasses import dataclass
from typing import Any

from workbench import upge
from workbench.identity import nearest, replace
from workbench.problems.corpus import Corpus
from workbench.recipe import Data, Evaluation, Model, Optimizer, Recipe, Sampling, Validation

STEPS, QUESTIONS, ROLLOUTS, MAX_TOKENS = 500, 128, 8, 8192
RANKS = 8  # GPUs, each of which sums the losses of its own sequences
RATE = 5e-6
WEIGHT_DECAY = 0.01  # the released code's; the text names none
NO_CLIP = 1e9  # a gradient norm that is never reached


FEW = ("aime24", "aime25", "amc23")  # suites of 30 to 40 problems: avg@32, and Pass@k
EVALUATION = Evaluation(samples=1, more=tuple((name, 32) for name in FEW), max_tokens=MAX_TOKENS)
DRAWN_BY_VLLM = Sampling(max_tokens=MAX_TOKENS, engine="vllm")
PASS_AT_K = Evaluation(samples=2048, suites=FEW, max_tokens=MAX_TOKENS)


def long_qwen(name: str) -> Model:
    """Qwen2.5-Math, which reads 4,096 tokens, made to read 16,384 as the paper and LUFFY do."""
    return Model(name, rope_theta=40_000.0, positions=16_384)


def paper_arms(
    model: str | Model, data: Data | Corpus, gate: float = 0.0, **changes: Any
) -> dict[str, Recipe]:
    """Every arm of the paper on one base model, in the text's setting, by label.

    The text gives HPT a learning rate and the others none: here all have the same one. SFT->GRPO
    is all of GRPO after all of SFT.

    Args:
        model: to begin with.
        data: with a demonstration of each question.
        gate: HPT imitates the demonstration of a question of which at most this share is solved.
        changes: fields of the recipe that are others in every arm.
    """
    hpt = replace(
        hpt_paper(model, data),
        **{"sampling": DRAWN_BY_VLLM, "validation": Validation(every=50, samples=1), **changes},
    )
    sft, grpo = hpt.using(upge.sft()), hpt.using(upge.grpo())
    return {
        "Base": hpt.using(None),
        "SFT": sft,
        "GRPO": grpo,
        "SFT->GRPO": grpo.start_from(sft),
        "LUFFY": hpt.using(upge.luffy(), rollouts=ROLLOUTS - 1),
        "SRFT": hpt.using(upge.srft()),
        "HPT": hpt.using(upge.hpt(upge.Switch(gate))),
        "HPT, gamma 1/8": hpt.using(upge.hpt(upge.Switch(1 / 8))),
        "HPT, gamma 2/8": hpt.using(upge.hpt(upge.Switch(2 / 8))),
        "OFF/ON": hpt.using(upge.off_on()),
        "Mix/ON": hpt.using(upge.mix_on()),
    }


@dataclass(frozen=True)
class Family:
    """What differs by the family of the base model.

    Attributes:
        solved_at_most: the gate: a question with more right rollouts of 8 trains on them.
        skip_above: gradient norm above which the released script skips an update.
    """

    solved_at_most: int
    skip_above: float | None


FAMILIES = {"qwen": Family(0, 80.0), "llama": Family(2, None)}


def hpt_paper(model: str | Model, data: Data | Corpus, family: str = "qwen") -> Recipe:
    """HPT as the text has it: gated at a share of right rollouts, 0 for Qwen and 2/8 for Llama.

    Raises:
        ValueError: a family other than `qwen` and `llama`.
    """
    gate = upge.Switch(_family(family).solved_at_most / ROLLOUTS)
    return _setting(
        model, data, Optimizer(RATE, weight_decay=WEIGHT_DECAY, max_norm=NO_CLIP)
    ).using(upge.hpt(gate))


def hpt_released(
    model: str | Model,
    data: Data | Corpus,
    family: str = "qwen",
    rollouts: int = ROLLOUTS,
    sft_coefficient: float = 1.0,
    sft_passes: int = 1,
    updates_per_batch: int = 2,
) -> Recipe:
    """HPT as the released code runs it; `upge.hpt_released` says what its losses are.

    The gate is a count: at most 0 (Qwen) or 2 (Llama) right rollouts, whatever their number is.
    Gradients are clipped at norm 1, and updates above 80 are skipped (Qwen).

    Args:
        model: a Hugging Face name, a folder or a `Model`.
        data: with a demonstration of each question.
        family: `qwen` or `llama`.
        rollouts: of a question.
        sft_coefficient: 0.3 for the 1.5B model, which the code says in a comment.
        sft_passes: micro-batches with demonstrations in an update, a consequence of memory there:
            each adds its own mean, so that the SFT loss counts that many times.
        updates_per_batch: there two, and one where the gate leaves 512 sequences or fewer.

    Raises:
        ValueError: a family other than `qwen` and `llama`.
    """
    known = _family(family)
    method = upge.hpt_released(
        upge.Switch(known.solved_at_most / rollouts),
        length=MAX_TOKENS,
        sequences_per_rank=QUESTIONS * rollouts / (RANKS * updates_per_batch),
        sft_coefficient=sft_coefficient,
        sft_passes=sft_passes,
    )
    optimizer = Optimizer(RATE, weight_decay=WEIGHT_DECAY, skip_above=known.skip_above)
    return _setting(model, data, optimizer).using(
        method, rollouts=rollouts, updates_per_batch=updates_per_batch
    )


def _setting(model: str | Model, data: Data | Corpus, optimizer: Optimizer) -> Recipe:
    return Recipe(
        model,
        data,
        steps=STEPS,
        questions=QUESTIONS,
        rollouts=ROLLOUTS,
        sampling=Sampling(temperature=1.0, max_tokens=MAX_TOKENS),
        optimizer=optimizer,
        dtype="bfloat16",
    )


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}; {nearest(name, FAMILIES)}")
    return FAMILIES[name]
