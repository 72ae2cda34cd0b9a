"""Does HPT beat its baselines on Qwen2.5-Math-1.5B, as Tables 3, 5 and 6 of the paper report?

    workbench plan studies/large/qwen_1_5b.py --on h100-80gb    # memory, time and what is not here
    workbench doctor studies/large/qwen_1_5b.py                 # what this machine lacks for it
    workbench run studies/large/qwen_1_5b.py                    # a cell a GPU, all GPUs at once
    workbench report studies/large/qwen_1_5b.py                 # its tables and figures

The setting is the text's (`presets.paper_arms`), the evaluation the paper's: temperature 0.6,
top-p 0.95, avg@32 on AIME and AMC, one answer elsewhere, and for Pass@k 2,048 answers of the same
checkpoints. One seed. Not run yet: docs/large-models.md says what it takes.
"""

from analysis import PassAtK, Table, dynamics
from analysis.paper import off_policy, thresholds
from workbench import Resources, Study, presets
from workbench.problems import published

MODEL = presets.long_qwen("Qwen/Qwen2.5-Math-1.5B")
DATA = published.openr1_math_46k()
# The threads are for the graders, which work while the GPU draws.
RESOURCES = Resources(device="cuda", threads=8, tokens=9216, recompute=True, patience=7200.0)

MAIN = ("Base", "SFT", "GRPO", "LUFFY", "HPT")
PARADIGMS = {"OFF/ON": "OFF/ON", "Mix/ON": "Mix/ON", "HPT": "SFT/ON"}
GATES = {"HPT, gamma 2/8": "0.25", "HPT, gamma 1/8": "0.125", "HPT": "0.0"}

arms = presets.paper_arms(MODEL, DATA)
compared = {label: arms[label] for label in MAIN}
varied = {label: arms[label] for label in {**PARADIGMS, **GATES}}

main = Study("qwen-1-5b", compared, evaluation=presets.EVALUATION, resources=RESOURCES)
table_3 = Table("table-3", main, reported="table3_qwen1.5b", title="Table 3: accuracy")
beyond = dynamics(main)

ablations = Study("qwen-1-5b-ablations", varied, evaluation=presets.EVALUATION, resources=RESOURCES)
table_5 = off_policy(ablations, PARADIGMS)
table_6 = thresholds(ablations, GATES)

pass_at_k = Study("qwen-1-5b-pass-at-k", compared, (0,), presets.PASS_AT_K, resources=RESOURCES)
figure_2 = PassAtK("figure-2", pass_at_k, title="Pass@k up to 1,024")
