"""Where a run happens: what may never change its result beyond rounding, so it is never hashed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What one cell may use.

    Attributes:
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`.
        threads: processor threads a cell; as many cells run at once as the cores allow.
        tokens: padded tokens in one micro-batch; bounds memory, changes no result.
        sequences: sequences that one rollout call decodes together.
        checkpoint_every: training steps between two checkpoints; what a crash can cost.
    """

    device: str = "auto"
    threads: int = 1
    tokens: int = 16_384
    sequences: int = 512
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"Resources.device is {self.device!r}; choose auto, cpu or cuda")
        for field in ("threads", "tokens", "sequences", "checkpoint_every"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"Resources.{field} must be at least 1, got {getattr(self, field)}"
                )
