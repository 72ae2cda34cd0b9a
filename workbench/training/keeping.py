"""Which checkpoints a run saves, which of them it keeps, and how it goes back to one."""

import logging
from collections.abc import Collection

import torch

from workbench.records import Run
from workbench.training import checkpoint
from workbench.training.opening import initial_weights, open_policy
from workbench.training.record import Recorder
from workbench.training.tally import Tally
from workbench.training.team import placed
from workbench.training.trainer import Trainer

log = logging.getLogger(__name__)


class NonFinite(ArithmeticError):
    """A loss or gradient that is not finite in a recipe that stops there."""


def kept_steps(trainer: Trainer, keep: Collection[int]) -> set[int]:
    """Checkpoints that are never removed: those others start from, and the last."""
    return {*keep, trainer.recipe.steps}


def is_due(trainer: Trainer, recorder: Recorder, kept: Collection[int]) -> bool:
    """Whether the step just taken is to be saved: asked for, in its turn, or the best so far."""
    step = trainer.progress.step
    if step in kept or step % trainer.resources.checkpoint_every == 0:
        return True
    if step % trainer.recipe.validation.every != 0:
        return False
    return _rolls_back(trainer) or step == best_step(recorder.settled(), trainer.resources.best_by)


def save(trainer: Trainer, recorder: Recorder, kept: Collection[int]) -> None:
    """Saves the trainer's state, once what it counts on is recorded.

    Keeps the last checkpoints, the best, and those in `kept`.
    """
    run = recorder.settled()
    trainer.team.order("save")
    state = checkpoint.gather(trainer.policy, trainer.optimizer)
    checkpoint.save(run, trainer.policy, state, vars(trainer.progress))
    keep = {*kept, best_step(run, trainer.resources.best_by)}
    if _rolls_back(trainer):
        keep.add(_validated(trainer))
    checkpoint.prune(run, trainer.resources.keep_last, keep)


def best_step(run: Run, metric: str) -> int:
    """The training step with the highest value of a metric, the first of equals; 0 for none."""
    found = {row["step"]: row[metric] for row in run.rows() if row["step"] > 0 and metric in row}
    return max(found, key=lambda step: found[step], default=0)


def recover(trainer: Trainer, run: Run, tally: Tally) -> None:
    """Does what the recipe says after updates whose loss or gradient was not finite.

    Where it goes back to follows from the recipe alone, not from when checkpoints happened to be
    saved, so that an interrupted run and an undisturbed one do the same.

    Raises:
        NonFinite: the recipe says `stop`.
    """
    policy, failed = trainer.recipe.optimizer.nonfinite, tally.metrics().get("optim/nonfinite", 0)
    if policy == "skip" or not failed:
        return
    step = trainer.progress.step + 1
    if policy == "stop":
        raise NonFinite(
            f"step {step}: the loss or gradient of {failed:.0f} updates is not finite; "
            "Optimizer.nonfinite is 'stop': choose 'skip' or 'rollback' to go on"
        )
    target = _validated(trainer)
    log.warning("step %d is not finite: back to the weights of step %d", step, target)
    trainer.team.order("go_back", target)
    go_back(trainer, run, target)
    tally.sum("optim/rolled_back", 1)


def _rolls_back(trainer: Trainer) -> bool:
    return trainer.recipe.optimizer.nonfinite == "rollback"


def _validated(trainer: Trainer) -> int:
    """The last step that was validated in its turn; 0 is the beginning."""
    step = trainer.progress.step
    return step - step % trainer.recipe.validation.every


def go_back(trainer: Trainer, run: Run, step: int) -> None:
    """Gives the trainer the weights and the optimizer state of an earlier step of its run."""
    path = str(run.checkpoint_path(step))
    if step == 0:
        path = initial_weights(run, trainer.recipe, trainer.seed)
    else:
        checkpoint.verify(run, step)
    before = open_policy(trainer.recipe, path, trainer.resources)
    pairs = zip(trainer.policy.parameters(), before.parameters(), strict=True)
    with torch.no_grad():
        for (_, parameter), (_, value) in pairs:
            parameter.copy_(placed(value, like=parameter))
    trainer.optimizer.state.clear()
    if step > 0:
        checkpoint.load_optimizer(run.checkpoint_path(step), trainer.policy, trainer.optimizer)
