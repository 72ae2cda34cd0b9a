"""Data sets by name; the embedded world is made on the spot, not loaded."""

from functools import lru_cache

from workbench.identity import nearest
from workbench.problems.arithmetic import arithmetic
from workbench.problems.problem import Dataset
from workbench.recipe import Data

NAMES = ("arithmetic",)
TRAIN = 600  # questions of the small world unless Data.train says otherwise


@lru_cache(maxsize=8)
def load(data: Data) -> Dataset:
    """The data set, made once a process.

    Raises:
        ValueError: no data set of that name.
    """
    if data.name not in NAMES:
        raise ValueError(f"no data set {data.name!r}; {nearest(data.name, NAMES)}")
    return arithmetic(TRAIN if data.train is None else data.train, data.seed)
