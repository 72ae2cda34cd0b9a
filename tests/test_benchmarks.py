"""Benchmarks run, with as little as they take; the one for GPUs fails where it says it does."""

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


# What `make bench` runs, but for TRL's side of a step, and what else takes seconds; a line of each.
LEAST = {
    "rollout.py --steps 1": "realistic rollouts: ",
    "gradient_stats.py --steps 1 --draws 2": "luffy grad/variance of one step: deviation ",
    "study.py --cells 1 --steps 1": "tracking: ",
    "grading.py --rounds 1": "| 1 | while others are drawn | ",
}


@pytest.mark.integration
@pytest.mark.parametrize("command", LEAST)
def test_a_benchmark_prints_what_it_measures(command: str) -> None:
    script, *options = command.split()
    whole = [sys.executable, str(FOLDER / script), *options]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.startswith(LEAST[command]) for line in done.stdout.splitlines()), done.stdout


def test_a_step_of_the_workbench_is_timed_with_its_parts(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import sides
    import step

    work = step.WORKLOADS["realistic"]
    setting = step.Setting(sides.model_in(tmp_path, work.ends), work, "float32", questions=2)
    side = sides.Side(step.workbench, setting)
    for _ in range(3):
        taken = side.take()
        assert 0 < taken.tokens <= 2 * sides.GROUP * work.tokens
        assert set(taken.parts) == set(step.PARTS)
        assert 0 < sum(taken.parts.values()) < taken.seconds
    side.end()
    assert side.process.exitcode == 0


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
