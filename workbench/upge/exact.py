"""Exact bias and variance of estimators, on policies small enough to enumerate every response.

Nothing is sampled: expectations are sums over all responses, and over all groups of them, in
float64. It is the oracle that measurements on real models are held against, and a laboratory by
itself:

    world = exact.World(questions=2, vocabulary=3, horizon=3)
    policy = exact.Tabular(world)
    exact.moments(upge.rloo(), policy, policy.random(seed=0), rollouts=2)
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev

from workbench.identity import replace
from workbench.moments import Array, Moments, left_out, of_each, of_pairs
from workbench.upge.advantages import GAE, BatchNormalized
from workbench.upge.aggregations import PerStream
from workbench.upge.batch import TokenBatch
from workbench.upge.denominators import CurrentPolicy
from workbench.upge.masks import Both, ClipCov, KeepAll, Mask, TopEntropy
from workbench.upge.method import Method, Stream, Term, terms

LIMIT = 2_000_000  # groups that are enumerated at most; beyond it is `sampled_moments`


@dataclass(frozen=True)
class World:
    """Questions answered by every token sequence that ends in token 0 or reaches the horizon.

    Attributes:
        questions: how many, all equally likely.
        vocabulary: tokens, of which 0 ends a response.
        horizon: tokens of the longest response.
        seed: decides rewards (binary, about `solved` of the responses) and demonstrations.
        solved: the share of responses with reward 1; every question has at least one of either.
    """

    questions: int = 2
    vocabulary: int = 3
    horizon: int = 3
    seed: int = 0
    solved: float = 0.3

    @cached_property
    def responses(self) -> list[tuple[int, ...]]:
        """Every response, shorter ones first."""
        found = []
        for length in range(1, self.horizon + 1):
            for body in itertools.product(range(1, self.vocabulary), repeat=length - 1):
                last = range(self.vocabulary) if length == self.horizon else (0,)
                found += [(*body, end) for end in last]
        return found

    @cached_property
    def trained(self) -> Tensor:
        """bool [response, token]."""
        lengths = torch.tensor([len(r) for r in self.responses])
        return torch.arange(self.horizon)[None] < lengths[:, None]

    @cached_property
    def rewards(self) -> Tensor:
        """float64 [question, response], 0 or 1."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.questions, len(self.responses))
        solved = torch.rand(shape, generator=generator, dtype=torch.float64)
        order = solved.argsort(dim=1).argsort(dim=1)
        count = min(max(1, round(self.solved * shape[1])), shape[1] - 1)
        return (order < count).double()

    @cached_property
    def demonstrators(self) -> Tensor:
        """The behaviour policy: float64 [question, response], probabilities of solved responses."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        raw = torch.rand(self.rewards.shape, generator=generator, dtype=torch.float64)
        raw = raw * self.rewards
        return raw / raw.sum(dim=1, keepdim=True)

    @cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """Every prefix that a token can follow."""
        bodies = (range(1, self.vocabulary),)
        return [p for t in range(self.horizon) for p in itertools.product(*(bodies * t))]

    @cached_property
    def prefix_index(self) -> Tensor:
        """int [response, token]: the prefix before each token; 0 beyond the end."""
        place = {prefix: i for i, prefix in enumerate(self.prefixes)}
        rows = [
            [place[r[:t]] if t < len(r) else 0 for t in range(self.horizon)] for r in self.responses
        ]
        return torch.tensor(rows)

    @cached_property
    def tokens(self) -> Tensor:
        """int [response, token], 0 beyond the end."""
        width = self.horizon
        return torch.tensor([[*r, *([0] * (width - len(r)))] for r in self.responses])


class Policy(Protocol):
    """A softmax policy over the world's responses with a flat parameter vector."""

    world: World

    def logits(self, theta: Tensor) -> Tensor:
        """[question, prefix, vocabulary] of parameters [parameter]."""
        ...

    def random(self, seed: int, scale: float = 1.0) -> Tensor:
        """Parameters drawn from a normal distribution, float64 [parameter]."""
        ...


@dataclass(frozen=True)
class Tabular:
    """A free logit for every question, prefix and token."""

    world: World

    def logits(self, theta: Tensor) -> Tensor:
        """[question, prefix, vocabulary]: the parameters themselves."""
        world = self.world
        return theta.view(world.questions, len(world.prefixes), world.vocabulary)

    def random(self, seed: int, scale: float = 1.0) -> Tensor:
        """A normal logit for every question, prefix and token, float64 [parameter]."""
        world = self.world
        size = world.questions * len(world.prefixes) * world.vocabulary
        return _normal(size, seed, scale)


@dataclass(frozen=True)
class Neural:
    """One hidden layer over one-hot question and prefix: parameters shared by all questions."""

    world: World
    width: int = 4

    def logits(self, theta: Tensor) -> Tensor:
        """[question, prefix, vocabulary], out of the hidden layer."""
        features = self._features
        into = features.shape[-1] * self.width
        first, second = theta[:into], theta[into:]
        hidden = torch.tanh(features @ first.view(-1, self.width))
        return hidden @ second.view(self.width, self.world.vocabulary)

    def random(self, seed: int, scale: float = 1.0) -> Tensor:
        """Normal weights of both layers, float64 [parameter]."""
        size = self.width * (self._features.shape[-1] + self.world.vocabulary)
        return _normal(size, seed, scale)

    @property
    def _features(self) -> Tensor:
        """[question, prefix, feature]: question, last token, first token, length, constant."""
        world = self.world
        rows = []
        for question in range(world.questions):
            for prefix in world.prefixes:
                row = [float(q == question) for q in range(world.questions)]
                for token in (prefix[-1:], prefix[:1]):
                    row += [float(token == (v,)) for v in range(1, world.vocabulary)]
                rows.append([*row, len(prefix) / world.horizon, 1.0])
        flat = torch.tensor(rows, dtype=torch.float64)
        return flat.view(world.questions, len(world.prefixes), -1)


def _normal(size: int, seed: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(size, generator=generator, dtype=torch.float64)


def token_logprobs(policy: Policy, theta: Tensor) -> Tensor:
    """log pi of every token of every response, [question, response, token]; 0 beyond the end."""
    world = policy.world
    table = policy.logits(theta).log_softmax(dim=-1)
    chosen = table[:, world.prefix_index, world.tokens]
    return torch.where(world.trained, chosen, 0.0)


def token_entropies(policy: Policy, theta: Tensor) -> Tensor:
    """Entropy in nats where each token of every response is drawn, as `token_logprobs`."""
    world = policy.world
    logprobs = policy.logits(theta).log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return torch.where(world.trained, entropy[:, world.prefix_index], 0.0)


def scores(policy: Policy, theta: Tensor) -> Tensor:
    """grad log pi of every token, [question, response, token, parameter]."""
    return jacrev(lambda t: token_logprobs(policy, t))(theta)  # type: ignore[return-value]


# --- the truth ------------------------------------------------------------------------------------


def objective(
    policy: Policy,
    theta: Tensor,
    mu: float = 0.0,
    trust: float = 0.0,
    reference: Tensor | None = None,
) -> Tensor:
    """J_mu: mean over questions of E[r] - mu KL(demonstrator || pi) - trust KL(pi || reference).

    The paper's eq. 3; `reference` are parameters of the same policy.
    """
    world = policy.world
    log_response = token_logprobs(policy, theta).sum(dim=-1)
    pi = log_response.exp()
    value = (pi * world.rewards).sum(dim=1)
    behaviour = world.demonstrators
    divergence = torch.where(
        behaviour > 0, behaviour * (behaviour.clamp(min=1e-300).log() - log_response), 0.0
    ).sum(dim=1)
    value = value - mu * divergence
    if trust:
        if reference is None:
            raise ValueError(f"trust is {trust}, but there is no reference to stay near")
        log_reference = token_logprobs(policy, reference).sum(dim=-1).detach()
        value = value - trust * (pi * (log_response - log_reference)).sum(dim=1)
    return value.mean()


def true_gradient(
    policy: Policy,
    theta: Tensor,
    mu: float = 0.0,
    trust: float = 0.0,
    reference: Tensor | None = None,
) -> Tensor:
    """The gradient of J_mu, [parameter]."""
    leaf = theta.detach().clone().requires_grad_()
    objective(policy, leaf, mu, trust, reference).backward()
    assert leaf.grad is not None
    return leaf.grad


# --- the estimators -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact(Moments):
    """The first two moments of an estimator, enumerated: see `Moments` for what follows from them.

    The variance is that of one step with all questions, `rollouts` each.

    The bias is the sum of three vectors: what the mask does; what the denominator does, and that
    rollouts are the old policy's; and what is left of it with rollouts of the current policy,
    `CurrentPolicy` as the denominator and no mask: the advantage's, the likelihood's and the
    aggregation's. Each has its squared length here.

    Attributes:
        mean: E[g], [parameter].
        truth: the gradient of J_mu, [parameter].
        questions: of the world.
        between: the variance of E[g | question] over the questions.
        bias_mask, bias_denominator, bias_rest: the squared lengths.
    """

    mean: Tensor
    truth: Tensor
    questions: int
    between: float
    bias_mask: float
    bias_denominator: float
    bias_rest: float

    @property
    def bias_squared(self) -> Array:
        """|E g - g*|^2, without the rounding of a difference of squares."""
        return (self.mean - self.truth).square().sum().numpy()

    def of_random(self, questions: int) -> Moments:
        """The moments of a step of so many questions, each drawn at random from the world's.

        As a probe measures them; the variance is of which questions a step has, too.
        """
        variance = (self.variance * self.questions + self.between) / questions
        return Moments(self.inner, self.square, self.truth_square, variance)


def moments(  # noqa: PLR0913 - all but the first three are named options
    method: Method,
    policy: Policy,
    theta: Tensor,
    *,
    rollouts: int = 2,
    old: Tensor | None = None,
    mu: float = 0.0,
    trust: float = 0.0,
    reference: Tensor | None = None,
) -> Exact:
    """Bias and variance of a method's gradient, by summing over every group of responses.

    Rollouts come from the policy at `old` (at `theta` unless given), one demonstration a question
    from the world's demonstrators where the method uses them. The gradient is that of one step
    with all questions, in the direction of ascent. The truth is the gradient of `objective`.

    Raises:
        ValueError: a method whose questions are not independent of one another (whitening or
            counts over the whole step, token selections), one with auxiliary losses, or more
            groups than can be enumerated.
    """
    _refuse_coupled(method)
    world, old = policy.world, theta if old is None else old
    here, drawing = _Side.of(policy, theta), _Side.of(policy, old)
    gradients = scores(policy, theta)
    bare = _with_parts(method, mask=KeepAll())
    plain = _with_parts(method, mask=KeepAll(), denominator=CurrentPolicy())
    means, variance = [], 0.0
    unmasked = current = torch.zeros_like(theta)
    for question in range(world.questions):
        one = (question, here, drawing, gradients[question])
        groups = _groups(method, policy, drawing.logprobs[question], question, rollouts)
        each = _group_gradients(method, world, groups, *one)
        mean = groups.probability @ each
        means.append(mean)
        variance += float(groups.probability @ (each - mean).square().sum(dim=1))
        unmasked = unmasked + groups.probability @ _group_gradients(bare, world, groups, *one)
        groups = _groups(method, policy, here.logprobs[question], question, rollouts)
        one = (question, here, here, gradients[question])
        current = current + groups.probability @ _group_gradients(plain, world, groups, *one)
    count, truth = world.questions, true_gradient(policy, theta, mu, trust, reference)
    each, unmasked, current = torch.stack(means), unmasked / count, current / count
    mean = each.mean(dim=0)
    return Exact(
        inner=(mean @ truth).numpy(),
        square=(mean @ mean).numpy(),
        truth_square=(truth @ truth).numpy(),
        variance=np.array(variance / count**2),
        mean=mean,
        truth=truth,
        questions=count,
        between=float((each - mean).square().sum()) / count,
        bias_mask=float((mean - unmasked).square().sum()),
        bias_denominator=float((unmasked - current).square().sum()),
        bias_rest=float((current - truth).square().sum()),
    )


@dataclass(frozen=True)
class _Side:
    """What one policy says of every token: [question, response, token]."""

    logprobs: Tensor
    entropies: Tensor

    @classmethod
    def of(cls, policy: Policy, theta: Tensor) -> "_Side":
        return cls(token_logprobs(policy, theta), token_entropies(policy, theta))


@dataclass(frozen=True)
class _Groups:
    """Every group of one question: which responses, and how probable, [group, member]."""

    members: Tensor
    demonstrated: int
    rewards: Tensor
    probability: Tensor


def _groups(
    method: Method, policy: Policy, before: Tensor, question: int, rollouts: int
) -> _Groups:
    world = policy.world
    sampled = before.sum(dim=-1).exp()
    axes = [torch.arange(len(sampled))] * (rollouts if method.samples_rollouts else 0)
    weights = [sampled] * len(axes)
    demonstrated = int(method.needs_demonstrations)
    if demonstrated:
        behaviour = world.demonstrators[question]
        axes = [*axes, behaviour.nonzero()[:, 0]]
        weights = [*weights, behaviour]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > LIMIT:
        raise ValueError(
            f"{count:,} groups of {rollouts} rollouts are more than the {LIMIT:,} that are "
            "enumerated; use fewer rollouts, a smaller world, or sampled_moments"
        )
    members = torch.cartesian_prod(*axes).view(count, -1)
    probability = torch.ones(count, dtype=torch.float64)
    for column, weight in enumerate(weights):
        probability = probability * weight[members[:, column]]
    return _Groups(members, demonstrated, world.rewards[question], probability)


def _group_gradients(
    method: Method,
    world: World,
    groups: _Groups,
    question: int,
    here: _Side,
    drawing: _Side,
    gradients: Tensor,
) -> Tensor:
    """The gradient of every group as if it were the only question, [group, parameter]."""
    current, before = here.logprobs[question], drawing.logprobs[question]
    found = []
    for members in groups.members.split(20_000):
        count, size = members.shape
        rows = members.flatten()
        demonstration = torch.arange(size).repeat(count) >= size - groups.demonstrated
        batch = TokenBatch(
            logprobs=current[rows],
            old_logprobs=before[rows],
            engine_logprobs=before[rows],  # what draws here is the old policy itself
            trained=world.trained[rows],
            rewards=torch.where(demonstration, 1.0, groups.rewards[rows]),
            group=torch.arange(count).repeat_interleave(size),
            demonstration=demonstration,
            old_entropy=drawing.entropies[question][rows],
        )
        weights = (
            method.prepare(batch).token_weights() * count
        )  # a step averages over its questions
        per_row = torch.einsum("rt,rtp->rp", weights, gradients[rows])
        found.append(per_row.view(count, size, -1).sum(dim=1))
    return torch.cat(found)


def _with_parts(method: Method, **parts: Any) -> Method:
    """The method with some parts of all its estimators in place of theirs."""

    def changed(stream: Stream) -> Stream:
        terms_of = terms(stream)
        return tuple(Term(replace(t.estimator, **parts), t.coefficient) for t in terms_of) or None

    return Method(changed(method.rollouts), changed(method.demonstrations), method.gate)


def _selects(mask: Mask) -> bool:
    if isinstance(mask, Both):
        return _selects(mask.first) or _selects(mask.second)
    return isinstance(mask, ClipCov | TopEntropy)


def _refuse_coupled(method: Method) -> None:
    if method.auxiliary:
        raise ValueError(f"auxiliary losses are not estimators of J: {method.auxiliary}")
    for term in method.all_terms:
        e = term.estimator
        coupled = (
            isinstance(e.advantage, BatchNormalized | GAE)
            or isinstance(e.aggregation.scope, PerStream)
            or _selects(e.mask)
        )
        if coupled:
            raise ValueError(
                f"{e} ties the questions of a step together, so its groups cannot be enumerated "
                "question by question"
            )


# --- beyond what can be enumerated ----------------------------------------------------------------


@dataclass(frozen=True)
class Sampled(Moments):
    """Moments by Monte Carlo: from all steps, then without each group of them.

    So that `jackknife` gives an interval to whatever follows from them.

    Attributes:
        mean: the average gradient, [parameter].
        mean_error: its standard error, [parameter].
        truth: the gradient of J_mu, [parameter].
        samples: how many steps.
    """

    mean: Tensor
    mean_error: Tensor
    truth: Tensor
    samples: int


def sampled_moments(  # noqa: PLR0913 - all but the first three are named options
    method: Method,
    policy: Policy,
    theta: Tensor,
    *,
    rollouts: int,
    samples: int,
    seed: int = 0,
    old: Tensor | None = None,
    mu: float = 0.0,
) -> Sampled:
    """Bias and variance of a method's gradient from `samples` independent steps.

    For groups too large to enumerate and for methods that tie questions together; each sample is
    one step with all questions.
    """
    old = theta if old is None else old
    here, drawing = _Side.of(policy, theta), _Side.of(policy, old)
    gradients = scores(policy, theta)
    generator = torch.Generator().manual_seed(seed)
    steps = [
        _sampled_step(method, policy.world, here, drawing, gradients, rollouts, generator)
        for _ in range(samples)
    ]
    drawn, truth = torch.stack(steps), true_gradient(policy, theta, mu)
    each, true, kept = drawn.numpy(), truth.numpy(), left_out(samples)
    square = of_pairs(each, each, kept)
    return Sampled(
        inner=of_each(each @ true, kept),
        square=square,
        truth_square=np.full(len(kept), true @ true),
        variance=of_each((each**2).sum(axis=1), kept) - square,
        mean=drawn.mean(dim=0),
        mean_error=drawn.std(dim=0) / samples**0.5,
        truth=truth,
        samples=samples,
    )


def _sampled_step(
    method: Method,
    world: World,
    here: _Side,
    drawing: _Side,
    gradients: Tensor,
    rollouts: int,
    generator: torch.Generator,
) -> Tensor:
    """The gradient of one step with all questions, [parameter]."""
    count = rollouts if method.samples_rollouts else 0
    demonstrated = int(method.needs_demonstrations)
    questions = torch.arange(world.questions).repeat_interleave(count + demonstrated)
    demonstration = (torch.arange(count + demonstrated) >= count).repeat(world.questions)
    sampled = drawing.logprobs.sum(dim=-1).exp()
    source = torch.where(demonstration[:, None], world.demonstrators[questions], sampled[questions])
    rows = source.multinomial(1, generator=generator)[:, 0]
    index = (questions, rows)
    now = here.logprobs[index]
    batch = TokenBatch(
        logprobs=now,
        old_logprobs=drawing.logprobs[index],
        engine_logprobs=drawing.logprobs[index],
        trained=world.trained[rows],
        rewards=torch.where(demonstration, 1.0, world.rewards[index]),
        group=questions,
        demonstration=demonstration,
        old_entropy=drawing.entropies[index],
        values=torch.zeros_like(now),  # of a critic that knows nothing
    )
    return torch.einsum("rt,rtp->p", method.prepare(batch).token_weights(), gradients[index])
