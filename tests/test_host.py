"""Disk and memory of the machine, worked out before a run, against sums by hand."""

import sys
from collections import namedtuple
from pathlib import Path

import pytest

from workbench import (
    Optimizer,
    Probe,
    Resources,
    Study,
    Validation,
    doctor,
    presets,
    replace,
    upge,
)
from workbench.cli_estimate import describe
from workbench.devices import GIB
from workbench.doctor import study_checks
from workbench.footprint import Shape, memory, total
from workbench.host import disk, host
from workbench.launch import Slot
from workbench.plan import jobs
from workbench.problems import published
from workbench.recipe import Data, Recipe
from workbench.records import run_of
from workbench.studyfile import StudyFile

SMALL = Recipe("arithmetic-1m", Data("arithmetic"), upge.sft(), steps=40)
P = 1_058_304  # of the model above
TINY = Shape(4, 128, 512, 4, 4, 55, tied=True, qkv_bias=True)
ROLLED_BACK = Optimizer(nonfinite="rollback")
HALFWAY = SMALL.using(upge.grpo()).start_from(SMALL, step=20)

# Runs and checkpoints by hand: the newest two and the best of each, one more of one being written.
DISK = {
    "one run": ({"a": SMALL}, Resources(), 3 + 1),
    "three seeds, two at once": ({"a": SMALL}, Resources(keep_last=1), 3 * 2 + 2),
    "a model as it is": ({"a": SMALL, "base": SMALL.using(None)}, Resources(), 3 + 1),
    "one that another starts from": ({"a": HALFWAY}, Resources(), 3 + 4 + 1),
    "one to go back to": ({"a": replace(SMALL, optimizer=ROLLED_BACK)}, Resources(), 4 + 1),
    "no more than steps": ({"a": replace(SMALL, steps=2)}, Resources(), 2 + 1),
}


@pytest.mark.parametrize("case", DISK)
def test_checkpoints_take_12_bytes_a_parameter_and_as_many_as_are_kept(case, tmp_path) -> None:
    arms, resources, count = DISK[case]
    seeds, cells = (range(3), 2) if "seeds" in case else ((0,), 1)
    found = disk(jobs(Study("s", arms, seeds), tmp_path), resources, cells)
    assert total(found) == count * 12 * P


def test_what_is_finished_or_there_already_takes_nothing_more(tmp_path) -> None:
    study = Study("s", {"a": SMALL}, (0, 1))
    for seed in (0, 1):
        run = run_of(tmp_path, SMALL, seed)
        run.create(SMALL, seed)
        run.checkpoint_path(10).mkdir(parents=True)
    run.finish({})
    (kept, written) = disk(jobs(study, tmp_path), Resources())
    assert kept.formula == f"1 runs x 2 (2 newest, 1 best; 1 are there) x 12 P, P = {P:,}"
    assert written.formula == "1 at once x 12 P"


def test_a_probe_keeps_the_checkpoint_that_it_is_at(tmp_path) -> None:
    study = Study("s", {"a": SMALL}, (0,), probes=[Probe((upge.grpo(),), step=20)])
    assert total(disk(jobs(study, tmp_path), Resources())) == (3 + 1 + 1) * 12 * P


LARGE = presets.paper_arms(
    presets.long_qwen("Qwen/Qwen2.5-Math-1.5B"), published.openr1_math_46k()
)["GRPO"]
LARGE_P = 1_543_714_304
HOST = {  # bytes a parameter: 8 to write moments, 4 a process to read, 12 to put shards together
    "one process": (Resources(), 8),
    "two": (Resources(gpus=2, processes=2), 12),
    "eight": (Resources(gpus=8, processes=8), 32),
}


@pytest.mark.parametrize("case", HOST)
def test_beside_gpus_the_machine_holds_what_is_read_or_written(case) -> None:
    resources, number = HOST[case]
    found = host({"a": LARGE}, resources, on_gpu=True)
    assert found is not None
    assert found.bytes == number * LARGE_P


def test_without_gpus_the_machine_holds_the_training() -> None:
    found = host({"a": SMALL}, Resources(processes=2, gpus=2), on_gpu=False)
    assert found is not None
    assert found.bytes == 2 * memory(SMALL, Resources(processes=2, gpus=2), TINY, None).peak


# A probe comes after the training, in one process: a trainer's 16 P, and keys and values of as many
# sequences as may be together, or an update with, where the policy is moved, 4 P of a gradient.
DRAWN = "keys and values 8 L (KV heads) (head) s of 512 sequences"
PROBED = {
    "that draws": (Probe((upge.grpo(),)), Resources(tokens=64), 512 * (64 + 128) * 4096, DRAWN),
    "that is moved": (Probe((upge.grpo(),), distance=1), Resources(sequences=1), None, "sketched"),
}


@pytest.mark.parametrize("case", PROBED)
def test_without_gpus_the_machine_holds_a_probe_where_it_takes_more(case) -> None:
    probe, resources, more, words = PROBED[case]
    recipe = replace(SMALL, gradient_blocks=1, validation=Validation(samples=1, problems=1))
    found = host({"a": recipe}, resources, on_gpu=False, probes=(probe,))
    assert found is not None
    more = more or total(memory(recipe, resources, TINY, None).update) + 4 * P
    assert found.bytes == 16 * P + more
    assert found.formula.startswith("what a probe holds, in one process: weights 4 P, float32, ")
    assert found.formula.endswith(words)


# --- doctor and plan ------------------------------------------------------------------------------

Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize(("free", "installed", "lacks"), [
    (75, 12, ""),
    (68, 12, "disk"),
    (75, 11, "memory"),
])  # fmt: skip
def test_doctor_compares_disk_and_memory_with_what_a_study_needs(
    free, installed, lacks, tmp_path, monkeypatch
) -> None:
    """1.5B: 4 checkpoints of 17.25 GiB are 69.0, and moments of 11.5 GiB on their way to a file."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(free * GIB))
    monkeypatch.setattr(doctor, "_memory", lambda: installed * GIB)
    monkeypatch.setattr(doctor, "validate", lambda study, lacking: lacking.append("the hub"))
    monkeypatch.setattr(doctor, "slots", lambda resources: [Slot("gpu", ("GPU-1",))])
    study = Study("large", {"GRPO": LARGE})
    checks = study_checks(StudyFile(Path("x.py"), sys, {"study": study}), tmp_path)
    found = {what: fine for fine, text in checks for what in ("checkpoints", "memory of 1 cells")
             if what in text}  # fmt: skip
    assert found == {"checkpoints": lacks != "disk", "memory of 1 cells": lacks != "memory"}
    (line,) = [text for _, text in checks if "being written" in text]
    assert "51.8 GiB = 1 runs x 3 (2 newest, 1 best) x 12 P, P = 1,543,714,304" in line
    assert f"17.3 GiB = 1 at once x 12 P; {free} GiB are free at {tmp_path}" in line


def test_a_plan_says_the_same_of_disk_and_memory(tmp_path) -> None:
    study = Study("large", {"GRPO": LARGE}, (0,))
    said = "\n".join(describe(study, jobs(study, tmp_path), "h100-80gb"))
    assert "on its disk: checkpoints 51.8 GiB = 1 runs x 3 (2 newest, 1 best) x 12 P" in said
    assert "for each cell at a time: memory 11.5 GiB = 8 P, moments" in said
