"""Problems with gold answers, the small arithmetic world, and the verifier of responses."""

from workbench.problems.arithmetic import arithmetic
from workbench.problems.problem import Dataset, Problem, Suite
from workbench.problems.verifier import Verdict, extract_boxed, verify

__all__ = ["Dataset", "Problem", "Suite", "Verdict", "arithmetic", "extract_boxed", "verify"]
