"""The numbers that the paper reports (arXiv 2509.04419), to stand beside measured ones.

They are facts about other models and benchmarks, in percent, and always labelled as reported.
"""

from functools import lru_cache
from pathlib import Path

import pandas as pd

from analysis.style import plain
from workbench.identity import nearest
from workbench.schema import AVERAGE, AVERAGE_OOD

PAPER = "reported (paper)"

TABLES = {
    "table2_qwen7b": "Table 2, Qwen2.5-Math-7B",
    "table3_llama8b": "Table 3, Llama-3.1-8B",
    "table3_qwen1.5b": "Table 3, Qwen2.5-Math-1.5B",
    "table4_exclusive_solves": "Table 4, Qwen2.5-Math-7B on MATH-500",
    "table5_offpolicy": "Table 5, Qwen2.5-Math-1.5B",
    "table6_gate": "Table 6, Qwen2.5-Math-1.5B",
}

_FOLDER = Path(__file__).with_name("paper_numbers")
# Columns by the names of the suites that they are of, where those differ from the paper's.
_SUITES = {"amc": "amc23", "gpqa": "gpqa_diamond"}
_AVERAGES = {"id_avg": AVERAGE, "ood_avg": AVERAGE_OOD}
_KEYS = {**_SUITES, **_AVERAGES}
_BASE = ("Qwen2.5-Math-7B", "Qwen2.5-Math-1.5B", "Llama-3.1-8B")  # rows of the untrained model


@lru_cache(maxsize=len(TABLES))
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(_FOLDER / f"{name}.csv")


def reported(name: str) -> pd.DataFrame:
    """One of the paper's tables as it is: a row a method, a column a benchmark, in percent.

    Raises:
        ValueError: no such table, with the nearest name.
    """
    check(name, "reported()")
    return _read(name).copy()


def check(name: str, owner: str) -> None:
    """Raises ValueError for a table that the paper does not have, with the nearest name."""
    if name not in TABLES:
        raise ValueError(f"{owner} is {name!r}; {nearest(name, TABLES)}")


def accuracy_of(name: str, label: str) -> dict[str, float]:
    """What the paper reports of the method with this label, by suite; empty if nothing.

    Suites and averages have the keys that measured ones have; labels are compared without regard to
    case and spaces, and the untrained model's row is that of `base`.
    """
    frame = _read(name)
    first = frame.columns[0]
    for row in frame.to_dict("records"):
        method = "base" if row[first] in _BASE else str(row[first])
        if plain(method) == plain(label):
            return {_KEYS.get(str(k), str(k)): v for k, v in row.items() if k != first}
    return {}


def note(name: str) -> str:
    """Whose numbers these are."""
    suites = [column for column in _read(name).columns[1:] if column not in _AVERAGES]
    return (
        f"Reported (paper): arXiv 2509.04419, {TABLES[name]}, percent on its own benchmarks "
        f"({', '.join(suites)}); not measured here."
    )
