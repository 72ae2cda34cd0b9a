"""The script for GPUs goes every way that a processor has, and fails where it says that it does."""

import subprocess
import sys
from importlib.util import find_spec
from math import inf, nan
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
WAYS = (
    "transformers",
    "transformers, layers recomputed",
    "transformers, in shards (FSDP2, one process)",
)
FINE = {"grad/variance": 2.0, "grad/square": -1.0, "grad/norm_rl": 1.0}


@pytest.mark.integration
def test_the_script_for_gpus_runs_on_a_processor() -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--size", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for way in WAYS:
        assert any(line.startswith(f"{way}: rollout ") for line in lines), way
    assert sum("model FLOP utilization unknown" in line for line in lines) >= 3
    assert sum("gradient: " in line and "grad/variance" in line for line in lines) >= 3
    compared = "left out: TRL" if find_spec("trl") is None else "  TRL takes "
    assert any(line.startswith(compared) for line in lines)


@pytest.mark.parametrize(("found", "odd"), [
    (FINE, []),
    ({**FINE, "grad/noise_scale": inf}, ["grad/noise_scale missing or not finite"]),
    ({**FINE, "grad/square": nan}, ["grad/square missing or not finite"]),
    ({"grad/variance": 2.0}, ["grad/square, grad/norm_rl missing or not finite"]),
])  # fmt: skip
def test_statistics_of_the_gradient_have_to_be_there_and_finite(found, odd, monkeypatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    assert gpu._odd_statistics(found) == odd
