"""Where a run happens: what may never change its result beyond rounding, so it is never hashed."""

from dataclasses import dataclass, replace
from typing import Annotated, Self

from workbench.identity import conform
from workbench.recipe import ACCURACY
from workbench.rules import Count, OneOf, Positive, Whole

LOGITS = 2**27  # half a GiB in float32: large enough that a part of them keeps a GPU busy
LEAST_TOKENS = 256  # a micro-batch below which memory is not what a smaller one would save
NOT_SPREAD = (
    "but on a processor vLLM's processes share memory by a name that is one for the whole machine: "
    "a second engine, or the next after one that was killed, could not start"
)


class Lacking(ValueError):
    """What is asked for may be right, but this machine cannot have it: no mistake of the study."""


@dataclass(frozen=True)
class Resources:
    """What one cell may use.

    Attributes:
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`.
        gpus: GPUs a cell, each by UUID and to itself; as many cells run at once as there are GPUs
            for.
        processes: processes, each on a GPU of its own where there are any, that a cell's model is
            trained by together: each has a part of parameters, gradients and optimizer (FSDP2) and
            draws and learns from a part of the responses.
        threads: processor threads of each process; as many cells run at once as the cores allow. Of
            several threads a small model's responses and micro-batches take one each, side by side,
            and so do a cell's probes and the graders of answers that must be interpreted.
        tokens: in one micro-batch, where a prompt that sequences share counts once and padding, of
            models that are read in padded lines, counts too; micro-batches that are side by side
            have so many together. Bounds memory, changes no result. None
            takes what was fastest: 2,048 on a processor (it stays in the cache), 32,768 on a GPU.
        logits: tokens times vocabulary of which the output layer's results are held together; what
            is more is computed in parts, and again for the gradient. Bounds memory, changes no
            result.
        recompute: keep the input of each layer alone and compute the rest again for the gradient,
            which takes a third more of an update's arithmetic.
        sequences: sequences that one rollout call decodes together.
        tensor_parallel: GPUs that a vLLM engine is spread over.
        engine_apart: whether a vLLM engine has the last of the cell's GPUs to itself; else it
            shares the trainer's, and sleeps while that works.
        engine_cache: GiB that a vLLM engine has for keys and values on each device; None takes 1 on
            a processor and on a GPU what is left of 45% of it, or of 90% where it is apart.
        checkpoint_every: training steps between two checkpoints; what a crash can cost.
        keep_last: how many of the newest checkpoints are kept, besides the best.
        best_by: the validation metric that says which checkpoint is the best; larger is better.
        patience: seconds without a sign of progress after which a cell is ended and tried again.
        retries: how often a cell is tried again that was killed, made no progress, or was out of
            memory. One that was preempted is always tried again, one with an error in it never.
    """

    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"
    gpus: Count = 1
    processes: Count = 1
    threads: Count = 1
    tokens: Count | None = None
    logits: Count = LOGITS
    recompute: bool = False
    sequences: Count = 512
    tensor_parallel: Count = 1
    engine_apart: bool = False
    engine_cache: Positive | None = None
    checkpoint_every: Count = 10
    keep_last: Count = 2
    best_by: Annotated[str, ACCURACY] = "validation/pass_at_1"
    patience: Positive = 1800.0
    retries: Whole = 2

    def __post_init__(self) -> None:
        conform(self)
        if self.processes > 1 and (self.engine_apart or self.tensor_parallel > 1):
            raise ValueError(
                f"Resources.processes is {self.processes}, each with a vLLM engine of its own on "
                "its own GPU, so that engine_apart and tensor_parallel have nothing to say; leave "
                "them out, or use processes=1"
            )
        if self.device == "cpu" and self.tensor_parallel > 1:
            raise ValueError(
                f"Resources.tensor_parallel is {self.tensor_parallel}, {NOT_SPREAD}; use "
                "tensor_parallel=1"
            )
        needed = max(self.processes, self.tensor_parallel + self.engine_apart)
        if self.device != "cpu" and needed > self.gpus:
            apart = " apart from the trainer" if self.engine_apart else ""
            who = f"a vLLM engine on {self.tensor_parallel}{apart} needs"
            if self.processes > 1:
                who = "as many processes need"
            raise ValueError(
                f"Resources.gpus is {self.gpus}, but {who} {needed}; use gpus={needed}"
            )

    def micro_batch(self, on_gpu: bool) -> int:
        """Tokens in one micro-batch on that kind of device."""
        return self.tokens or (32_768 if on_gpu else 2_048)

    def halved(self, on_gpu: bool) -> Self | None:
        """These with half the memory for what is computed together; None where there is no half."""
        tokens = self.micro_batch(on_gpu) // 2
        if tokens < LEAST_TOKENS:
            return None
        return replace(self, tokens=tokens, sequences=max(1, self.sequences // 2))
