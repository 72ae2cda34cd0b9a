"""Processes that train one model together, its parameters, gradients and moments in shards (FSDP2).

The leader is the run's own process: it samples, grades and records, as one that is alone does. What
needs every shard it orders its peers to do as well (`workbench.training.peer`). All hold the same
step; its micro-batches are dealt out, and what each process adds is summed. Losses are divided by
counts over the whole step already, so that sums, and not means, over processes are the gradient.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from workbench.processes import Failed, Killed, how_it_ended
from workbench.resources import Resources

_Group = TypeVar("_Group")

ON_ITS_WAY = 2.0  # seconds that a process which ends may take for it


class PeerKilled(Killed):
    """A process of the team was ended from outside."""


class PeerFailed(RuntimeError):
    """An error ended a process of the team."""


@dataclass(eq=False)
class Team:
    """The processes of a run, seen from one of them; a run's process alone is a team of one.

    Attributes:
        rank, size: which of how many; the leader is 0.
        mesh: the devices, where models are in shards.
        peers: the leader's connections to the others, with their processes.
        stop: set while the leader wants the peers to leave what they are doing.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    peers: dict[Connection, SpawnProcess] = field(default_factory=dict)
    stop: Event | None = None

    def order(self, name: str, *arguments: object) -> None:
        """Has every peer do something by name, in which the leader then takes its part."""
        self.order_each(name, [arguments] * len(self.peers))

    def order_each(self, name: str, arguments: Sequence[tuple[object, ...]]) -> None:
        """Has every peer do something by name, each with arguments of its own."""
        for connection, own in zip(self.peers, arguments, strict=True):
            try:
                connection.send((name, own))
            except OSError:
                self._lost(connection)

    def hear(self, connection: Connection) -> Any:
        """What a peer says next.

        Raises:
            PeerKilled: it was ended from outside.
            Killed: a process of its own was, as its vLLM engine is.
            MemoryError: it ran out of memory.
            PeerFailed: an error ended it, told with its name.
        """
        try:
            said = _receive(connection)
        except (EOFError, OSError):
            connection.close()
            self._lost(connection)
        if isinstance(said, Failed):
            said.reraise(self._name(connection), PeerFailed)
        return said

    def share(self, groups: Sequence[_Group]) -> list[_Group | None]:
        """This process's groups of all; None where it has none while others do.

        All processes take equally many turns, for each turn is one that they take together.
        """
        turns = -(-len(groups) // self.size)
        mine = range(self.rank, turns * self.size, self.size)
        return [groups[turn] if turn < len(groups) else None for turn in mine]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in its place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The length of all together, of which each process may have a part."""
        part = torch.nn.utils.get_total_norm([own(tensor) for tensor in tensors])
        return part if self.size == 1 else self.total(part.square()).sqrt()

    def agreed(self, tensor: Tensor) -> Tensor:
        """The leader's tensor: where rounding may differ, no process goes another way."""
        if self.size == 1:
            return tensor
        sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
        dist.broadcast(sent, 0)
        return sent.to(tensor.dtype)

    def shard(self, model: nn.Module) -> None:
        """Leaves each process its part of a model's parameters.

        They are put together, layer by layer, in float32: what is computed in bfloat16 is then what
        it is on one GPU, where parts in bfloat16 would be half the traffic but round more.
        """
        if self.mesh is None:
            return
        layers = set(getattr(model, "_no_split_modules", None) or ())
        for module in [m for m in model.modules() if type(m).__name__ in layers]:
            fully_shard(module, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows sums alone

    def why(self, error: RuntimeError) -> NoReturn:
        """Raises what became of the peer that made a common step fail, or else the error.

        One that was killed, or had no memory left, makes others fail too: it goes before them.
        """
        found: list[BaseException] = [error] if isinstance(error, Killed | PeerFailed) else []
        until = time.monotonic() + ON_ITS_WAY
        for connection, process in self.peers.items():
            process.join(max(0.0, until - time.monotonic()))
            if not process.is_alive():
                try:
                    self._lost(connection)
                except (RuntimeError, MemoryError) as reason:
                    found.append(reason)
        first = [each for each in found if isinstance(each, Killed | MemoryError)]
        raise (first or found or [error])[0]

    def _lost(self, connection: Connection) -> NoReturn:
        """Raises how a peer ended: by what it said last, or by what its process left."""
        while not connection.closed:
            self.hear(connection)
        process = self.peers[connection]
        process.join()
        code = process.exitcode or 0
        kind = PeerKilled if code < 0 else PeerFailed
        raise kind(f"{self._name(connection)} {how_it_ended(code)}")

    def _name(self, connection: Connection) -> str:
        return f"process {self.peers[connection].pid} of the team"


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except ConnectionResetError:  # it ended with an order unread; what it said before is there
        return connection.recv()


ALONE = Team()

Serve = Callable[[Connection, Event, int, int, int, Resources], None]


@contextmanager
def assembled(resources: Resources, serve: Serve) -> Iterator[Team]:
    """The team of a run: its process, and `processes - 1` others that run `serve` until the end.

    Raises:
        Killed, PeerFailed, MemoryError: a peer ended, and with it what they did together.
    """
    size = resources.processes
    if size == 1:
        yield ALONE
        return
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    team = Team(0, size, stop=context.Event())
    try:
        for rank in range(1, size):
            ours, theirs = context.Pipe()
            # No daemon, for those may not start an engine's process; it ends with this one as well.
            process = context.Process(
                target=serve, args=(theirs, team.stop, store.port, rank, size, resources)
            )
            process.start()
            theirs.close()
            team.peers[ours] = process
        team.mesh = join(store, 0, size, resources)
        yield team
    except RuntimeError as error:
        team.why(error)
    finally:
        for connection, process in team.peers.items():
            connection.close()
            process.kill()
        for process in team.peers.values():
            process.join()
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


@contextmanager
def sharded_alone(resources: Resources) -> Iterator[Team]:
    """A team of one process that keeps its model as shards all the same.

    It is no faster and takes more memory; it shows what FSDP2 does where there is but one GPU.
    """
    try:
        yield Team(mesh=join(dist.HashStore(), 0, 1, resources))
    finally:
        dist.destroy_process_group()


def join(store: dist.Store, rank: int, size: int, resources: Resources) -> DeviceMesh:
    """Meets the other processes, each on a GPU of its own where there are any."""
    on_gpu = resources.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return DeviceMesh("cuda" if on_gpu else "cpu", list(range(size)))


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part, rows of it: on all, asked for by all.

    By a plain collective, which is over when it returns. A DTensor's own `full_tensor` goes through
    torch's functional ones, whose results other threads may still hold; in those a test process
    has crashed once, of some hundred thousand.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    size, rows = tensor.device_mesh.size(), tensor.shape[0]
    most, part = -(-rows // size), tensor.to_local()
    filled = part.new_zeros(most, *tensor.shape[1:])
    filled[: len(part)] = part
    found = part.new_empty(most * size, *tensor.shape[1:])
    dist.all_gather(list(found.split(most)), filled)
    return found[:rows]


def in_shards(model: nn.Module) -> bool:
    """Whether each process has a part of a model's parameters."""
    return isinstance(next(model.parameters()), DTensor)


def own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def begin(tensor: Tensor) -> int:
    """Where, in a tensor laid out flat, the part begins that this process has: rows of it."""
    if not isinstance(tensor, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return offset[0] * (tensor.numel() // tensor.shape[0])


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A value that every process has, kept as `like` is: each its part, or all of it."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
