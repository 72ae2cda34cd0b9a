"""Checkpoints: a folder that `from_pretrained` loads, with optimizer state and checksums.

No pickle: tensors are safetensors. A folder is renamed into place whole; its manifest holds the
SHA-256 of every file, and one that does not match is named and passed over.
"""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from workbench.durable import new_folder, remove_tree
from workbench.records import Corrupt, Run, read_json, write_json
from workbench.schema import File
from workbench.training.policy import VALUE_HEAD, Policy
from workbench.training.team import placed, whole

log = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class State:
    """The tensors of a checkpoint by name, whole: of the model, the value head, the optimizer."""

    model: dict[str, Tensor]
    head: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def gather(policy: Policy, optimizer: Optimizer, kept: bool = True) -> State:
    """The state of a policy and its optimizer, which may be in shards; asked for by all processes.

    Those that do not need it do not keep it: `kept`.
    """
    # Not of state_dict, where tied weights are there twice, as one tensor or as two.
    model = [*policy.model.named_parameters(), *policy.model.named_buffers()]
    persistent = policy.model.state_dict().keys()
    head = [] if policy.value_head is None else list(policy.value_head.state_dict().items())
    moments = [
        (f"{key}.{name}", value)
        for name, parameter in policy.parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    ]
    return State(
        _whole([(name, value) for name, value in model if name in persistent], kept),
        _whole(head, kept),
        _whole(moments, kept),
    )


def _whole(tensors: list[tuple[str, Tensor]], kept: bool) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors:
        tensor = whole(value)
        if kept:  # in shards, there may be no room on a GPU for all of them at once
            found[name] = (tensor if tensor is value else tensor.cpu()).detach().contiguous()
    return found


def save(run: Run, policy: Policy, state: State, progress: dict[str, Any]) -> None:
    """Writes the checkpoint of `progress["step"]`.

    Raises:
        DiskFull: there is no room for it; the checkpoints before it are as they were.
    """
    with new_folder(run.checkpoint_path(progress["step"]), File.CHECKPOINTS) as folder:
        policy.model.save_pretrained(folder, state_dict=state.model)
        policy.tokenizer.save_pretrained(folder)
        if state.head:
            save_file(state.head, folder / VALUE_HEAD)
        save_file(state.optimizer, folder / OPTIMIZER)
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
        raise Corrupt(run, step, f"has no readable {MANIFEST}") from error
    if owner != _identity(run):
        raise Corrupt(run, step, f"is of another run: {owner}")
    for name, digest in files.items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise Corrupt(run, step, f"is not whole: {name} is missing or not what was written")


def discard_corrupt(run: Run, step: int) -> None:
    """Removes a checkpoint that is not what was written: it is made again, as one that was lost.

    Of a run that is not finished those after it go too, so that it goes on from one before them.
    """
    if not run.checkpoint_path(step).exists():
        return
    try:
        verify(run, step)
    except Corrupt as error:
        log.warning("%s; it is removed, to be made again", error)
        for each in reversed(steps(run)):
            if each == step or (each > step and not run.finished):
                remove_tree(run.checkpoint_path(each), File.CHECKPOINTS)


def load_optimizer(path: Path, policy: Policy, optimizer: Optimizer) -> dict[str, Any]:
    """Restores the optimizer's state and returns the progress saved with it."""
    tensors = load_file(path / OPTIMIZER)
    for name, parameter in policy.parameters():
        moments = {
            key: placed(tensors[f"{key}.{name}"], like=parameter)
            for key in ("exp_avg", "exp_avg_sq")
            if f"{key}.{name}" in tensors
        }
        if moments:
            steps_taken = tensors[f"step.{name}"].to(parameter.device)
            optimizer.state[parameter] = {**moments, "step": steps_taken}
    return read_json(path / PROGRESS)


def _identity(run: Run) -> str:
    """What tells the checkpoints of two runs apart."""
    return f"{run.spec['fingerprint']} seed {run.seed}"


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
