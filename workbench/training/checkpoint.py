"""Checkpoints: a folder that `from_pretrained` loads, with optimizer state and checksums.

No pickle: tensors are safetensors. A folder is renamed into place whole; its manifest holds the
SHA-256 of every file, and one that does not match is named and passed over.
"""

import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from workbench.records import Run, read_json, remove_tree, sync_directory, write_json
from workbench.schema import File
from workbench.training.policy import VALUE_HEAD, Policy

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
MANIFEST = "manifest.json"


class Corrupt(RuntimeError):
    """A checkpoint that is not what its manifest says."""


def save(
    run: Run, policy: Policy, optimizer: Optimizer, progress: dict[str, Any], keep: Collection[int]
) -> None:
    """Writes the checkpoint of `progress["step"]`; keeps it, the one before and those in `keep`."""
    final = run.checkpoint_path(progress["step"])
    if final.exists():
        remove_tree(final)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    policy.model.save_pretrained(temporary)
    policy.tokenizer.save_pretrained(temporary)
    if policy.value_head is not None:
        save_file(policy.value_head.state_dict(), temporary / VALUE_HEAD)
    save_file(_optimizer_tensors(policy, optimizer), temporary / OPTIMIZER)
    write_json(temporary / PROGRESS, progress)
    write_json(temporary / MANIFEST, {p.name: _sync_and_hash(p) for p in _files(temporary)})
    os.replace(temporary, final)
    sync_directory(final.parent)
    for step in steps(run)[:-2]:
        if step not in keep:
            remove_tree(run.checkpoint_path(step))


def steps(run: Run) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    found = (run.path / File.CHECKPOINTS).glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def latest(run: Run) -> int | None:
    """The newest checkpoint that is whole; corrupt ones are named in the log and passed over."""
    for step in reversed(steps(run)):
        try:
            verify(run.checkpoint_path(step))
        except Corrupt as error:
            log.warning("%s; going back to the one before", error)
        else:
            return step
    return None


def verify(path: Path) -> None:
    """Checks every file against the manifest.

    Raises:
        Corrupt: naming the first file that is missing or differs.
    """
    if not (path / MANIFEST).is_file():
        raise Corrupt(f"checkpoint {path} has no manifest")
    for name, digest in read_json(path / MANIFEST).items():
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)


def _sync_and_hash(path: Path) -> str:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        return hashlib.sha256(handle.read()).hexdigest()
