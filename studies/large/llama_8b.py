"""Does HPT beat its baselines on Llama-3.1-8B, as Table 3 of the paper reports?

    workbench plan studies/large/llama_8b.py --on h200    # memory, time and what is not here
    workbench doctor studies/large/llama_8b.py            # what this machine lacks for it
    workbench run studies/large/llama_8b.py               # on eight GPUs
    workbench report studies/large/llama_8b.py            # its table and figures

All is as in qwen_1_5b.py but for the model, which reads 131,072 tokens as it is, its prompt, which
is plain text because a base model has no chat template, and the gate: at most 2 of 8 rollouts
right. Eight processes train it together, as in qwen_7b.py. Not run yet.
"""

from analysis import Table, dynamics
from workbench import Resources, Study, presets
from workbench.problems import prompts, published

DATA = published.openr1_math_46k(prompts.llama())
RESOURCES = Resources(
    device="cuda", gpus=8, processes=8, tokens=9216, recompute=True, patience=7200.0
)

arms = presets.paper_arms("meta-llama/Llama-3.1-8B", DATA, gate=2 / 8)
compared = {label: arms[label] for label in ("Base", "SFT", "GRPO", "LUFFY", "HPT")}

main = Study("llama-8b", compared, evaluation=presets.EVALUATION, resources=RESOURCES)
table_3 = Table("table-3", main, reported="table3_llama8b", title="Table 3: accuracy")
beyond = dynamics(main)
