"""How a run's weights are updated."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up, a constant part, then a fall to min_lr_ratio * lr, which is kept."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay_from: float = 0.0
    """Share of the run after which the fall begins; 0 decays from the end of the warm-up."""
    decay_to: float = 1.0
    """Share of the run at which the fall ends."""
    decay: Literal["cosine", "linear"] = "cosine"
    min_lr_ratio: float = 0.03
    clip: float = 1.0
    """Largest gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.decay_from < 1:
            raise ValueError(f"decay_from must be in [0, 1), got {self.decay_from}")
        if not self.decay_from < self.decay_to <= 1:
            raise ValueError(
                f"decay_to must be above decay_from {self.decay_from} and at most 1, "
                f"got {self.decay_to}"
            )
        if self.clip < 0:
            raise ValueError(f"clip must not be negative, got {self.clip}")
