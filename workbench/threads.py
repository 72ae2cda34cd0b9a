"""Threads that each compute something of their own on a core of their own.

The threads of one product wait for each other at its end, and a small model has a thousand small
products; so its work is divided, where it can be, and not its products.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")

# Parameters up to which every thread may go through them all: more do not stay in a core's cache.
SMALL = 4_000_000


def threads_for(model: nn.Module) -> int:
    """How many threads may each work with a model of their own: 1 of a large one, or on a GPU."""
    parameters = list(model.parameters())
    small = sum(p.numel() for p in parameters) <= SMALL
    return torch.get_num_threads() if small and parameters[0].device.type == "cpu" else 1


def at_once(function: Callable[[_Given], _Found], given: Sequence[_Given]) -> list[_Found]:
    """What a function gives for each value: in a thread each, which alone computes its products.

    Gradients are on in them. Where one fails, the others end first.
    """
    if len(given) == 1:
        return [function(given[0])]
    threads = torch.get_num_threads()
    workers = min(len(given), threads)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, given))
    finally:
        torch.set_num_threads(threads)  # part of which is one number for all threads
