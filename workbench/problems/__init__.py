"""Problems with gold answers, the small arithmetic world, and the verifiers of responses."""

from workbench.problems.arithmetic import arithmetic
from workbench.problems.corpus import Benchmark, Corpus, Rows
from workbench.problems.problem import Dataset, Problem, Suite
from workbench.problems.prompts import Chat, Prompt, Text
from workbench.problems.verifier import (
    ExactMatch,
    MathMatch,
    Verdict,
    Verifier,
    extract_boxed,
    verify,
)

__all__ = [
    "Benchmark",
    "Chat",
    "Corpus",
    "Dataset",
    "ExactMatch",
    "MathMatch",
    "Problem",
    "Prompt",
    "Rows",
    "Suite",
    "Text",
    "Verdict",
    "Verifier",
    "arithmetic",
    "extract_boxed",
    "verify",
]
