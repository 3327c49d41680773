"""A picture's way through the sampler, and one step of many of them in one batch of rows.

P pictures, R rows (1 to 3 for each picture, side by side), C latent channels.

A mask acts on the velocity: in cells that keep the source it is that of the straight path from
the picture's own noise to the source. Every sampler here follows a straight path exactly, so these
cells are the source, noised as much as the rest, at every evaluation; and the clean predictions
that a sampler remembers are the source's too. To put the noised source back into the point after
each step, as is usual, would leave the memory of a solver of several steps with what was replaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from models.context import Context
from models.solvers import SamplingPlan, advance, pad_map, plan_sampling
from models.transport import (
    guide_edit,
    initial_noise,
    interpolate,
    predict_clean,
    target_velocity,
)
from service.backends.base import Backend
from service.engine.scheduler import DenoiseJob
from service.engine.work import PictureWork, Row

# Many pictures are made with the same options; a plan is never changed.
_plan = lru_cache(maxsize=256)(plan_sampling)


@dataclass(frozen=True, eq=False)
class KeptCells:
    """What a mask keeps: changed (h, w) bool, True where the picture may change; velocity
    (C, h, w) of the path to the source, for the other cells.
    """

    changed: Tensor
    velocity: Tensor

    def applied(self, velocity: Tensor) -> Tensor:
        """A predicted velocity (C, h, w) with the source's in the kept cells."""
        return torch.where(self.changed, velocity, self.velocity)


@dataclass(frozen=True, eq=False)
class Advanced:
    """A picture after one of its steps: state (K, C, h, w), and the clean latents (C, h, w) that
    the step's velocity implies if a preview is due after it.
    """

    state: Tensor
    clean: Tensor | None


@dataclass(eq=False, kw_only=True)
class Picture(DenoiseJob):
    """State between two steps, each of which is one velocity evaluation.

    state: the plan's slots, (K, C, h, w); preview_steps: the numbers of evaluations after which a
    preview is made, ascending.
    """

    work: PictureWork
    plan: SamplingPlan
    state: Tensor
    source_latents: Tensor | None = None
    kept: KeptCells | None = None
    preview_steps: tuple[int, ...] = ()
    context: Context | None = None
    started_at: float = 0.0
    timings_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        work: PictureWork,
        source_latents: Tensor | None,
        *,
        latent_shape: Sequence[int],
        shift: float,
        timings_s: dict[str, float],
    ) -> "Picture":
        """A picture before its first step; source_latents (C, h, w) for edits.

        Raises:
            ValueError: num_steps or strength is out of range.
        """
        strength = 1.0 if source_latents is None else work.strength
        plan = _plan(work.sampler, work.num_steps, shift, strength=strength)
        x = noise = initial_noise(work.seed, latent_shape)
        kept = None
        if source_latents is not None:
            noise = noise.to(source_latents)
            x = interpolate(source_latents[None], noise[None], noise.new_tensor(plan.times[:1]))[0]
            if work.mask is not None:
                velocity = target_velocity(source_latents, noise)
                changed = _changed_cells(work.mask, latent_shape)
                kept = KeptCells(changed.to(source_latents.device), velocity)
        guided = any(_acts(work, t) for t in plan.times)
        return cls(
            id=work.id,
            num_rows=work.num_rows if guided else 1,
            num_steps=plan.num_evaluations,
            urgency=work.urgency,
            deadline_at=work.deadline_at,
            work=work,
            plan=plan,
            state=plan.initial_state(x),
            source_latents=source_latents,
            kept=kept,
            preview_steps=preview_steps(work.partial_images, plan.num_evaluations),
            timings_s=timings_s,
        )

    @property
    def x(self) -> Tensor:
        """Where the next velocity is wanted; after the last step the latents, (C, h, w)."""
        return self.state[0]

    @cached_property
    def rows(self) -> list[Row]:
        """Rows that some step needs, the conditional one first."""
        return self.work.rows()[: self.num_rows]

    @property
    def rows_now(self) -> int:
        """Rows of the next step: outside the guidance interval the conditional one alone."""
        return 1 if self.scales() == (1.0, 1.0) else self.num_rows

    def scales(self) -> tuple[float, float]:
        """Guidance scales of the next step, for the prompt and the source: 1 outside the interval
        in which guidance acts.
        """
        if not _acts(self.work, self.plan.times[self.step]):
            return 1.0, 1.0
        return self.work.guidance_scale, self.work.image_guidance_scale

    @property
    def preview_due(self) -> bool:
        """True if the next step is one that a preview is made of."""
        return self.step + 1 in self.preview_steps


def preview_steps(count: int, num_evaluations: int) -> tuple[int, ...]:
    """After which evaluations `count` previews are made: spread evenly, none after the last.

    Fewer where there are not as many evaluations.
    """
    steps = {num_evaluations * place // (count + 1) for place in range(1, count + 1)}
    return tuple(sorted(steps - {0}))


def step(
    backend: Backend, pictures: Sequence[Picture], context: Context, padding: int = 0
) -> list[Advanced]:
    """Each picture after its own next step.

    One velocity call for all rows, then guidance and one step of its own sampler for each picture,
    with its own time and scales. `context` holds the pictures' rows of this step in order, and
    after them `padding` copies of the first, whose results are thrown away.
    """
    counts = [picture.rows_now for picture in pictures]
    owner = [index for index, count in enumerate(counts) for _ in range(count)]
    first = [owner.index(index) for index in range(len(pictures))]
    owner += [0] * padding
    states = _stacked(pictures)  # (P, K, C, h, w)
    x = states[:, 0]
    t = torch.tensor([picture.plan.times[picture.step] for picture in pictures], device=x.device)
    velocities = backend.velocity(x[owner], t[owner], context)  # (R + padding, C, h, w)
    # Guidance of one formula for all: a row that a picture does without repeats its last one.
    base = [start + min(1, count - 1) for start, count in zip(first, counts, strict=True)]
    last = [start + count - 1 for start, count in zip(first, counts, strict=True)]
    states = states.to(velocities.device)  # keeps float32 where the backend computes in less
    scales = states.new_tensor([picture.scales() for picture in pictures])  # (P, 2)
    velocity = guide_edit(
        velocities[first],
        velocities[base],
        velocities[last],
        *scales.unbind(1),
    )  # (P, C, h, w)
    for index, picture in enumerate(pictures):
        if picture.kept is not None:
            velocity[index] = picture.kept.applied(velocity[index])
    maps = [pad_map(picture.plan.maps[picture.step], states.shape[1]) for picture in pictures]
    clean = predict_clean(states[:, 0], velocity, t.to(states))
    states = advance(states, velocity, torch.stack(maps))
    return [
        Advanced(state[: picture.plan.num_slots], point if picture.preview_due else None)
        for picture, state, point in zip(pictures, states, clean, strict=True)
    ]


def _acts(work: PictureWork, t: float) -> bool:
    """Whether guidance acts at a time and changes anything."""
    low, high = work.guidance_interval
    return low <= t <= high and (work.guidance_scale, work.image_guidance_scale) != (1, 1)


def _changed_cells(mask: Tensor, latent_shape: Sequence[int]) -> Tensor:
    """(h, w) bool: cells in which a mask (H, W) lets any pixel change."""
    high, wide = mask.shape[0] // latent_shape[1], mask.shape[1] // latent_shape[2]
    pixels = mask.to(torch.float32)[None, None]
    return functional.max_pool2d(pixels, (high, wide))[0, 0] > 0


def _stacked(pictures: Sequence[Picture]) -> Tensor:
    """States (P, K, C, h, w), those of fewer slots than the largest filled up with zeros."""
    # A new picture's noise is still on the CPU, the others are where the backend left them.
    device = next((p.state.device for p in pictures if p.state.device.type != "cpu"), None)
    states = [picture.state.to(device) for picture in pictures]
    missing = [max(map(len, states)) - len(state) for state in states]
    return torch.stack(
        [
            functional.pad(state, (0, 0) * 3 + (0, count)) if count else state
            for state, count in zip(states, missing, strict=True)
        ]
    )
