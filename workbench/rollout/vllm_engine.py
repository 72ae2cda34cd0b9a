"""The vLLM engine: decodes in processes of its own, with the weights that the trainer has.

Each call moves the weights from memory to memory, so that it draws from the policy as it is, and
no part of a trainer has to say when that changed. Run so far with vLLM 0.32 built for processors,
in one process and in two (tensor parallel). The same code is for GPUs, where it sleeps, wakes and
maps the trainer's tensors by CUDA IPC as well: that has not been run.

Results do not depend on what else is in a call, but for rounding; rounding can follow the number
of sequences that run at a time, so a resumed run is not promised to be the same bit for bit.
"""

import multiprocessing
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

import torch.multiprocessing  # teaches connections to send tensors as handles
from torch import Tensor

from workbench.processes import Failed, how_it_ended
from workbench.recipe import check_vllm_temperature
from workbench.rollout.engine import (
    Decoding,
    EngineKilled,
    Hear,
    Request,
    Response,
    unheard,
)
from workbench.rollout.vllm_process import Answer, Done, Order, Setup, serve

Weights = Callable[[], Iterable[tuple[str, Tensor]]]


@dataclass
class VllmEngine:
    """Starts its processes when it is first called, and calls `get_on` after each prompt.

    Attributes:
        setup: what the processes are made from.
        weights: names, as in a checkpoint, and tensors of the policy at the time of the call.
        get_on: called whenever a prompt has all its responses.
    """

    setup: Setup
    weights: Weights
    get_on: Callable[[], object] = bool
    _processes: dict[Connection, SpawnProcess] = field(default_factory=dict, init=False)

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, hear: Hear = unheard
    ) -> list[list[Response]]:
        """See `Engine.generate`; responses have log-probabilities where top-p is 1.

        Raises:
            ValueError: a temperature that vLLM would silently raise.
            EngineKilled: a process of the engine was ended from outside.
            RuntimeError: vLLM raised an error, told with its name.
            MemoryError: vLLM ran out of memory.
        """
        check_vllm_temperature(decoding.temperature)
        try:
            self._send(Order(requests, decoding, self._current()))
            found = self._collect(hear)
        except BaseException:
            self.close()  # answers that nobody waits for any more must not meet the next call
            raise
        return [found[index] for index in range(len(requests))]

    def close(self) -> None:
        """Ends the processes; a later call starts them again."""
        for connection, process in self._processes.items():
            connection.close()
            process.kill()
        for process in self._processes.values():
            process.join()
        self._processes = {}

    def _current(self) -> list[tuple[str, Tensor]]:
        if self.setup.shares_gpu:
            torch.cuda.empty_cache()  # what the trainer keeps in reserve the engine needs now
        return [(name, tensor.detach()) for name, tensor in self.weights()]

    def _start(self) -> None:
        context, port = multiprocessing.get_context("spawn"), _free_port()
        for rank in range(self.setup.processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(theirs, self.setup, rank, port), daemon=True
            )
            process.start()
            theirs.close()
            self._processes[ours] = process

    def _send(self, order: Order) -> None:
        if not self._processes:
            self._start()
        for connection in self._processes:
            try:
                connection.send(order)
            except OSError:  # it has ended, and may have said why
                self._hear(connection)

    def _collect(self, hear: Hear) -> dict[int, list[Response]]:
        """The responses by request, once every process is done."""
        found: dict[int, list[Response]] = {}
        waiting = set(self._processes)
        while waiting:
            for connection in wait(waiting):
                assert isinstance(connection, Connection)
                said = self._hear(connection)
                if isinstance(said, Done):
                    waiting.remove(connection)
                else:
                    found[said.index] = said.responses
                    hear(said.index, said.responses)
                    self.get_on()
        return found

    def _hear(self, connection: Connection) -> Answer | Done:
        try:
            said: Any = connection.recv()
        except (EOFError, OSError):
            self._died(connection)
        if isinstance(said, Failed):
            said.reraise("the vLLM engine failed", RuntimeError)
        return said

    def _died(self, connection: Connection) -> NoReturn:
        process = self._processes[connection]
        process.join()
        code = process.exitcode
        assert code is not None
        raise EngineKilled(f"the vLLM engine's process {process.pid} {how_it_ended(code)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
