"""The gradient, measured while it is made: its variance, and how its two streams get along.

An optimizer step is cut into blocks of whole questions. Each block's gradient is an independent
estimate, so that their spread tells the variance of the whole step, and products across blocks are
free of the noise that a product within one has. The blocks are fixed by the recipe: unlike proxies
from micro-batches, nothing here depends on memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from workbench.training.team import begin, own

SKETCH = 16_384  # dimensions in training: the standard error of a squared length is then 1.1%
_ROWS = 16  # of a sketch that are added up at once: 1 MB, which a processor keeps at hand
_TOGETHER = 2**24  # numbers of several parameters that are put together: a copy of 64 MB
SFT, RL = range(2)  # the streams
WINDOW = 0.9  # what an update keeps of the sums before it: about ten updates count


class Sketch:
    """A seeded linear map of gradients to `size` numbers that keeps their products on average.

    Every entry is added, with a random sign, to one of `size` sums: a count sketch (Charikar et al.
    2002) whose sums are chosen by position. Laid out in rows of `size`, an entry's sign is that of
    row + column in one random sequence: entries of one sum never share a sign, which is all that
    the average needs, and the signs take no memory to speak of. The relative standard error of a
    squared length is about sqrt(2 / size). A gradient that is not longer than `size`, or any where
    `size` is None, is kept whole.

    Args:
        parameters: whose gradients are mapped, always in this order.
        size: how many numbers.
        seed: of the signs.
    """

    def __init__(self, parameters: Iterable[Tensor], size: int | None, seed: int = 0) -> None:
        parameters = list(parameters)
        ends = list(accumulate((p.numel() for p in parameters), initial=0))
        self._begins = [end + begin(p) for end, p in zip(ends, parameters, strict=False)]
        length = ends[-1]
        self.exact = size is None or length <= size
        self.size = length if self.exact else size or 0
        self._row = 1 if self.exact else self.size
        at_once = self._row * _ROWS
        self._together = max(1, _TOGETHER // at_once) * at_once
        rows = -(-length // self.size)
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(0, 2, (rows + self.size,), generator=generator)
        self._signs = (2.0 * bits - 1).to(parameters[0].device)

    def __call__(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The numbers [size] of one gradient; a None, of a parameter without one, is zeros.

        Of a gradient in shards it is that of this process's part; those of all add up.
        """
        total = torch.zeros(self.size, device=self._signs.device)
        for place, parts in self._runs(gradients):
            self._add(total, place, torch.cat(parts) if len(parts) > 1 else parts[0])
        return total

    def _runs(self, gradients: Sequence[Tensor | None]) -> Iterator[tuple[int, list[Tensor]]]:
        """Parts of the whole gradient that follow each other, and where the first begins.

        One by one they would be many small sums: three times as slow for a small model. They end
        where rows that are added up at once do, so that it changes no sum how many are together.
        """
        run: list[Tensor] = []
        first = end = room = 0
        for place, gradient in zip(self._begins, gradients, strict=True):
            if gradient is None:
                continue
            if run and place != end:
                yield first, run
                run = []
            part, end = own(gradient.detach()).float().flatten(), place
            while len(part):
                if not run:
                    first, room = end, -end % self._row + self._together
                taken, part = part[:room], part[room:]
                run.append(taken)
                end, room = end + len(taken), room - len(taken)
                if room == 0:
                    yield first, run
                    run = []
        if run:
            yield first, run

    def _add(self, total: Tensor, place: int, part: Tensor) -> None:
        """Adds what stands from `place` on in the whole gradient: row by row of its layout."""
        if self.exact:
            total[place : place + len(part)] += part
            return
        row, column = divmod(place, self.size)
        while len(part):
            count = min(len(part) // self.size, _ROWS) if column == 0 else 0
            if count:
                signs = self._signs[row:].as_strided((count, self.size), (1, 1))
                total += (part[: count * self.size].view(count, self.size) * signs).sum(dim=0)
                row, taken = row + count, count * self.size
            else:
                taken = min(self.size - column, len(part))
                signs = self._signs[row + column : row + column + taken]
                total[column : column + taken].addcmul_(part[:taken], signs)
                row, column = row + 1, 0
            part = part[taken:]


def blocks_of(questions: int, blocks: int) -> list[int]:
    """Which of `blocks` blocks each question of a step is in: equal ones, as far as they go."""
    blocks = min(blocks, questions)
    return [question * blocks // questions for question in range(questions)]


@dataclass(frozen=True, eq=False)
class Blocks:
    """One step's gradient by stream, demonstrations' first, and its parts by block of questions.

    Attributes:
        whole: [stream, dimension]; both add up to the step's gradient.
        parts: [stream, block, number], of which products within a block are read alone: a map of
            the parts may stand for them that keeps those.
        sizes: [block], questions in each.
    """

    whole: Tensor
    parts: Tensor
    sizes: Tensor

    def product(self, one: int, other: int) -> tuple[float, float]:
        """Covariance (its trace) and product of the means of two streams' parts of the gradient.

        Both without bias where questions are independent draws. A block of m of the step's Q
        questions has Q/m times its part as an estimate of the whole; what the sum of squares of
        these exceeds that of the step is noise.
        """
        count, questions = len(self.sizes), self.sizes.sum()
        # In single precision some processors' products lose a ten-thousandth of a long vector's.
        here = float(self.whole[one].double() @ self.whole[other].double())
        within = torch.linalg.vecdot(self.parts[one], self.parts[other])
        apart = float((within * questions / self.sizes).sum())
        covariance = (apart - here) / (count - 1)
        return covariance, here - covariance

    @property
    def norms(self) -> tuple[float, float]:
        """Lengths of the demonstrations' and the rollouts' part, noise and all."""
        sft, rl = self.whole.double().norm(dim=1).tolist()
        return sft, rl

    def moments(self) -> dict[str, float]:
        """Unbiased moments of the step's gradient, by metric name; needs two blocks."""
        noise_rl, square_rl = self.product(RL, RL)
        noise_sft, square_sft = self.product(SFT, SFT)
        common, inner = self.product(SFT, RL)
        return {
            "grad/variance": noise_rl + noise_sft + 2 * common,
            "grad/square": square_rl + square_sft + 2 * inner,
            "grad/square_rl": square_rl,
            "grad/square_sft": square_sft,
            "grad/inner_sft_rl": inner,
        }


def windowed(recent: dict[str, float], moments: dict[str, float]) -> dict[str, float]:
    """Sums of moments over the last updates, each counting less than the one after it."""
    return {key: WINDOW * recent.get(key, 0.0) + value for key, value in moments.items()}


def ratios(recent: dict[str, float], questions: int) -> dict[str, float]:
    """Ratios of windowed sums, by metric name: a ratio of one step's estimates would be biased.

    What is not defined, because a squared length is not yet above its noise, is left out.
    """
    found = {}
    sft, rl = recent["grad/square_sft"], recent["grad/square_rl"]
    if recent["grad/square"] > 0:
        found["grad/noise_scale"] = questions * recent["grad/variance"] / recent["grad/square"]
    if sft > 0 and rl > 0:
        found["grad/cosine_sft_rl"] = recent["grad/inner_sft_rl"] / (sft * rl) ** 0.5
        found["grad/share_sft"] = sft**0.5 / (sft**0.5 + rl**0.5)
    return found
