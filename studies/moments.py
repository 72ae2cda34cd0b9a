"""How biased and how noisy is the gradient of each method, and where should a gate switch?

    workbench plan studies/moments.py      # list the runs and what they cost, start nothing
    workbench run studies/moments.py       # train the run, probe it, draw the atlas
    workbench report studies/moments.py    # tables and figures from the records

Every named method, and one-axis variations around them, measured on common rollouts at the base, in
the middle and at the end of the quickstart's HPT run: on policy, where ratios and their masks
cannot act, and four optimizer steps off it. By the questions' solve rate, because that is what a
gate reads.
"""

from analysis import BiasVariance, ErrorBySolveRate, Estimators, Figure, Reproduced
from workbench import (
    Data,
    Evaluation,
    Optimizer,
    Probe,
    Recipe,
    Resources,
    Study,
    Validation,
    grid,
    upge,
)

STEPS = 48
MU = 0.1  # the weight of imitation in the objective whose gradient is the other truth

hpt = Recipe(
    "arithmetic-1m",
    Data("arithmetic", train=600),
    upge.hpt(gate=upge.Switch(at_most=0.0), rollouts=upge.grpo().rollouts),
    steps=STEPS,
    questions=16,
    rollouts=8,
    optimizer=Optimizer(learning_rate=5e-4),
    validation=Validation(every=8, samples=4),
)

named = [
    upge.sft(), upge.dft(), upge.reinforce(), upge.rloo(), upge.reinforce_pp(), upge.grpo(),
    upge.dr_grpo(), upge.dapo(), upge.cispo(), upge.gspo(), upge.sapo(), upge.luffy(), upge.srft(),
    upge.hpt(), upge.hpt_released(entropy_bonus=0.0), upge.off_on(), upge.mix_on(),
]  # fmt: skip

around_grpo = [
    upge.grpo(mask=upge.KeepAll()),
    upge.grpo(mask=upge.TopEntropy(0.2)),
    upge.grpo(mask=upge.ClipCov()),
    upge.grpo(advantage=upge.GroupCentered()),
    upge.grpo(advantage=upge.LeaveOneOut()),
    upge.grpo(advantage=upge.Reward()),
    upge.grpo(aggregation=upge.TokenMean()),
    upge.grpo(aggregation=upge.ConstantLength(1)),
    upge.Estimator(upge.RatioClip(0.2), upge.CurrentPolicy(), upge.GroupNormalized()),
    upge.Estimator(upge.RatioClip(0.2), upge.Unit(), upge.GroupNormalized()),
]

around_others = [
    upge.sft(upge.SequenceMean()), upge.sft(upge.ConstantLength(1)),
    upge.reinforce(upge.Reward()), upge.rloo(upge.TokenMean()),
    upge.dapo(aggregation=upge.SequenceMean()),
    upge.luffy(likelihood=upge.Plain()), upge.luffy(mask=upge.KeepAll()),
    upge.off_on(likelihood=upge.Plain()), upge.mix_on(sft_coefficient=1.0),
    upge.hpt(gate=upge.Switch(at_most=0.25)), upge.hpt(gate=upge.SoftSwitch()),
]  # fmt: skip

probes = grid(
    Probe,
    methods=[(*named, *around_grpo, *around_others)],
    step=[0, STEPS // 2, STEPS],
    distance=[0, 4],
    questions=[128],
    replicates=[2],
    mu=[(0.0, MU)],
    seed=[0, 1],
)

moments = Study(
    "moments",
    {"HPT": hpt},
    probes=probes,
    evaluation=Evaluation(samples=16, more=(("mixed", 64),), problems=20),
    resources=Resources(threads=2),  # of the probes, two at once
)

base_on = Estimators("base-on-policy", moments)
base_off = Estimators("base-off-policy", moments, distance=4)
end_on = Estimators("end-on-policy", moments, step=STEPS)
again = Estimators("base-on-policy-again", moments, probe_seed=1)
again_off = Estimators("base-off-policy-again", moments, distance=4, probe_seed=1)
imitating = Estimators("base-on-policy-mu", moments, mu=MU)
raw = Estimators("base-on-policy-raw", moments, columns=("bias_squared", "variance", "mse"))
reproduced = Reproduced("second-seed", moments)
atlas = BiasVariance("bias-variance", moments, methods=[method.label for method in named])
pair = ("sft", "grpo")
gate = ErrorBySolveRate("error-by-solve-rate", moments, methods=pair, mu=(0.0, MU))
gate_again = ErrorBySolveRate("error-again", moments, methods=pair, mu=(0.0, MU), probe_seed=1)
gate_off = ErrorBySolveRate("error-off-policy", moments, methods=pair, mu=(0.0, MU), distance=4)
cosine = Figure("cosine", moments, y=("grad/cosine_sft_rl", "grad/noise_scale"))
