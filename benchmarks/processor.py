"""What a processor's libraries and threads do for a training step, one at a time left out.

    python benchmarks/processor.py             # two Markdown tables; --rounds

The first has a layer's products, forward and backward, on one thread by torch's own choice of
library (MKL) and by oneDNN: how fast, and the largest error of the weight's gradient, a sum over
all rows of products of normal numbers. The second has the parts of a step of 256 responses of 64
tokens of the embedded model (Dr. GRPO, every second one counts as right), by the clock: as it is,
and with one thing as torch or a plain program would have it. The ways take their steps in turn in
one process, and the median of the rounds counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scaling import Parts, in_turn, one_step, opened
from sides import model_in
from torch import Tensor, nn

from workbench import products
from workbench.provenance import cores
from workbench.rollout import transformers_engine
from workbench.training.trainer import Trainer

ROWS, SHAPES = 1024, ((128, 128), (128, 512), (512, 128))  # of a micro-batch; of the model's layers
GROUP, TOKENS = 32, 64
CALLS = 100
Way = Callable[[Trainer], AbstractContextManager[None]]


def main() -> None:
    """Measures and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("oneDNN is the faster one here" if products.by_onednn() else "torch's own choice is kept")
    libraries(rounds)
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        trainer = opened(Path(folder), model_in(Path(folder), ends=False), GROUP, TOKENS)
        ways = {name: lambda way=way: step(trainer, way) for name, way in WAYS.items()}
        found = in_turn(ways, rounds)
    print(f"\n{cores()} threads\n\n| way | rollouts, s | update, s |\n| --- | ---: | ---: |")
    for name, parts in found.items():
        print(f"| {name} | {parts['rollouts']:.3f} | {parts['update']:.3f} |", flush=True)


def libraries(rounds: int) -> None:
    """Prints how many operations a second one thread gets out of a layer's three products."""
    torch.set_num_threads(1)
    print("\n| layer | library | GFLOP/s | largest error |\n| --- | --- | ---: | ---: |")
    for inputs, outputs in SHAPES:
        layer, given = nn.Linear(inputs, outputs), torch.randn(ROWS, inputs, requires_grad=True)
        ways: dict[str, Callable[[Tensor], Any]] = {
            "torch's own": layer,
            "oneDNN": lambda rows, layer=layer: products._Linear.apply(
                rows, layer.weight, layer.bias
            ),
        }
        calls = {name: partial(forth_and_back, way, given) for name, way in ways.items()}
        for name, found in in_turn(calls, rounds).items():
            rate = 6 * ROWS * inputs * outputs / found["seconds"] / 1e9
            error = error_of(ways[name], layer.weight, given)
            print(f"| {inputs} to {outputs} | {name} | {rate:.0f} | {error:.1e} |", flush=True)


def error_of(way: Callable[[Tensor], Any], weight: Tensor, given: Tensor) -> float:
    """How far the weight's gradient is from that in double precision, at most."""
    towards = torch.randn(len(given), len(weight), generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(way(given), weight, towards)
    return float((found - towards.double().T @ given.detach().double()).abs().max())


def forth_and_back(layer: Callable[[Tensor], Any], given: Tensor) -> Parts:
    """Seconds of a layer and its gradients."""
    began = time.perf_counter()
    for _ in range(CALLS):
        layer(given).sum().backward()
    return {"seconds": (time.perf_counter() - began) / CALLS}


def step(trainer: Trainer, way: Way) -> Parts:
    """Seconds, by the clock, of the parts of a step in some way."""
    with way(trainer):
        return one_step(trainer, time.perf_counter)


@contextmanager
def put(module: Any, name: str, value: Any) -> Iterator[None]:
    """Something of a module in place of what it has."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def shared(trainer: Trainer) -> Iterator[None]:
    """Every product is computed by all threads together."""
    lanes = put(trainer, "lanes", trainer.lanes[:1])
    with lanes, put(transformers_engine, "threads_for", lambda model: 1):
        yield


@contextmanager
def one_thread(trainer: Trainer) -> Iterator[None]:
    """One core has nothing to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with shared(trainer):
        yield
    torch.set_num_threads(threads)


WAYS: dict[str, Way] = {
    "as it is": lambda trainer: nullcontext(),
    "products by torch's own library": lambda trainer: put(products, "by_onednn", lambda: False),
    "threads share each product": shared,
    "one thread": one_thread,
}


if __name__ == "__main__":
    main()
