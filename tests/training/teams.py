"""Teams that train nothing, of processes that do what a test is about."""

import multiprocessing

import torch.distributed as dist

from workbench.processes import serving
from workbench.resources import Resources
from workbench.training.team import assembled, join

TWO = Resources(device="cpu", processes=2)
SPAWN = multiprocessing.get_context("spawn")


def lead(said):
    """Leads a team whose process has one of its own, says which they are, and waits."""
    with assembled(TWO, serve_with_a_helper) as team:
        ((connection, process),) = team.peers.items()
        said.send((process.pid, team.hear(connection)))
        said.recv()


def serve_with_a_helper(orders, stop, port, rank, size, resources):
    """Starts a process as one starts a vLLM engine's, says which it is, and waits."""
    with serving(orders):
        join(dist.TCPStore("127.0.0.1", port, size), rank, size, resources)
        ours, theirs = SPAWN.Pipe()
        helper = SPAWN.Process(target=help_out, args=(theirs,), daemon=True)
        helper.start()
        ours.recv()
        orders.send(helper.pid)
        orders.recv()


def serve_until_an_error(error, orders, stop, port, rank, size, resources):
    """Fails at the first order as one does whose engine fails when all weights are together."""
    with serving(orders):
        join(dist.TCPStore("127.0.0.1", port, size), rank, size, resources)
        orders.recv()
        raise error


def help_out(orders):
    with serving(orders):
        orders.send("ready")
        orders.recv()
