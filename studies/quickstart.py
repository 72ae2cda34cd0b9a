"""Do methods that mix demonstrations and rollouts beat either alone, in ten minutes on a laptop?

    workbench plan studies/quickstart.py      # list the runs and what they cost, start nothing
    workbench run studies/quickstart.py       # train the runs that have no finished record yet
    workbench report studies/quickstart.py    # tables and figures from the records

Six arms and the base on the small arithmetic world, one seed: every arm has the same questions and
the same number of optimizer steps. SFT->GRPO starts at SFT's half-way checkpoint and has the other
half of the steps. One seed shows how the workbench works, not which method is better.
"""

from analysis import Dynamics, Figure, LearningCurves, PassAtK, Table
from workbench import Data, Evaluation, Optimizer, Recipe, Study, Validation, replace, upge

STEPS = 48

base = Recipe(
    "arithmetic-1m",
    Data("arithmetic", train=600),
    steps=STEPS,
    questions=16,
    rollouts=8,
    optimizer=Optimizer(learning_rate=5e-4),
    validation=Validation(every=8, samples=4),
)

sft = base.using(upge.sft())
grpo = base.using(upge.grpo())

arms = {
    "Base": base,
    "SFT": sft,
    "GRPO": grpo,
    "SFT->GRPO": replace(grpo, steps=STEPS // 2).start_from(sft, step=STEPS // 2),
    "LUFFY": base.using(upge.luffy(), rollouts=7),
    "SRFT": base.using(upge.srft()),
    # With GRPO's means on either side of the gate: in the paper's equations RL sums over tokens and
    # SFT averages over them, which weighs the two streams by the length of responses.
    "HPT": base.using(upge.hpt(gate=upge.Switch(at_most=0.0), rollouts=upge.grpo().rollouts)),
}

quickstart = Study(
    "quickstart",
    arms,
    seeds=[0],
    evaluation=Evaluation(samples=16, more=(("mixed", 64),), problems=20),
)

results = Table("results", quickstart)
curves = LearningCurves("learning-curves", quickstart)
dynamics = Dynamics("dynamics", quickstart)
pass_at_k = PassAtK("pass-at-k", quickstart)
offline = Figure("offline-ratio", quickstart, x="step", y="offline/questions")
