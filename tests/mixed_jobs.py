"""Jobs of every kind at once on a real backend, and what becomes of each."""

from collections.abc import Sequence

from torch import Tensor

from service.backends.torch_backend import TorchBackend
from service.engine.engine import Engine
from service.engine.work import Finished, PictureWork, Work

SHIFT = 1.5


def mixed_jobs(source: Tensor) -> list[PictureWork]:
    """Every kind of row, with prompts of different lengths."""
    return [
        PictureWork(id="plain", prompt="a red circle", seed=1, num_steps=3, guidance_scale=1),
        PictureWork(id="guided", prompt="a blue square on a red background", seed=2, num_steps=6,
                    guidance_scale=4.5),
        PictureWork(id="negative", prompt="blue", negative_prompt="a red circle", seed=3,
                    num_steps=5, guidance_scale=3),
        PictureWork(id="edit", prompt="a red circle", seed=4, num_steps=4, guidance_scale=2,
                    source=source),
        PictureWork(id="edit-3", prompt="a blue circle on", seed=5, num_steps=7, guidance_scale=2,
                    source=source.flip(1), image_guidance_scale=1.6),
        PictureWork(id="variation", prompt="", seed=6, num_steps=10, guidance_scale=1,
                    source=source, strength=0.4),
        PictureWork(id="empty", prompt="", seed=7, num_steps=2, guidance_scale=2),
        PictureWork(id="reference", prompt="blue", seed=8, num_steps=6, guidance_scale=3,
                    sampler="euler-reference"),
        PictureWork(id="heun", prompt="a red square", seed=9, num_steps=4, guidance_scale=3,
                    sampler="heun", guidance_interval=(0.2, 0.7)),
        PictureWork(id="heun-edit", prompt="blue", seed=10, num_steps=6, guidance_scale=2,
                    source=source, sampler="heun", strength=0.5),
        PictureWork(id="multistep", prompt="a red square", seed=9, num_steps=8, guidance_scale=3,
                    sampler="dpmpp-2m"),
        PictureWork(id="unipc", prompt="a blue circle", seed=11, num_steps=5, guidance_scale=3,
                    sampler="unipc", guidance_interval=(0.0, 0.5)),
        PictureWork(id="unipc-edit", prompt="red", seed=12, num_steps=7, guidance_scale=2,
                    source=source, image_guidance_scale=1.5, sampler="unipc",
                    guidance_interval=(0.5, 1.0)),
    ]  # fmt: skip


def run_jobs(
    backend: TorchBackend, arrivals: Sequence[Sequence[Work]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Latents and images by job; one group arrives before each of the first ticks."""
    decoded: list[Tensor] = []
    decode = backend.decode

    def noted(latents: Tensor) -> Tensor:
        decoded.extend(latents)
        return decode(latents)

    engine, groups = Engine(backend, shift=SHIFT), list(arrivals)
    order: list[Finished] = []
    backend.decode = noted  # type: ignore[method-assign]
    try:
        while groups or engine.has_work:
            for work in groups.pop(0) if groups else ():
                engine.add(work)
            events = engine.tick().events
            order += [event for event in events if isinstance(event, Finished)]
    finally:
        backend.decode = decode  # type: ignore[method-assign]
    return {
        event.job_id: (latents, event.tensors["images"])
        for event, latents in zip(order, decoded, strict=True)
    }
