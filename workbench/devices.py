"""GPUs that a run can be planned for, by their makers' figures."""

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A GPU by its maker's figures.

    Attributes:
        name: as `plan --on` takes it.
        memory: bytes that a program can have.
        dense: operations a second in bfloat16 and float32, without sparsity and without TF32.
        bandwidth: bytes a second of its memory.
    """

    name: str
    memory: int
    dense: Mapping[str, float]
    bandwidth: float


_AMPERE = {"bfloat16": 312e12, "float32": 19.5e12}
_HOPPER = {"bfloat16": 989e12, "float32": 67e12}
DEVICES = {
    device.name: device
    for device in (
        Device("a100-40gb", 39 * GIB, _AMPERE, 1.555e12),
        Device("a100-80gb", 79 * GIB, _AMPERE, 2.039e12),
        Device("a800-80gb", 79 * GIB, _AMPERE, 2.039e12),
        Device("h100-80gb", 79 * GIB, _HOPPER, 3.35e12),
        Device("h200", 139 * GIB, _HOPPER, 4.8e12),
    )
}
