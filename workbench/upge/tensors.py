"""torch, imported when the first tensor is computed with.

A component is a value, and a study file, a plan or a report makes thousands of them without
computing any; importing torch takes longer than all else that these commands do. Modules that
declare components take `torch` and `Tensor` from here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:
    Tensor = Any  # of annotations; `torch.Tensor` is the class

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()
