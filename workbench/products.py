"""Products of float32 matrices by oneDNN, where the library that torch takes for them is slow.

torch multiplies float32 on a processor by MKL, which uses half the width of the vector units of
AMD's; oneDNN, which is in torch as well, uses all of it and is twice as fast there
(`benchmarks/processor.py`). Both compute in float32; sums are in another order. Elsewhere, and for
anything else, torch does what it ever does.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# oneDNN makes a program for each number of rows, in as much time as some products take: it pays
# for numbers that come again.
ROWS = 64


@cache
def by_onednn() -> bool:
    """Whether oneDNN is the faster one here: on AMD's processors with AVX-512."""
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return maker and wide and torch.backends.mkldnn.is_available()


def products(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Inside, layers on a device compute as fast as it can, in this thread."""
    float32 = device.type == "cpu" and dtype == torch.float32
    return _Faster() if float32 and by_onednn() else nullcontext()


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by the faster library."""
    fits = rows.dtype == weight.dtype == torch.float32 and rows.device.type == "cpu"
    if not fits or rows.shape[:-1].numel() % ROWS or not by_onednn():
        return functional.linear(rows, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(rows, weight, bias)  # type: ignore[no-any-return]
    return _product(rows, weight, bias)


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows [..., k] times columns [n, k], each with each: [..., n]."""
    return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.T) if of_rows else None,
            _product(flat.T.contiguous(), rows.flatten(0, -2).T) if of_weight else None,
            flat.sum(dim=0) if of_bias else None,
        )


class _Faster(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
