"""The trainer: everything that a training step works with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TypeVar

import torch

from workbench import upge
from workbench.problems import Dataset, Problem
from workbench.recipe import Recipe
from workbench.resources import Resources
from workbench.rollout import Engine
from workbench.rollout.engine import Decoding
from workbench.threads import at_once
from workbench.training.gradient import Sketch
from workbench.training.parting import Parting
from workbench.training.policy import Policy
from workbench.training.sequences import Sequence
from workbench.training.team import ALONE, Team

_Found = TypeVar("_Found")


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint, unlike anything that can be derived."""

    step: int = 0
    updates: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    recent: dict[str, float] = field(default_factory=dict)  # windowed sums of gradient moments

    @property
    def tokens(self) -> int:
        """Tokens sampled and trained on so far, each time they were."""
        return self.sampled_tokens + self.trained_tokens


@dataclass
class Lane:
    """What a thread computes gradients with: those that its policy's parameters have are its own.

    Without a `parting` the blocks of a step are told apart by a pass each.
    """

    policy: Policy
    base: Policy | None = None
    parting: Parting | None = None

    def twin(self) -> "Lane":
        """A lane with the same weights, before either is parted."""
        return Lane(self.policy.twin(), None if self.base is None else self.base.twin())


@dataclass
class Trainer:
    """Everything a training step works with; it calls `beat` at every micro-batch.

    The optimizer's parameters are the first lane's; the gradients of the others are added to it.
    """

    recipe: Recipe
    seed: int
    resources: Resources
    data: Dataset
    lanes: list[Lane]
    engine: Engine
    optimizer: torch.optim.AdamW
    progress: Progress
    sketch: Sketch
    team: Team = ALONE
    beat: Callable[[], object] = bool

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self.lanes[0].policy

    @property
    def base(self) -> Policy | None:
        """The policy that training began with, where the method asks what it says."""
        return self.lanes[0].base

    @property
    def method(self) -> upge.Method:
        """The recipe's method; only recipes with one are trained."""
        assert isinstance(self.recipe.method, upge.Method)
        return self.recipe.method

    @cached_property
    def questions(self) -> tuple[Problem, ...]:
        """What is asked in training: a method without rollouts learns of demonstrations alone."""
        if self.method.samples_rollouts:
            return self.data.train
        return tuple(each for each in self.data.train if each.demonstration is not None)

    @cached_property
    def one_pass(self) -> bool:
        """Whether the pass that an update differentiates is also the old policy's.

        So it is where a batch gets one optimizer step, which no part of has to be settled from what
        the old policy says.
        """
        recipe = self.recipe
        once = recipe.updates_per_batch == recipe.epochs_per_batch == 1
        return once and not self.method.needs_old

    @property
    def micro_batch(self) -> int:
        """Tokens that are scored together."""
        return self.resources.micro_batch(self.policy.device.type == "cuda")

    def micro_batches(self, sequences: list[Sequence], rows: list[int]) -> list[list[int]]:
        """Rows in groups that are scored together, so that every process of a team has some.

        Lanes, which are in one process, share its memory.
        """
        limit, parts = self.micro_batch // len(self.lanes), len(self.lanes) * self.team.size
        if parts > 1:
            limit = min(limit, -(-sum(sequences[row].length for row in rows) // parts))
        return self.policy.micro_batches(sequences, rows, limit)

    def each(
        self, groups: list[list[int]], compute: Callable[[Lane, list[int] | None], _Found]
    ) -> list[_Found]:
        """What is computed of this process's micro-batches, which the lanes take in turns.

        Which takes which is fixed, and so is the order of what is found and of what a lane adds to
        its gradients: a run is the same number by number however fast its threads are.
        """
        mine, one = self.team.share(groups), Lock()

        def go_through(place: int) -> list[_Found]:
            found = []
            for group in mine[place :: len(self.lanes)]:
                with one:
                    self.beat()
                found.append(compute(self.lanes[place], group))
            return found

        return [each for found in at_once(go_through, range(len(self.lanes))) for each in found]

    def clear_gradients(self) -> None:
        """No parameter of any lane has a gradient after it."""
        self.optimizer.zero_grad(set_to_none=True)  # of shards, the optimizer knows which are whose
        for lane in self.lanes[1:]:
            for _, parameter in lane.policy.parameters():
                parameter.grad = None

    def gather_gradients(self) -> None:
        """Adds what the other lanes' parameters have as gradients to the first's."""
        for lane in self.lanes[1:]:
            pairs = zip(self.policy.parameters(), lane.policy.parameters(), strict=True)
            for (_, total), (_, own) in pairs:
                if total.grad is None:
                    total.grad = own.grad
                elif own.grad is not None:
                    total.grad += own.grad
                own.grad = None

    @property
    def decoding(self) -> Decoding:
        """How training rollouts are drawn: the recipe's sampling."""
        sampling = self.recipe.sampling
        return Decoding(sampling.temperature, sampling.top_p, sampling.max_tokens)
