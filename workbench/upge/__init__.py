"""The unified policy gradient estimator: grad = 1_stable * (1 / pi_ref) * A * grad pi.

Components are values; an `Estimator` weighs one stream of tokens; a `Method` gives rollouts and
demonstrations an estimator each and gates every question between them. Published methods are
functions: `upge.grpo()`, `upge.hpt(gate=upge.Switch(at_most=0.0))`.
"""

from typing import Any

from workbench.identity import nearest
from workbench.upge.advantages import (
    GAE,
    Advantage,
    BatchNormalized,
    GroupCentered,
    GroupNormalized,
    LeaveOneOut,
    Ones,
    Reward,
    Signed,
)
from workbench.upge.aggregations import (
    Aggregation,
    ConstantLength,
    PerGroup,
    PerQuestion,
    PerStream,
    Scope,
    SequenceMean,
    TokenMean,
)
from workbench.upge.auxiliary import (
    K1,
    K2,
    K3,
    Auxiliary,
    Current,
    Divergence,
    EntropyBonus,
    KLPenalty,
    ValueLoss,
)
from workbench.upge.batch import TokenBatch
from workbench.upge.denominators import (
    Capped,
    CurrentPolicy,
    Denominator,
    EngineCorrected,
    OldPolicy,
    SequenceGeometric,
    Unit,
)
from workbench.upge.estimator import Estimator, Weights
from workbench.upge.gates import Anneal, Gate, Open, SoftSwitch, Switch
from workbench.upge.likelihoods import Likelihood, Plain, Shaped
from workbench.upge.masks import (
    Both,
    ClipCov,
    DualClip,
    KeepAll,
    Mask,
    RatioClip,
    SequenceClip,
    SoftClip,
    TopEntropy,
)
from workbench.upge.method import EntropyWeight, Method, Step, Term, terms
from workbench.upge.methods import (
    NAMED,
    cispo,
    corrected,
    dapo,
    dft,
    dr_grpo,
    grpo,
    gspo,
    hpt,
    hpt_released,
    luffy,
    mix_on,
    off_on,
    ppo,
    reinforce,
    reinforce_pp,
    rloo,
    sapo,
    sft,
    srft,
)

__all__ = [
    "GAE",
    "K1",
    "K2",
    "K3",
    "NAMED",
    "Advantage",
    "Aggregation",
    "Anneal",
    "Auxiliary",
    "BatchNormalized",
    "Both",
    "Capped",
    "ClipCov",
    "ConstantLength",
    "Current",
    "CurrentPolicy",
    "Denominator",
    "Divergence",
    "DualClip",
    "EngineCorrected",
    "EntropyBonus",
    "EntropyWeight",
    "Estimator",
    "Gate",
    "GroupCentered",
    "GroupNormalized",
    "KLPenalty",
    "KeepAll",
    "LeaveOneOut",
    "Likelihood",
    "Mask",
    "Method",
    "OldPolicy",
    "Ones",
    "Open",
    "PerGroup",
    "PerQuestion",
    "PerStream",
    "Plain",
    "RatioClip",
    "Reward",
    "Scope",
    "SequenceClip",
    "SequenceGeometric",
    "SequenceMean",
    "Shaped",
    "Signed",
    "SoftClip",
    "SoftSwitch",
    "Step",
    "Switch",
    "Term",
    "TokenBatch",
    "TokenMean",
    "TopEntropy",
    "Unit",
    "ValueLoss",
    "Weights",
    "cispo",
    "corrected",
    "dapo",
    "dft",
    "dr_grpo",
    "grpo",
    "gspo",
    "hpt",
    "hpt_released",
    "luffy",
    "mix_on",
    "off_on",
    "ppo",
    "reinforce",
    "reinforce_pp",
    "rloo",
    "sapo",
    "sft",
    "srft",
    "terms",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"workbench.upge has no {name!r}; {nearest(name, __all__)}")
