"""Whether this machine has what a study needs: each answer is a flag and a line for people."""

import os
import shutil
import sys
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from workbench import provenance
from workbench.devices import GIB
from workbench.footprint import device_here, largest, total
from workbench.host import disk, host
from workbench.identity import fingerprint
from workbench.launch import Slot, slots
from workbench.plan import jobs
from workbench.problems import Corpus, Dataset, Verdict, loaders
from workbench.problems.contamination import WORDS, overlaps
from workbench.problems.isolation import graders
from workbench.problems.problem import Origin
from workbench.study import Study
from workbench.studyfile import Mistake, StudyFile
from workbench.validate import validate

NEEDED = (
    *("torch", "transformers", "safetensors", "datasets", "math-verify", "mlflow", "optuna"),
    *("numpy", "scipy", "pandas", "pyarrow", "matplotlib", "rich"),
)

DEMONSTRATIONS = 200  # graded by doctor, of each corpus
RIGHT = 0.9  # of them, at least: a corpus whose solutions were checked by other rules has some less

Check = tuple[bool, str]


def machine_checks(root: Path) -> list[Check]:
    """Python, processor, memory, disk, and whether torch can use each GPU."""
    there, free = _disk(root)
    return [
        (sys.version_info >= (3, 11), f"python {sys.version.split()[0]} (3.11 or later)"),
        (True, f"processor {provenance.processor()}, {_memory() / GIB:.0f} GiB memory"),
        (free > GIB, f"disk {free / GIB:.0f} GiB free at {there} (1 GiB or more)"),
        *_gpu_checks(),
    ]


def _disk(root: Path) -> tuple[Path, int]:
    """The folder that is there, and the bytes that are free in it."""
    there = next(each for each in (root, *root.parents) if each.exists())
    return there, shutil.disk_usage(there).free


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


def study_checks(file: StudyFile, root: Path) -> list[Check]:
    """Whether the model, data, rollout engine, devices, memory and disk of each study are there."""
    checks: list[Check] = []
    for variable, study in file.studies.items():
        engines = {recipe.sampling.engine for recipe in study.recipes.values()}
        checks += [(find_spec(each) is not None, f"rollout engine {each}") for each in engines]
        lacking: list[str] = []
        try:
            file.checked(variable, lambda each, found=lacking: validate(each, found))
            checks += [(False, f"{study.name}: {each}") for each in lacking]
            if not lacking:
                checks.append((True, f"{study.name}: model and data"))
                checks += data_checks(study)
            checks += [*_unpinned_checks(study, lacking), *_memory_checks(study)]
            room, said = _room(file, variable)
            checks += [said, *_disk_checks(study, root, max(1, len(room)))]
            if room:
                checks += _host_checks(study, len(room), any(slot.gpus for slot in room))
        except Mistake as mistake:
            checks.append((False, f"{study.name}: {mistake}"))
    return checks


def _room(file: StudyFile, variable: str) -> tuple[list[Slot], Check]:
    """Room for the study's cells; none where this machine lacks what they need, which is said."""
    name = file.studies[variable].name
    try:
        found = file.checked(variable, lambda each: slots(each.resources))
    except Mistake as mistake:
        return [], (False, f"{name}: {mistake}")
    return found, (True, f"{name}: room for {len(found)} cells at once")


def _unpinned_checks(study: Study, lacking: list[str]) -> list[Check]:
    """Tables that may change on the hub: said, not refused, where they are not here to tell more.

    See `data_checks` for those that are.
    """
    corpora = [r.data for r in study.recipes.values() if isinstance(r.data, Corpus)]
    tables = [rows for corpus in corpora for rows in loaders.tables_of(corpus)] if lacking else []
    floating = {r.source for r in tables if r.revision is None and not Path(r.source).exists()}
    return [
        (True, f"{study.name}: {source} is not pinned; runs take what it is when they begin")
        for source in sorted(floating)
    ]


def _memory_checks(study: Study) -> list[Check]:
    """Whether the GPU holds the arm that takes most of it, by the estimate of `plan`."""
    device = device_here(study.resources)
    if device is None:
        return []
    found = largest(study.recipes, study.resources, device, tuple(study.probes))
    if found is None:
        return []
    label, memory = found
    text = (
        f"{study.name}: arm {label} takes {memory.peak / GIB:.0f} GiB of the GPU by estimate, of "
        f"{device.memory / GIB:.0f}"
    )
    return [(memory.peak <= device.memory, text)]


def _disk_checks(study: Study, root: Path, cells: int) -> list[Check]:
    """Whether there is room for the checkpoints of what is left to train."""
    lines, (there, free) = disk(jobs(study, root), study.resources, cells), _disk(root)
    texts = [f"{line.what} {line.bytes / GIB:.1f} GiB = {line.formula}" for line in lines]
    text = f"{study.name}: {'; '.join(texts)}; {free / GIB:.0f} GiB are free at {there}"
    return [(total(lines) <= free, text)] if lines else []


def _host_checks(study: Study, cells: int, on_gpu: bool) -> list[Check]:
    """Whether the machine's memory is enough for as many cells as run at once."""
    line, there = host(study.recipes, study.resources, on_gpu, tuple(study.probes)), _memory()
    if line is None:
        return []
    needed = cells * line.bytes
    text = (
        f"{study.name}: {line.what} of {cells} cells at once {needed / GIB:.1f} GiB = {cells} x "
        f"{line.formula}; the machine has {there / GIB:.0f} GiB"
    )
    return [(needed <= there, text)]


def data_checks(study: Study) -> list[Check]:
    """Where the problems of each corpus are from, whether golds can be graded, and overlaps."""
    found = {fingerprint(r.data): r.data for r in study.recipes.values()}
    checks: list[Check] = []
    for source in found.values():
        data = loaders.load(source)
        checks += [(True, f"{data.name}: {_origin_line(origin, data)}") for origin in data.origins]
        if isinstance(source, Corpus):
            checks += [_gold_check(data), *_demonstration_checks(data), *_overlap_checks(data)]
    return checks


def _origin_line(origin: Origin, data: Dataset) -> str:
    kept = len(data.parts[origin.part]) if origin.part in data.parts else None
    problems = "" if kept is None else f", {kept} problems"
    reasons = [f"{count} {reason}" for reason, count in origin.left_out.items()]
    left_out = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"{origin.part} from {origin.source}: {origin.rows} rows{problems}{left_out}, "
        f"{_revision(origin)}"
    )


def _revision(origin: Origin) -> str:
    if origin.revision is None:
        return "a folder, which has no revision"
    short = origin.revision[:16]
    return f"pinned at {short}" if origin.pinned else f"not pinned; Rows(..., revision={short!r})"


def _gold_check(data: Dataset) -> Check:
    """Whether every gold answer, in a box, is graded as correct against itself."""
    every = [problem for problems in data.parts.values() for problem in problems]
    said = graders(data.verifier)([(f"\\boxed{{{p.answer}}}", p.answer) for p in every])
    wrong = [p.id for p, verdict in zip(every, said, strict=True) if verdict != Verdict.CORRECT]
    example = f", such as {wrong[0]}" if wrong else ""
    right = len(every) - len(wrong)
    return (
        not wrong,
        f"{data.name}: {right} of {len(every)} golds verify against themselves{example}",
    )


def _demonstration_checks(data: Dataset) -> list[Check]:
    """Whether the first demonstrations end in their gold, as training takes them all to."""
    shown = [p for p in data.train if p.demonstration is not None][:DEMONSTRATIONS]
    if not shown:
        return []
    said = graders(data.verifier)([(str(p.demonstration), p.answer) for p in shown])
    right, counted = said.count(Verdict.CORRECT), Counter(said)
    share = right / len(shown)
    others = ", ".join(f"{counted[v]} {v.value}" for v in counted if v != Verdict.CORRECT)
    text = (
        f"{data.name}: {right} of {len(shown)} demonstrations looked at end in their gold, "
        f"{share:.1%} ({RIGHT:.0%} or more are needed){others and f'; {others}'}"
    )
    return [(share >= RIGHT, text)]


def _overlap_checks(data: Dataset) -> list[Check]:
    """Test problems that share words with training: said, not refused."""
    found = [each for each in overlaps(data) if each.shared]
    lines = [
        f"{len(each.shared)} of {each.problems} in {each.suite} share {WORDS} words in a row with "
        f"training, such as {each.example!r}"
        for each in found
    ]
    nothing = f"no test problem shares {WORDS} words in a row with training"
    return [(True, f"{data.name}: {line}") for line in lines or [nothing]]
