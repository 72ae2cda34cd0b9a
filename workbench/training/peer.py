"""A process of a team beside the leader: it does as it is ordered until the leader ends."""

import logging
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
import torch.distributed as dist

from workbench.processes import serving
from workbench.records import Interrupted, Run
from workbench.resources import Resources
from workbench.rollout import Engine, Request
from workbench.rollout.engine import Decoding
from workbench.training import checkpoint, keeping
from workbench.training import sequences as step
from workbench.training.opening import open_at, open_engine, open_policy
from workbench.training.scoring import collate
from workbench.training.tally import Tally
from workbench.training.team import Team, join
from workbench.training.team_engine import Answered, GotOn
from workbench.training.trainer import Trainer
from workbench.training.update import update

BEAT = 1.0  # seconds between two signs of progress


def serve(
    orders: Connection, stop: Event, port: int, rank: int, size: int, resources: Resources
) -> None:
    """Carries out the leader's orders until its end of the connection is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the leader says when to end
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(resources.threads)
    with serving(orders):
        mesh = join(dist.TCPStore("127.0.0.1", port, size), rank, size, resources)
        peer = Peer(orders, stop, Team(rank, size, mesh))
        while True:
            name, arguments = orders.recv()
            getattr(peer, name)(*arguments)


class Peer:
    """What the leader can order, each method by its name."""

    trainer: Trainer
    engine: Engine
    run: Run

    def __init__(self, leader: Connection, stop: Event, team: Team) -> None:
        self.leader, self.stop, self.team = leader, stop, team
        self._told = 0.0

    def open(self, path: Path, at: int | None, resources: Resources) -> None:
        """Takes its part of a run's trainer, at a checkpoint or at the beginning."""
        self.run = Run(path)
        self.trainer = open_at(self.run, at, resources, self.team, self._get_on)
        self.engine = self.trainer.engine

    def answer(self, path: Path, weights: str, resources: Resources) -> None:
        """Takes the whole policy with the weights in a folder, to answer with and not to train."""
        recipe = Run(path).recipe()
        policy = open_policy(recipe, weights, resources)
        self.engine = open_engine(recipe, policy, resources, self._get_on, self.team)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> None:
        """Draws responses to its share of the prompts."""
        try:
            self.leader.send(Answered(self.engine.generate(requests, decoding)))
        except Interrupted:
            self.leader.send(Answered(None))

    def update(self, sequences: list[step.Sequence]) -> None:
        """Takes its part in the optimizer steps over one batch."""
        update(self.trainer, sequences, collate(self.trainer, sequences), Tally())

    def save(self) -> None:
        """Gives the leader its part of a checkpoint."""
        checkpoint.gather(self.trainer.policy, self.trainer.optimizer, kept=False)

    def go_back(self, to: int) -> None:
        """Takes its part of the weights and the optimizer of an earlier step."""
        keeping.go_back(self.trainer, self.run, to)

    def _get_on(self) -> None:
        if self.stop.is_set():
            raise Interrupted("the leader stopped the rollouts")
        if time.monotonic() - self._told > BEAT:
            self._told = time.monotonic()
            self.leader.send(GotOn())
