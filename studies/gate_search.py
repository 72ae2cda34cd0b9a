"""Where should HPT's gate be, hard or soft, and how much should imitation weigh below it?

    workbench plan studies/gate_search.py       # what is asked for, and what it costs at most
    workbench search studies/gate_search.py     # 36 trials of 3 seeds, then the winner
    workbench status studies/gate_search.py     # every trial and its score
    workbench report studies/gate_search.py     # response curves with intervals, Optuna's plots

The paper has a switch at 0 (Qwen) or 2/8 (Llama) and weighs SFT by 1, by 0.3 for its 1.5B model.
Here Optuna draws a switch's threshold or a soft switch's centre and slope, each with the weight of
SFT, on the small world. Trials are scored on the validation split; the winner and the paper's two
gates are then run on fresh seeds and measured on the test suites. It has run: studies/README.md.
"""

from workbench import (
    Asks,
    Data,
    Evaluation,
    Optimizer,
    Recipe,
    Search,
    Tpe,
    Validation,
    upge,
)

base = Recipe(
    "arithmetic-1m",
    Data("arithmetic", train=600),
    steps=24,
    questions=16,
    rollouts=8,
    optimizer=Optimizer(learning_rate=5e-4),
    validation=Validation(every=12, samples=8),
)
# As HPT has it by default: without a term it could not be weighed.
imitation = upge.Estimator(
    upge.KeepAll(), upge.CurrentPolicy(), upge.Ones(), aggregation=upge.TokenMean()
)


def propose(trial: Asks) -> Recipe:
    """HPT as the text has it, its gate's kind and numbers and the weight of SFT drawn."""
    if trial.suggest_categorical("gate", ["switch", "soft"]) == "switch":
        gate = upge.Switch(trial.suggest_float("at_most", 0.0, 0.875, step=0.125))
    else:
        centre = trial.suggest_float("centre", 0.0, 0.875, step=0.125)
        gate = upge.SoftSwitch(centre, trial.suggest_categorical("slope", [2.0, 8.0, 32.0]))
    weight = trial.suggest_categorical("sft_coefficient", [0.1, 0.3, 1.0, 3.0])
    return base.using(upge.hpt(gate, demonstrations=(upge.Term(imitation, weight),)))


gate_search = Search(
    "gate-search",
    propose,
    maximize="validation/pass_at_1",
    trials=36,
    seeds=range(3),
    confirm=range(100, 105),
    sampler=Tpe(startup=12),
    known=[
        {"gate": "switch", "at_most": 0.0, "sft_coefficient": 1.0},
        {"gate": "switch", "at_most": 0.25, "sft_coefficient": 1.0},
    ],
    evaluation=Evaluation(samples=16, problems=20),
)
