"""Checkpoints: a folder that `from_pretrained` loads, with optimizer state and checksums.

No pickle: tensors are safetensors. A folder is renamed into place whole; its manifest holds the
SHA-256 of every file, and one that does not match is named and passed over.
"""

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from workbench.durable import new_folder, remove_tree
from workbench.records import Run, read_json, write_json
from workbench.schema import File
from workbench.training.policy import VALUE_HEAD, Policy

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
MANIFEST = "manifest.json"


class Corrupt(RuntimeError):
    """A checkpoint that is not what its manifest says."""


def save(run: Run, policy: Policy, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Writes the checkpoint of `progress["step"]`.

    Raises:
        DiskFull: there is no room for it; the checkpoints before it are as they were.
    """
    with new_folder(run.checkpoint_path(progress["step"]), File.CHECKPOINTS) as folder:
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        if policy.value_head is not None:
            save_file(policy.value_head.state_dict(), folder / VALUE_HEAD)
        save_file(_optimizer_tensors(policy, optimizer), folder / OPTIMIZER)
        write_json(folder / PROGRESS, progress)
        files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {"run": _identity(run), "files": files})


def prune(run: Run, last: int, keep: Collection[int]) -> None:
    """Removes all checkpoints but the last ones and those in `keep`."""
    for step in steps(run)[:-last]:
        if step not in keep:
            remove_tree(run.checkpoint_path(step), File.CHECKPOINTS)


def steps(run: Run) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    found = (run.path / File.CHECKPOINTS).glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def latest(run: Run) -> int | None:
    """The newest checkpoint that is whole; corrupt ones are named in the log and passed over."""
    found = steps(run)
    for step in reversed(found):
        try:
            verify(run, step)
        except Corrupt as error:
            log.warning("%s; going back to the one before", error)
        else:
            return step
    if found:
        log.warning("%s: no checkpoint is whole; training begins again", run.path)
    return None


def verify(run: Run, step: int) -> None:
    """Checks every file of a checkpoint against its manifest.

    Raises:
        Corrupt: naming the first file that is missing or differs, or the run that it is of.
    """
    path = run.checkpoint_path(step)
    try:
        manifest = read_json(path / MANIFEST)
        files, owner = dict(manifest["files"]), manifest["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"checkpoint {path} has no readable {MANIFEST}") from error
    if owner != _identity(run):
        raise Corrupt(f"checkpoint {path} is of another run: {owner}")
    for name, digest in files.items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise Corrupt(f"checkpoint {path}: {name} is missing or not what was written")


def load_optimizer(path: Path, policy: Policy, optimizer: Optimizer) -> dict[str, Any]:
    """Restores the optimizer's state and returns the progress saved with it."""
    tensors = load_file(path / OPTIMIZER)
    for name, parameter in policy.parameters():
        keys = [k for k in ("exp_avg", "exp_avg_sq", "step") if f"{k}.{name}" in tensors]
        device = parameter.device
        state = {key: tensors[f"{key}.{name}"].to(device) for key in keys}
        if state:
            optimizer.state[parameter] = state
    return read_json(path / PROGRESS)


def _optimizer_tensors(policy: Policy, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in policy.parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{key}.{name}"] = value.contiguous()
    return found


def _identity(run: Run) -> str:
    """What tells the checkpoints of two runs apart."""
    return f"{run.spec['fingerprint']} seed {run.seed}"


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
