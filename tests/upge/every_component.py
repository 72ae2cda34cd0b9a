"""One generic table of properties' subjects: every component class, with values worth trying.

A new component is one new row here; the generic tests then hold it to all that components promise.
"""

from collections.abc import Callable
from typing import Any

from workbench import upge
from workbench.identity import Component, subclasses
from workbench.upge import Estimator, Method, Term

_CLIP = upge.RatioClip(0.2)
_IMITATION = Estimator(upge.KeepAll(), upge.CurrentPolicy(), upge.Ones())

EVERY_COMPONENT: dict[type[Component], list[Component]] = {
    # masks
    upge.KeepAll: [upge.KeepAll()],
    upge.RatioClip: [_CLIP, upge.RatioClip(0.2, high=0.28), upge.RatioClip(0.0, high=0.0)],
    upge.DualClip: [upge.DualClip(0.2), upge.DualClip(0.2, high=0.3, cap=1.5)],
    upge.SequenceClip: [upge.SequenceClip(3e-4, high=4e-4), upge.SequenceClip(0.1)],
    upge.SoftClip: [upge.SoftClip(), upge.SoftClip(2.0, negative=3.0)],
    upge.ClipCov: [upge.ClipCov(), upge.ClipCov(share=0.3, low=0.05, high=50.0)],
    upge.TopEntropy: [upge.TopEntropy(), upge.TopEntropy(0.5), upge.TopEntropy(1.0)],
    upge.Both: [_CLIP & upge.TopEntropy(0.5), upge.SoftClip() & upge.ClipCov(0.3, low=0.05)],
    # denominators
    upge.CurrentPolicy: [upge.CurrentPolicy()],
    upge.OldPolicy: [upge.OldPolicy()],
    upge.Unit: [upge.Unit()],
    upge.Capped: [upge.Capped(1.2), upge.Capped(0.8), upge.Capped(0.2, over=upge.Unit())],
    upge.SequenceGeometric: [upge.SequenceGeometric()],
    upge.EngineCorrected: [
        upge.EngineCorrected(1.2),
        upge.EngineCorrected(1.1, drops=True),
        upge.EngineCorrected(1.3, upge.CurrentPolicy(), by_sequence=True),
        upge.EngineCorrected(2.0, upge.Capped(1.2), by_sequence=True, drops=True),
    ],
    # advantages
    upge.Ones: [upge.Ones()],
    upge.Reward: [upge.Reward()],
    upge.Signed: [upge.Signed()],
    upge.GroupCentered: [
        upge.GroupCentered(),
        upge.GroupCentered(with_demonstrations=True),
        upge.GroupCentered(lone_reward=True),
    ],
    upge.GroupNormalized: [
        upge.GroupNormalized(),
        upge.GroupNormalized(with_demonstrations=True, epsilon=0.0, ddof=0, lone_reward=True),
    ],
    upge.LeaveOneOut: [upge.LeaveOneOut(), upge.LeaveOneOut(with_demonstrations=True)],
    upge.BatchNormalized: [
        upge.BatchNormalized(),
        upge.BatchNormalized(centred_by_group=True, with_demonstrations=True),
    ],
    upge.GAE: [upge.GAE(), upge.GAE(0.9, trace=0.8, whiten=False)],
    # likelihoods
    upge.Plain: [upge.Plain()],
    upge.Shaped: [upge.Shaped(0.1), upge.Shaped(2)],
    # aggregations and what they are means over
    upge.TokenMean: [upge.TokenMean(), upge.TokenMean(upge.PerStream())],
    upge.SequenceMean: [upge.SequenceMean(), upge.SequenceMean(upge.PerStream())],
    upge.ConstantLength: [upge.ConstantLength(1), upge.ConstantLength(8, scope=upge.PerGroup())],
    upge.PerQuestion: [upge.PerQuestion()],
    upge.PerGroup: [upge.PerGroup()],
    upge.PerStream: [upge.PerStream()],
    # gates
    upge.Open: [upge.Open()],
    upge.Switch: [upge.Switch(0.0), upge.Switch(0.25), upge.Switch(1)],
    upge.SoftSwitch: [upge.SoftSwitch(), upge.SoftSwitch(0.5, slope=3)],
    upge.Anneal: [upge.Anneal(), upge.Anneal(0.8, end=0.2, steps=10)],
    # losses beside the estimator
    upge.EntropyBonus: [upge.EntropyBonus(0.01), upge.EntropyBonus(0.01, demonstrations=True)],
    upge.KLPenalty: [upge.KLPenalty(0.1), upge.KLPenalty(0.1, upge.K2(), to_base=True)],
    upge.ValueLoss: [upge.ValueLoss(), upge.ValueLoss(2.0)],
    upge.K1: [upge.K1()],
    upge.K2: [upge.K2()],
    upge.K3: [upge.K3()],
    # what they make up
    upge.EntropyWeight: [
        upge.EntropyWeight(0.5, -1.0),
        upge.EntropyWeight(0.1, 1.0, correct_only=True),
    ],
    Term: [Term(_IMITATION), Term(_IMITATION, 0.5), Term(_IMITATION, upge.EntropyWeight(0.5, -1))],
    Estimator: [Estimator(), Estimator(_CLIP, likelihood=upge.Shaped(0.1))],
    Method: [make() for make in upge.NAMED.values()],
}

VALUES = [value for values in EVERY_COMPONENT.values() for value in values]


def concrete() -> set[type[Component]]:
    """Every component class of the estimator that is not merely the kind that others are of."""
    kinds = (cls for cls in subclasses(Component) if cls.__module__.startswith("workbench.upge"))
    return {cls for cls in kinds if not cls.__subclasses__()}


_OLD = upge.OldPolicy()
# What a component of each kind acts in; the first kind that fits.
ACTS_IN: dict[type[Component], Callable[[Any], Component]] = {
    Estimator: lambda value: Method(
        rollouts=value, demonstrations=None if value.needs_values else value
    ),
    Term: lambda value: Method(rollouts=(value,), demonstrations=(Term(_IMITATION), value)),
    upge.EntropyWeight: lambda value: Term(Estimator(_CLIP, _OLD), value),
    upge.Mask: lambda value: Estimator(value, _OLD),
    upge.Denominator: lambda value: Estimator(_CLIP, value),
    upge.Advantage: lambda value: Estimator(_CLIP, _OLD, value),
    upge.Likelihood: lambda value: Estimator(_CLIP, _OLD, likelihood=value),
    upge.Aggregation: lambda value: upge.hpt(rollouts=Estimator(aggregation=value)),
    upge.Scope: upge.TokenMean,
    upge.Gate: upge.hpt,
    upge.Divergence: lambda value: upge.KLPenalty(0.1, value),
    upge.Auxiliary: lambda value: Method(upge.ppo().rollouts, auxiliary=(value,)),
}


def method_of(value: Component) -> Method:
    """A method that the component acts in."""
    if isinstance(value, Method):
        return value
    for kind, wrap in ACTS_IN.items():
        if isinstance(value, kind):
            return method_of(wrap(value))
    raise TypeError(f"{value} acts in no method yet: say in which in ACTS_IN")


ACTING: dict[str, Method] = {
    **{name: make() for name, make in upge.NAMED.items()},
    **{str(value): method_of(value) for value in VALUES if not isinstance(value, Method)},
}
