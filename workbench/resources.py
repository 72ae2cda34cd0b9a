"""Where a run happens: what may never change its result beyond rounding, so it is never hashed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What one cell may use.

    Attributes:
        device: `auto` takes a GPU where there is one; or `cpu`, `cuda`.
        threads: processor threads a cell; as many cells run at once as the cores allow.
        tokens: padded tokens in one micro-batch; bounds memory, changes no result. None takes what
            was fastest: 2,048 on a processor (it stays in the cache), 32,768 on a GPU.
        sequences: sequences that one rollout call decodes together.
        checkpoint_every: training steps between two checkpoints; what a crash can cost.
    """

    device: str = "auto"
    threads: int = 1
    tokens: int | None = None
    sequences: int = 512
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"Resources.device is {self.device!r}; choose auto, cpu or cuda")
        for field in ("threads", "tokens", "sequences", "checkpoint_every"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"Resources.{field} must be at least 1, got {value}")

    def micro_batch(self, on_gpu: bool) -> int:
        """Padded tokens in one micro-batch on that kind of device."""
        return self.tokens or (32_768 if on_gpu else 2_048)
