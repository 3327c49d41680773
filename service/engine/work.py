"""What goes into the engine and what comes out of it."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from torch import Tensor

from models.manifest import Sampler


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model row of a picture: its prompt, whether it sees the source, and which model runs it:
    the bundle's own, or its guide.
    """

    prompt: str
    edit: bool
    guide: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureWork:
    """One picture to denoise; with a source it is an edit or a variation.

    source: (3, H, W) uint8; mask: (H, W) bool, True where the source may change, None: everywhere;
    partial_images: previews on the way, 0 to 3; owner: whose job it is: what is kept of it is used
    again for nobody else; urgency: lower is served first; deadline_at: Unix seconds; strength in
    (0, 1]: below 1 the run starts from the noised source. Scales of 1 are off; others act where t
    is in guidance_interval, t = 1 being noise. autoguided: guidance starts from the guide model
    with the same prompt, not from the negative prompt.
    """

    id: str
    prompt: str
    seed: int
    num_steps: int
    guidance_scale: float
    sampler: Sampler = "euler"
    negative_prompt: str = ""
    image_guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    strength: float = 1.0
    autoguided: bool = False
    source: Tensor | None = None
    mask: Tensor | None = None
    partial_images: int = 0
    owner: str = ""
    urgency: int = 0
    deadline_at: float | None = None

    def rows(self) -> list[Row]:
        """The picture's model rows.

        The conditional row is first; the last is the one that guidance starts from.
        """
        guided, edit = self.guidance_scale != 1, self.source is not None
        rows = [Row(prompt=self.prompt, edit=edit)]
        if self.autoguided:
            return [*rows, Row(prompt=self.prompt, edit=edit, guide=True)] if guided else rows
        image_guided = edit and self.image_guidance_scale != 1
        if guided or image_guided:
            rows.append(Row(prompt=self.negative_prompt, edit=edit))
        if image_guided:
            rows.append(Row(prompt="", edit=False))
        return rows

    @property
    def num_rows(self) -> int:
        """Model rows that a step costs at most: 1 to 3."""
        return len(self.rows())

    @cached_property
    def source_key(self) -> bytes:
        """The same for the same source, without one empty. Computed once, and not for nothing."""
        if self.source is None:
            return b""
        return hashlib.blake2b(self.source.contiguous().numpy().data, digest_size=16).digest()


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeWork:
    """Images (B, 3, H, W) uint8 to latents: the mean, or one draw with `seed` if `sample`."""

    id: str
    images: Tensor
    sample: bool = False
    seed: int = 0
    deadline_at: float | None = None

    @property
    def num_rows(self) -> int:
        """Counted as one row when the worker reckons what it can take."""
        return 1


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeWork:
    """Normalized latents (B, C, h, w) float32 to images."""

    id: str
    latents: Tensor
    deadline_at: float | None = None

    @property
    def num_rows(self) -> int:
        """Counted as one row when the worker reckons what it can take."""
        return 1


Work: TypeAlias = PictureWork | EncodeWork | DecodeWork


@dataclass(frozen=True)
class Stepped:
    """`step` of the job's `num_steps` velocity evaluations are done."""

    job_id: str
    step: int
    num_steps: int


@dataclass(frozen=True)
class Denoised:
    """All steps are done: the job's rows are free, its picture is still to be decoded."""

    job_id: str


@dataclass(frozen=True, eq=False)
class Previewed:
    """What the picture would be by its velocity at `step` of `num_steps`: (1, 3, H, W) uint8 on the
    CPU. index counts the job's previews from 0; one that comes too late is left out.
    """

    job_id: str
    index: int
    step: int
    num_steps: int
    images: Tensor


@dataclass(frozen=True, eq=False)
class Finished:
    """Results on the CPU: "images" (B, 3, H, W) uint8, or "latents", "mean" and "logvar"
    (B, C, h, w) float32. timings_s: seconds of prefill, denoise, encode, decode where they apply.
    """

    job_id: str
    tensors: dict[str, Tensor]
    timings_s: dict[str, float]


@dataclass(frozen=True, eq=False)
class Failed:
    """The job failed by itself; its neighbours go on."""

    job_id: str
    error: Exception


EngineEvent: TypeAlias = Stepped | Previewed | Denoised | Finished | Failed


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One prefill, denoise, encode, decode or preview call: its jobs, a job for each of its images,
    and when it began, by the engine's clock.
    """

    stage: str
    job_ids: tuple[str, ...]
    started: float
    seconds: float


@dataclass(kw_only=True)
class Tick:
    """What one tick of the engine did.

    step_rows: rows of the velocity call, 0 if there was none; padding_rows: copies beside them that
    only fill the batch up; stage_seconds: duration of each prefill, denoise (one step), encode,
    decode and preview call; faults: errors of calls that were then retried in halves, and of
    previews, which are left out; step_s, row_steps_per_s: the moving averages of a step of such a
    batch and of the rate of a full one; calls: those of stage_seconds with their jobs, if wanted.
    """

    events: list[EngineEvent] = field(default_factory=list)
    step_rows: int = 0
    padding_rows: int = 0
    step_s: float = 0.0
    row_steps_per_s: float = 0.0
    stage_seconds: list[tuple[str, float]] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    calls: tuple[EngineCall, ...] = ()
