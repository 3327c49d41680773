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
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from models.context import Context
from models.solvers import SamplingPlan, advance, pad_map, plan_sampling
from models.transport import (
    guide,
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


@lru_cache(maxsize=256)
def _flat_maps(plan: SamplingPlan, num_slots: int) -> list[list[float]]:
    """Each evaluation's map as one of num_slots slots, row after row."""
    flat: list[list[float]] = pad_map(plan.maps, num_slots).flatten(1).tolist()
    return flat


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

    state: the plan's slots, (K, C, h, w); guided: for each evaluation, whether guidance acts in it;
    preview_steps: the numbers of evaluations after which a preview is made, ascending.
    """

    work: PictureWork
    plan: SamplingPlan
    state: Tensor
    guided: tuple[bool, ...]
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
        guided = _guided(work, plan.times)
        return cls(
            id=work.id,
            num_rows=work.num_rows if any(guided) else 1,
            num_steps=plan.num_evaluations,
            urgency=work.urgency,
            deadline_at=work.deadline_at,
            work=work,
            plan=plan,
            state=plan.initial_state(x),
            guided=guided,
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
        return self.num_rows if self.guided[self.step] else 1

    def numbers(self, num_slots: int) -> list[float]:
        """Of the next step: its time, the guidance scales for the prompt and the source, which are
        1 where guidance does not act, and its map as one of num_slots slots.
        """
        scales = (1.0, 1.0)
        if self.guided[self.step]:
            scales = self.work.guidance_scale, self.work.image_guidance_scale
        return [self.plan.times[self.step], *scales, *_flat_maps(self.plan, num_slots)[self.step]]

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
    owner = [index for index, count in enumerate(counts) for _ in range(count)] + [0] * padding
    states = _stacked(pictures)  # (P, K, C, h, w)
    num_slots = states.shape[1]
    # All in one tensor, and no indices: every small tensor is a copy of its own to a GPU.
    numbers = torch.tensor(
        [picture.numbers(num_slots) for picture in pictures], device=states.device
    )
    points, times = states[:, 0].unbind(), numbers[:, 0].unbind()
    x, t = (torch.stack([rows[index] for index in owner]) for rows in (points, times))
    velocities = backend.velocity(x, t, context)  # (R + padding, C, h, w)
    # A state keeps float32 where the backend computes in less.
    states, numbers = states.to(velocities.device), numbers.to(velocities.device)
    t, scale, image_scale = numbers[:, :3].unbind(1)
    velocity = _combined(velocities.unbind(), counts, scale, image_scale)  # (P, C, h, w)
    for index, picture in enumerate(pictures):
        if picture.kept is not None:
            velocity[index] = picture.kept.applied(velocity[index])
    new = advance(states, velocity, numbers[:, 3:].view(-1, num_slots, num_slots + 1))
    advanced = []
    for index, (picture, state) in enumerate(zip(pictures, new.unbind(), strict=True)):
        clean = None
        if picture.preview_due:
            own = slice(index, index + 1)
            clean = predict_clean(states[own, 0], velocity[own], t[own])[0]
        advanced.append(Advanced(state[: picture.plan.num_slots], clean))
    return advanced


def _combined(
    velocities: Sequence[Tensor], counts: Sequence[int], scale: Tensor, image_scale: Tensor
) -> Tensor:
    """Guided velocities (P, C, h, w) from those of rows, each (C, h, w), and scales (P,).

    A row that a picture does without repeats its last one, and so changes nothing.
    """
    last = [end - 1 for end in accumulate(counts)]
    first = [end + 1 - count for end, count in zip(last, counts, strict=True)]
    second = [start + min(1, count - 1) for start, count in zip(first, counts, strict=True)]
    full, base = (torch.stack([velocities[index] for index in of]) for of in (first, second))
    if last == second:  # nobody has a third row: the same to the bit, in less time
        return guide(full, base, scale)
    uncond = torch.stack([velocities[index] for index in last])
    return guide_edit(full, base, uncond, scale, image_scale)


def _guided(work: PictureWork, times: Sequence[float]) -> tuple[bool, ...]:
    """Whether guidance acts at each time and changes anything."""
    low, high = work.guidance_interval
    wanted = (work.guidance_scale, work.image_guidance_scale) != (1, 1)
    return tuple(wanted and low <= t <= high for t in times)


def _changed_cells(mask: Tensor, latent_shape: Sequence[int]) -> Tensor:
    """(h, w) bool: cells in which a mask (H, W) lets any pixel change."""
    high, wide = mask.shape[0] // latent_shape[1], mask.shape[1] // latent_shape[2]
    pixels = mask.to(torch.float32)[None, None]
    return functional.max_pool2d(pixels, (high, wide))[0, 0] > 0


def _stacked(pictures: Sequence[Picture]) -> Tensor:
    """States (P, K, C, h, w), those of fewer slots than the largest filled up with zeros."""
    states = [picture.state for picture in pictures]
    # A new picture's noise is still on the CPU, the others are where the backend left them.
    device = next((state.device for state in states if not state.is_cpu), None)
    if device is not None:
        states = [state.to(device) for state in states]
    slots = [picture.plan.num_slots for picture in pictures]
    most = max(slots)
    if min(slots) < most:
        states = [
            functional.pad(state, (0, 0) * 3 + (0, most - own))
            for state, own in zip(states, slots, strict=True)
        ]
    return torch.stack(states)
