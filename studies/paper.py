"""Which claims of "Towards a Unified View of LLM Post-Training" hold in a world of one core?

    workbench run studies/paper_learning_rates.py    # first: the learning rate of every arm
    workbench plan studies/paper.py                  # list the runs and what they cost
    workbench run studies/paper.py                   # train the runs that have no finished record
    workbench report studies/paper.py                # every table and figure from the records

Every arm has the same questions and the same number of optimizer steps, and a learning rate that
the same small search chose for it by validation accuracy on a seed of its own. SFT->GRPO starts at
SFT's half-way checkpoint and has the other half of the steps. What is tested is the last
checkpoint, never one chosen by a test suite. The main comparison has 8 seeds, because a sign-flip
test of 6 comparisons cannot reach 0.05 with fewer; all else has 3 and is descriptive. Comparisons
are declared here, before the runs. The two changes, of the offline ratio and of the length, are
not: they were declared after the runs of the main comparison.
"""

from collections.abc import Mapping

from analysis import AcrossSuites, Change, Comparison, Table, dynamics, paper
from analysis.paper import off_policy, thresholds
from workbench import Data, Evaluation, Optimizer, Recipe, Study, Validation, replace, upge

STEPS = 48
PASS = 256
HARD = ("mixed", "nesting")  # the suites that large-k Pass@k is measured on

# As `workbench report studies/paper_learning_rates.py` prints them, best by validation accuracy.
RATES = {
    "SFT": 1e-3,
    "GRPO": 5e-4,
    "SFT->GRPO": 5e-4,
    "LUFFY": 5e-4,
    "SRFT": 5e-4,
    "HPT": 5e-4,
    "HPT, gamma 1/8": 5e-4,
    "HPT, gamma 2/8": 5e-4,
    "OFF/ON": 2e-3,
    "Mix/ON": 5e-4,
}


def base_of(model: str) -> Recipe:
    """What all arms on a base model have in common; each question is met three times."""
    return Recipe(
        model,
        Data("arithmetic", train=256),
        steps=STEPS,
        questions=16,
        rollouts=8,
        validation=Validation(every=8, samples=4),
    )


def arms_of(base: Recipe, rates: Mapping[str, float]) -> dict[str, Recipe]:
    """The arms that have a learning rate, and the base, by label."""
    sft, grpo = base.using(upge.sft()), base.using(upge.grpo())
    start = rated(sft, rates["SFT"])
    trained = {
        "SFT": sft,
        "GRPO": grpo,
        "SFT->GRPO": replace(grpo, steps=STEPS // 2).start_from(start, step=STEPS // 2),
        "LUFFY": base.using(upge.luffy(), rollouts=7),
        "SRFT": base.using(upge.srft()),
        "HPT": base.using(upge.hpt()),
        "HPT, gamma 1/8": base.using(upge.hpt(gate=upge.Switch(at_most=1 / 8))),
        "HPT, gamma 2/8": base.using(upge.hpt(gate=upge.Switch(at_most=2 / 8))),
        "OFF/ON": base.using(upge.off_on()),
        "Mix/ON": base.using(upge.mix_on()),
    }
    return {"Base": base} | {label: rated(trained[label], rate) for label, rate in rates.items()}


def rated(recipe: Recipe, rate: float) -> Recipe:
    """The recipe at a learning rate."""
    return replace(recipe, optimizer=Optimizer(learning_rate=rate))


METHODS = ("Base", "SFT", "GRPO", "SFT->GRPO", "LUFFY", "SRFT", "HPT")
PARADIGMS = {"OFF/ON": "OFF/ON", "Mix/ON": "Mix/ON", "HPT": "SFT/ON"}
GATES = {"HPT, gamma 2/8": "0.25", "HPT, gamma 1/8": "0.125", "HPT": "0.0"}

arms = arms_of(base_of("arithmetic-1m"), RATES)
evaluation = Evaluation(samples=16, more=tuple((suite, PASS) for suite in HARD))

main = Study("paper", {each: arms[each] for each in METHODS}, range(8), evaluation)

outputs = paper(main, METHODS)
gains = Comparison(
    "gains", main, tuple(each for each in METHODS if each != "HPT"), arms=["HPT"],
    title="Is HPT above its baselines?",
)  # fmt: skip
large_k = Comparison(
    "large-k", main, "GRPO", suites=HARD, k=PASS,
    arms=["SFT", "SFT->GRPO", "LUFFY", "SRFT", "HPT"],
    title="Is Pass@k at large k higher where there is SFT?",
)  # fmt: skip
entropy = Comparison("entropy", main, "GRPO", "policy/entropy", arms=["HPT"])
length = Comparison("length", main, "GRPO", "length/all", arms=["HPT"])
# Declared after the runs: until then these two claims of the paper had no number here.
falling = Change(
    "offline-ratio", main, "offline/sequences", arms=["HPT"],
    title="Does the offline ratio fall? Declared after the runs",
)  # fmt: skip
growing = Change(
    "length-growth", main, "length/all", ((0, 1 / 4), (3 / 8, 5 / 8), (3 / 4, 1)),
    arms=["HPT", "GRPO"], title="Does the length grow, and stay? Declared after the runs",
)  # fmt: skip
across = AcrossSuites("across-suites", main, "GRPO")
beyond = dynamics(main)

ablation = Study(
    "paper-ablations",
    {each: arms[each] for each in ("HPT", "OFF/ON", "Mix/ON", "HPT, gamma 1/8", "HPT, gamma 2/8")},
    range(3),
    evaluation,
)

paradigms = off_policy(ablation, PARADIGMS)
gates = thresholds(ablation, GATES)
imitation = Comparison("sft-on", ablation, ("OFF/ON", "Mix/ON"), arms=["HPT"])
gamma = Comparison("gamma", ablation, "HPT", arms=["HPT, gamma 1/8", "HPT, gamma 2/8"])

# Table 3: other base models, at the learning rates that the first base chose. All suites are
# answered alike, for nothing here is about Pass@k.
OTHERS = ("Base", "SFT", "GRPO", "LUFFY", "HPT")


def on_base(model: str) -> dict[str, Recipe]:
    """The arms of Table 3 on a base model."""
    found = arms_of(base_of(model), RATES)
    return {each: found[each] for each in OTHERS}


small = Study("paper-400k", on_base("arithmetic-400k"), range(3), Evaluation(samples=16))
llama = Study("paper-llama", on_base("arithmetic-llama-1m"), range(3), Evaluation(samples=16))
other_models = (
    Table(
        "table-3-small", small, reported="table3_qwen1.5b",
        title="Table 3: a smaller Qwen2, 0.4M parameters",
    ),
    Table("table-3-llama", llama, reported="table3_llama8b", title="Table 3: a Llama"),
)  # fmt: skip
