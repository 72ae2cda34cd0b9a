"""Whether this machine has what a study needs: each answer is a flag and a line for people."""

import os
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from workbench import provenance
from workbench.launch import slots
from workbench.plan import validate
from workbench.studyfile import Mistake, StudyFile

NEEDED = ("torch", "transformers", "mlflow", "numpy", "pandas", "pyarrow", "matplotlib", "rich")

Check = tuple[bool, str]


def machine_checks(root: Path) -> list[Check]:
    """Python, processor, memory, disk, and whether torch can use each GPU."""
    there = next(each for each in (root, *root.parents) if each.exists())
    free = shutil.disk_usage(there).free / 2**30
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        (sys.version_info >= (3, 11), f"python {sys.version.split()[0]} (3.11 or later)"),
        (True, f"processor {provenance.processor()}, {memory:.0f} GiB memory"),
        (free > 1, f"disk {free:.0f} GiB free at {there} (1 GiB or more)"),
        *_gpu_checks(),
    ]


def _gpu_checks() -> list[Check]:
    gpus = provenance.gpus()
    if not gpus:
        return [(True, "no GPU: cells train on the processor")]
    import torch

    usable = torch.cuda.is_available()
    return [(usable, f"{name} {uuid}, usable by torch {torch.__version__}") for uuid, name in gpus]


def package_checks() -> list[Check]:
    """The version of each package that is needed, or how to get it."""
    checks = []
    for name in NEEDED:
        try:
            checks.append((True, f"{name} {metadata.version(name)}"))
        except metadata.PackageNotFoundError:
            checks.append((False, f"{name} is not installed; pip install {name}"))
    return checks


def study_checks(file: StudyFile) -> list[Check]:
    """Whether the model, the data, the rollout engine and the device of each study are there."""
    checks: list[Check] = []
    for variable, study in file.studies.items():
        engines = {recipe.sampling.engine for recipe in study.recipes.values()}
        checks += [(find_spec(each) is not None, f"rollout engine {each}") for each in engines]
        try:
            file.checked(variable, validate)
            checks.append((True, f"{study.name}: model and data"))
            room = file.checked(variable, lambda each: slots(each.resources))
            checks.append((True, f"{study.name}: room for {len(room)} cells at once"))
        except Mistake as mistake:
            checks.append((False, f"{study.name}: {mistake}"))
    return checks
