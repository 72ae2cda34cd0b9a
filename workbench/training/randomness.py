"""Random numbers that follow from names, so that nothing about them has to be saved or restored."""

import hashlib
import random


def seed_of(*names: object) -> int:
    """A 63-bit seed that the names decide, the same in every process."""
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def questions_of(step: int, per_step: int, total: int, seed: int) -> tuple[list[int], int]:
    """Indices of a step's questions and the epoch that the first of them belongs to.

    Every epoch is a permutation of its own; a step at the seam takes the end of one and the start
    of the next, so that all questions are met equally often. Steps count from 1, epochs from 0.
    """
    first = (step - 1) * per_step
    orders: dict[int, list[int]] = {}
    found = []
    for place in range(first, first + per_step):
        epoch = place // total
        if epoch not in orders:
            orders[epoch] = list(range(total))
            random.Random(seed_of(seed, "order", epoch)).shuffle(orders[epoch])
        found.append(orders[epoch][place % total])
    return found, first // total
