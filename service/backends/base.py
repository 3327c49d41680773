"""What every runtime offers the engine: five calls on batches, and its limits.

B images, R rows, C latent channels. A row never depends on the other rows of its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from models.bridge import Posterior
from models.context import Context

Call: TypeAlias = Literal["encode", "decode", "prefill", "velocity"]


@dataclass(frozen=True)
class Cost:
    """What one call took. memory_bytes: device memory beyond what was held before, with the call's
    inputs; 0 where the device does not tell. preparing_s: what making that size ready took before.
    """

    seconds: float
    memory_bytes: int = 0
    preparing_s: float = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Shapes without the batch axis and the largest batches that a backend accepts.

    other_sizes: `encode` and `decode` also run other sizes, in whole latent cells; padded: batches
    of a few sizes run faster, so that it pays to fill others up.
    """

    image_size: tuple[int, int]
    latent_shape: tuple[int, int, int]
    max_rows: int
    max_images: int
    other_sizes: bool = False
    padded: bool = False

    def __post_init__(self) -> None:
        if self.max_rows < 3:
            raise ValueError(f"max_rows must fit one guided edit (3 rows), got {self.max_rows}")
        if self.max_images < 1:
            raise ValueError(f"max_images must be >= 1, got {self.max_images}")
        (height, width), (_, rows, columns) = self.image_size, self.latent_shape
        if height % rows or width % columns:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by the latents' grid "
                f"{self.latent_shape[1:]}"
            )

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width in pixels of what one latent covers."""
        (height, width), (_, rows, columns) = self.image_size, self.latent_shape
        return height // rows, width // columns


class Backend(Protocol):
    """One runtime with one loaded model; called from one thread.

    Tensors come from any device and leave on the backend's own. Every call may raise
    service.errors.BackendError, and OutOfMemory where a smaller batch could succeed.
    """

    @property
    def name(self) -> str:
        """The runtime's name, for logs and metrics."""
        ...

    @property
    def limits(self) -> Limits: ...

    def encode(self, images: Tensor) -> Posterior:
        """Posterior over normalized latents (B, C, h, w) of images (B, 3, H, W) in [0, 1].

        Images have the limits' size, or any whole number of cells with `other_sizes`.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [0, 1] and not clamped, of latents (B, C, h, w).

        Latents have the limits' shape, or any h and w with `other_sizes`.
        """
        ...

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> Context:
        """One context row per prompt; source_latents (B, C, h, w) for edits.

        `guide` prepares rows for the weaker model that autoguidance starts from.
        """
        ...

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents x (R, C, h, w) at times t (R,) in [0, 1]."""
        ...

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Make these batch sizes ready and run every call once, so that no request pays for first
        use.
        """
        ...

    def measure(self, call: Call, size: int) -> Cost:
        """What a call of `size` rows, or images of the model's own size, takes from its start to
        its end on the device.
        """
        ...

    def memory_bytes(self) -> int:
        """Device memory that this process holds now."""
        ...

    def free_bytes(self) -> int | None:
        """Device memory that is free; None where running out of it is not to be expected."""
        ...
