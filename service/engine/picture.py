"""A picture's way through the sampler, and one step of many of them in one batch of rows.

P pictures, R rows (1 to 3 for each picture, side by side), C latent channels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from models.context import Context, cat_contexts
from models.transport import (
    euler_step,
    guide_edit,
    initial_noise,
    interpolate,
    start_step,
    timestep_schedule,
)
from service.backends.base import Backend
from service.engine.scheduler import DenoiseJob
from service.engine.work import PictureWork


@dataclass(eq=False, kw_only=True)
class Picture(DenoiseJob):
    """State between two steps.

    times: the whole schedule, from 1 to 0; x: (C, h, w); first_step: where the run began, above 0
    with a strength below 1.
    """

    work: PictureWork
    times: list[float]
    x: Tensor
    first_step: int = 0
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
        times = timestep_schedule(work.num_steps, shift)
        x = initial_noise(work.seed, latent_shape)
        first = 0
        if source_latents is not None:
            first = start_step(work.num_steps, work.strength)
            x = x.to(source_latents)
            if first:
                t = times[first : first + 1].to(x)
                x = interpolate(source_latents[None], x[None], t)[0]
        return cls(
            id=work.id,
            num_rows=work.num_rows,
            num_steps=work.num_steps,
            urgency=work.urgency,
            deadline_at=work.deadline_at,
            step=first,
            first_step=first,
            work=work,
            times=times.tolist(),
            x=x,
            source_latents=source_latents,
            timings_s=timings_s,
        )

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
    """Latents (C, h, w) of each picture after its own next step.

    One velocity call for all rows, then guidance and an Euler step for each picture, with its own
    timestep and scales. `context` holds the pictures' rows in order.
    """
    owner = [index for index, picture in enumerate(pictures) for _ in range(picture.num_rows)]
    first = [owner.index(index) for index in range(len(pictures))]
    x = torch.stack([picture.x for picture in pictures])  # (P, C, h, w)
    t = torch.tensor([picture.times[picture.step] for picture in pictures], device=x.device)
    t_next = torch.tensor([picture.times[picture.step + 1] for picture in pictures])
    velocities = backend.velocity(x[owner], t[owner], context)  # (R, C, h, w)
    x, t, t_next = (tensor.to(velocities.device) for tensor in (x, t, t_next))
    # Guidance of one formula for all: a row that a picture does without repeats its last one.
    counts = [picture.num_rows for picture in pictures]
    base = [start + min(1, count - 1) for start, count in zip(first, counts, strict=True)]
    last = [start + count - 1 for start, count in zip(first, counts, strict=True)]
    works = [picture.work for picture in pictures]
    velocity = guide_edit(
        velocities[first],
        velocities[base],
        velocities[last],
        x.new_tensor([work.guidance_scale for work in works]),
        x.new_tensor([work.image_guidance_scale for work in works]),
    )
    return list(euler_step(x, velocity, t, t_next))
