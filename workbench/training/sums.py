"""How many sums stand for the part of a block in the gradient of a matrix.

Kept apart from `workbench.training.parting`, which takes them, for `workbench.footprint`, which
counts them without torch.
"""

# Sums of an input with signs: of all matrices together, the least of one, and how many times more
# of a vocabulary's, for half of the square of a gradient may be theirs.
SUMS, LEAST, VOCABULARY = 116, 4, 8


def sums(matrices: int) -> int:
    """How many are taken of each matrix's inputs, of so many matrices."""
    return max(LEAST, SUMS // matrices)
