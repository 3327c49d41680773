"""A pipeline that draws, edits, encodes and decodes a batch of requests in one call.

What the other servers run: they form a batch of what waits, the batch runs to its end, and all of
it is answered then. Within that it is as good as we can make it, with the service's own parts: the
same backend, one velocity call for all rows of a step, a number of steps of its own for each
picture, no more computation for those that are done, prompts that were read once are remembered,
one encode and one decode call for all images. Steps and guidance are the engine's, so that a
picture is the same on every side.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.messages import Ask, Made
from models.context import Context, cat_contexts
from models.manifest import Manifest
from service.backends.base import Backend
from service.engine.calibration import Calibration
from service.engine.images import to_float, to_uint8
from service.engine.picture import Picture, step
from service.engine.prefilling import Prefiller
from service.engine.work import PictureWork

_CACHE_BYTES = 56 * 2**20  # what the engine has for prompts


class Pipeline:
    """One loaded model; threads may share it if they may share the backend.

    Args:
        backend: the runtime with its model.
        manifest: of that model; it gives what a request leaves out.
        by_steps: parts of a batch that is larger than the device are made of pictures with about
            as many steps, instead of in the order of the requests.
    """

    def __init__(self, backend: Backend, manifest: Manifest, *, by_steps: bool = False) -> None:
        self._backend = backend
        self._manifest = manifest
        self._by_steps = by_steps
        calibration = Calibration.unmeasured(backend.limits)
        self._prefiller = Prefiller(backend, calibration, _CACHE_BYTES)
        self._reading = threading.Lock()  # for a server that calls from several threads
        self._ids = count()

    @torch.inference_mode()
    def run(self, asks: Sequence[Ask]) -> list[Made]:
        """What was asked for, in the order of the requests; it ends when all of it is done."""
        latents: dict[int, Tensor] = {
            index: ask.latents for index, ask in enumerate(asks) if ask.latents is not None
        }
        encoded = self._encode(
            {i: ask.image for i, ask in enumerate(asks) if ask.image is not None}
        )
        pictures = {
            index: self.start(ask, encoded.get(index))
            for index, ask in enumerate(asks)
            if ask.task in ("generate", "edit")
        }
        self._denoise(list(pictures.values()))
        latents |= {index: picture.x for index, picture in pictures.items()}
        images = self._decode(latents)
        return [
            Made(ask, image=images.get(index), latents=encoded.get(index))
            for index, ask in enumerate(asks)
        ]

    def start(self, ask: Ask, source: Tensor | None) -> Picture:
        """A picture before its first step; source (C, h, w) for edits."""
        manifest = self._manifest
        scale = ask.guidance_scale
        work = PictureWork(
            id=str(next(self._ids)),
            prompt=ask.prompt,
            seed=ask.seed,
            num_steps=ask.steps,
            sampler=manifest.sampler,
            guidance_scale=manifest.default_guidance_scale if scale is None else scale,
            image_guidance_scale=manifest.default_image_guidance_scale,
            guidance_interval=manifest.guidance_interval,
            source=ask.image,
        )
        return Picture.start(
            work,
            source,
            latent_shape=self._backend.limits.latent_shape,
            shift=manifest.timestep_shift,
            timings_s={},
        )

    def _denoise(self, pictures: Sequence[Picture]) -> None:
        if self._by_steps:
            pictures = sorted(pictures, key=lambda picture: picture.num_steps)
        for batch in fitting(pictures, self._backend.limits.max_rows):
            with self._reading:
                contexts = self._prefiller.contexts(batch)
            for picture, context in zip(batch, contexts, strict=True):
                picture.context = context
            self._run_to_the_end(batch)

    def _run_to_the_end(self, batch: Sequence[Picture]) -> None:
        gathered = _Gathered()
        while batch:
            context = gathered.context(batch)
            for picture, advanced in zip(batch, step(self._backend, batch, context), strict=True):
                picture.state = advanced.state
                picture.step += 1
            batch = [picture for picture in batch if picture.step < picture.num_steps]

    def _encode(self, images: dict[int, Tensor]) -> dict[int, Tensor]:
        """Latents (C, h, w) of images (3, H, W) uint8."""
        return self._in_parts(images, lambda batch: self._backend.encode(to_float(batch)).mean)

    def _decode(self, latents: dict[int, Tensor]) -> dict[int, Tensor]:
        """Images (3, H, W) uint8 of latents (C, h, w)."""
        return self._in_parts(latents, lambda batch: to_uint8(self._backend.decode(batch)))

    def _in_parts(self, tensors: dict[int, Tensor], call: Any) -> dict[int, Tensor]:
        if not tensors:
            return {}
        parts = torch.stack(list(tensors.values())).split(self._backend.limits.max_images)
        results = [result for part in parts for result in call(part)]
        return dict(zip(tensors, results, strict=True))


@dataclass
class _Gathered:
    """The rows of a step, put together anew only when they change."""

    rows: list[tuple[Picture, int]] | None = None
    joined: Context | None = None

    def context(self, batch: Sequence[Picture]) -> Context:
        rows = [(picture, picture.rows_now) for picture in batch]
        if self.rows != rows or self.joined is None:
            self.rows = rows
            parts = [_context(picture).select(range(number)) for picture, number in rows]
            self.joined = cat_contexts(parts)
        return self.joined


def fitting(pictures: Sequence[Picture], max_rows: int) -> Iterator[list[Picture]]:
    """The pictures in order, in batches of at most so many model rows."""
    batch: list[Picture] = []
    for picture in pictures:
        if batch and sum(one.num_rows for one in batch) + picture.num_rows > max_rows:
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def _context(picture: Picture) -> Context:
    assert picture.context is not None
    return picture.context
