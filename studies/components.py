"""Which part of the unified estimator matters: mask, denominator, advantage or likelihood?

    workbench plan studies/components.py      # list the runs and what they cost, start nothing
    workbench run studies/components.py       # train the runs that have no finished record yet
    workbench report studies/components.py    # tables and figures from the records

A full grid over rollouts, with two optimizer steps a batch so that current and old policy part and
masks and denominators can act. GRPO, DAPO's clip and Dr. GRPO's advantage are among its cells; SFT,
LUFFY and HPT stand beside it. Not run in full: about two hours on two cores.
"""

from analysis import Figure, Table
from workbench import Data, Recipe, Study, grid, upge

base = Recipe("arithmetic-1m", Data("arithmetic", train=600), steps=40, updates_per_batch=2)

cells = grid(
    upge.Estimator,
    mask=[upge.KeepAll(), upge.RatioClip(0.2), upge.RatioClip(0.2, high=0.28)],
    denominator=[upge.CurrentPolicy(), upge.OldPolicy(), upge.Unit()],
    advantage=[upge.GroupCentered(), upge.GroupNormalized()],
    likelihood=[upge.Plain(), upge.Shaped(0.1)],
)
named = [upge.sft(), upge.grpo(), upge.luffy(), upge.hpt(gate=upge.Switch(at_most=0.0))]

components = Study("components", [base.using(m) for m in [*cells, *named]], seeds=range(3))

results = Table("results", components)
reward = Figure("reward", components, x="step", y="reward/mean")
