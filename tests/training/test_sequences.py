"""Micro-batches: every row once, within the budget, and no other grouping costs less."""

from itertools import combinations, pairwise

import pytest

from workbench.problems import Problem, Verdict
from workbench.training.sequences import PASS, Sequence, micro_batches

PROBLEM = Problem(id="p", question="1+1", answer="2")


def rows_of(lengths: list[int], demonstration: bool = False) -> list[Sequence]:
    return [
        Sequence(PROBLEM, 0, (1,), (1,) * (n - 1), "", Verdict.WRONG, demonstration=demonstration)
        for n in lengths
    ]


def cost(groups: list[list[int]], tokens: int) -> float:
    return sum(len(group) * max(group) + PASS * tokens for group in groups)


def every_grouping(lengths: list[int], tokens: int) -> list[list[list[int]]]:
    """All ways to cut sorted lengths into groups that fit, or have one sequence."""
    ordered, found = sorted(lengths), []
    for cuts in range(len(lengths)):
        for inner in combinations(range(1, len(lengths)), cuts):
            edges = (0, *inner, len(lengths))
            groups = [ordered[first:last] for first, last in pairwise(edges)]
            if all(len(g) == 1 or len(g) * max(g) <= tokens for g in groups):
                found.append(groups)
    return found


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        ([5], 64),
        ([5, 5, 5, 5], 64),
        ([40, 3, 3, 2, 38, 9], 128),
        ([2, 60, 2, 60, 2, 60], 120),
        ([100, 7, 8, 9], 64),  # one is longer than the budget
        ([3, 50, 4, 5, 30, 31, 6, 7, 8, 9], 160),
    ],
)
def test_no_other_grouping_costs_less(lengths: list[int], tokens: int) -> None:
    sequences = rows_of(lengths)
    groups = micro_batches(sequences, range(len(lengths)), tokens)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    found = [[lengths[row] for row in group] for group in groups]
    assert all(len(g) == 1 or len(g) * max(g) <= tokens for g in found)
    assert cost(found, tokens) == min(cost(g, tokens) for g in every_grouping(lengths, tokens))


def test_streams_are_never_mixed() -> None:
    sequences = rows_of([4, 4]) + rows_of([4, 4], demonstration=True)
    assert micro_batches(sequences, [0, 2, 3], 64) == [[2, 3], [0]]
    assert micro_batches(sequences, [], 64) == []
