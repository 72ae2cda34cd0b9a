"""Does HPT beat its baselines on Qwen2.5-Math-7B, as Table 2 of the paper reports, and why?

    workbench plan studies/large/qwen_7b.py --on h200    # memory, time and what is not here
    workbench doctor studies/large/qwen_7b.py            # what this machine lacks for it
    workbench run studies/large/qwen_7b.py               # on eight GPUs
    workbench report studies/large/qwen_7b.py            # its tables and figures

All is as in qwen_1_5b.py but for the model and what is drawn: Figures 2 to 7, and for Figures 3 and
4 a run of its own, in which each of 255 problems of MATH is met again in every epoch of three
steps. Weights, gradients and AdamW's moments of this model take 113 GiB, so that eight processes
train it together, on a GPU each. Not run yet; docs/large-models.md has the arithmetic.
"""

from analysis import PassAtK, RolloutGrid, dynamics, paper
from workbench import Evaluation, Resources, Study, presets
from workbench.problems import published

MODEL = presets.long_qwen("Qwen/Qwen2.5-Math-7B")
DATA = published.openr1_math_46k()
RESOURCES = Resources(
    device="cuda", gpus=8, processes=8, tokens=9216, recompute=True, patience=7200.0
)

MAIN = ("Base", "SFT", "GRPO", "SFT->GRPO", "LUFFY", "SRFT", "HPT")
SEEN = ("SFT->GRPO", "HPT")

arms = presets.paper_arms(MODEL, DATA)
compared = {label: arms[label] for label in MAIN}

main = Study("qwen-7b", compared, evaluation=presets.EVALUATION, resources=RESOURCES)
outputs = paper(main, MAIN)
beyond = dynamics(main)

pass_at_k = Study("qwen-7b-pass-at-k", compared, (0,), presets.PASS_AT_K, resources=RESOURCES)
figure_2 = PassAtK("figure-2", pass_at_k, title="Pass@k up to 1,024")

again = presets.paper_arms(MODEL, published.math(train=255), questions=85, steps=150)
# Its figures are of the rollouts of training; one answer to each test problem says how it went.
seen = Study(
    "qwen-7b-seen",
    {label: again[label] for label in SEEN},
    evaluation=Evaluation(samples=1),
    resources=RESOURCES,
)
figure_3 = RolloutGrid("figure-3", seen, arms=SEEN, title="Training rollout accuracy")
figure_4 = RolloutGrid("figure-4", seen, "SFT->GRPO", arms=("HPT",), title="HPT minus SFT->GRPO")
