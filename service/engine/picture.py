"""A picture's way through the sampler, and one step of many of them in one batch of rows.

P pictures, R rows (1 to 3 for each picture, side by side), C latent channels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from models.context import Context, cat_contexts
from models.solvers import SamplingPlan, advance, pad_map, plan_sampling
from models.transport import guide_edit, initial_noise, interpolate
from service.backends.base import Backend
from service.engine.scheduler import DenoiseJob
from service.engine.work import PictureWork


@dataclass(eq=False, kw_only=True)
class Picture(DenoiseJob):
    """State between two steps, each of which is one velocity evaluation.

    state: the plan's slots, (K, C, h, w).
    """

    work: PictureWork
    plan: SamplingPlan
    state: Tensor
    source_latents: Tensor | None = None
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
        plan = plan_sampling(work.sampler, work.num_steps, shift, strength=strength)
        x = initial_noise(work.seed, latent_shape)
        if source_latents is not None:
            x = x.to(source_latents)
            x = interpolate(source_latents[None], x[None], x.new_tensor(plan.times[:1]))[0]
        return cls(
            id=work.id,
            num_rows=work.num_rows,
            num_steps=plan.num_evaluations,
            urgency=work.urgency,
            deadline_at=work.deadline_at,
            work=work,
            plan=plan,
            state=plan.initial_state(x),
            source_latents=source_latents,
            timings_s=timings_s,
        )

    @property
    def x(self) -> Tensor:
        """Where the next velocity is wanted; after the last step the latents, (C, h, w)."""
        return self.state[0]

    def scales(self) -> tuple[float, float]:
        """Guidance scales of the next step, for the prompt and the source: 1 outside the interval
        in which guidance acts.
        """
        low, high = self.work.guidance_interval
        if not low <= self.plan.times[self.step] <= high:
            return 1.0, 1.0
        return self.work.guidance_scale, self.work.image_guidance_scale

    def finish_steps(self) -> None:
        """Note the time from the first step's start to now."""
        self.timings_s["denoise"] = time.perf_counter() - self.started_at


def prefill(backend: Backend, pictures: Sequence[Picture]) -> list[Context]:
    """Contexts of pictures, each with its `num_rows` rows in the order of `PictureWork.rows`."""
    rows = [(picture, row) for picture in pictures for row in picture.work.rows()]
    parts: list[Context] = []
    order: list[int] = []
    for edit, guide in product((False, True), repeat=2):  # rows of one call are of one kind
        chosen = [
            index for index, (_, row) in enumerate(rows) if (row.edit, row.guide) == (edit, guide)
        ]
        if not chosen:
            continue
        sources = [rows[index][0].source_latents for index in chosen] if edit else []
        stacked = (
            torch.stack([source for source in sources if source is not None]) if edit else None
        )
        prompts = [rows[index][1].prompt for index in chosen]
        parts.append(backend.prefill(prompts, stacked, guide=guide))
        order += chosen
    context = cat_contexts(parts)
    place = {row: index for index, row in enumerate(order)}
    contexts, first = [], 0
    for picture in pictures:
        wanted = range(first, first + picture.num_rows)
        contexts.append(context.select([place[row] for row in wanted]))
        first += picture.num_rows
    return contexts


def step(backend: Backend, pictures: Sequence[Picture], context: Context) -> list[Tensor]:
    """State (K, C, h, w) of each picture after its own next step.

    One velocity call for all rows, then guidance and one step of its own sampler for each picture,
    with its own time and scales. `context` holds the pictures' rows in order.
    """
    owner = [index for index, picture in enumerate(pictures) for _ in range(picture.num_rows)]
    first = [owner.index(index) for index in range(len(pictures))]
    states = _stacked(pictures)  # (P, K, C, h, w)
    x = states[:, 0]
    t = torch.tensor([picture.plan.times[picture.step] for picture in pictures], device=x.device)
    velocities = backend.velocity(x[owner], t[owner], context)  # (R, C, h, w)
    # Guidance of one formula for all: a row that a picture does without repeats its last one.
    counts = [picture.num_rows for picture in pictures]
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
    maps = [pad_map(picture.plan.maps[picture.step], states.shape[1]) for picture in pictures]
    states = advance(states, velocity, torch.stack(maps))
    return [
        state[: picture.plan.num_slots] for state, picture in zip(states, pictures, strict=True)
    ]


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
