"""Deliveries of the queue as work for the engine."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from service.engine.work import DecodeWork, EncodeWork, PictureWork, Work
from service.errors import InvalidRequest
from service.jobs.job import (
    PRIORITIES,
    DecodeParams,
    Delivery,
    EditParams,
    EncodeParams,
    GenerateParams,
)


def to_work(delivery: Delivery, models: Sequence[str], *, autoguided: bool = False) -> Work:
    """What the engine is to do for a job.

    Args:
        models: whose jobs are taken, the served one first.
        autoguided: the served model has a guide model.

    Raises:
        InvalidRequest: the job is for another model, or its payload is missing, unreadable or holds
            another tensor.
    """
    job = delivery.job
    if job.model not in models:
        raise InvalidRequest(
            f"this worker serves {models[0]}, the job asks for {job.model}", param="model"
        )
    options: dict[str, Any] = {"autoguided": autoguided}
    match job.params:
        case EditParams() as params:
            tensors = _read(delivery, "images")
            images = _tensor(tensors, "images", torch.uint8)
            if len(images) != 1:
                raise InvalidRequest(f"an edit takes one image, got {len(images)}", param="image")
            if "mask" in tensors:
                options["mask"] = _mask(tensors, images)
            options["image_guidance_scale"] = params.image_guidance_scale
            options["strength"] = params.strength
            work = _picture(delivery, params, images[0], options)
            _ = work.source_key  # here, on the thread that prepares, not on the engine's
            return work
        case GenerateParams() as params:
            return _picture(delivery, params, None, options)
        case EncodeParams() as params:
            images = _tensor(_read(delivery, "images"), "images", torch.uint8)
            return EncodeWork(
                id=job.id,
                images=images,
                sample=params.sample,
                seed=params.seed,
                deadline_at=job.deadline_at,
            )
        case DecodeParams():
            latents = _tensor(_read(delivery, "latents"), "latents", torch.float32)
            return DecodeWork(id=job.id, latents=latents, deadline_at=job.deadline_at)


def _picture(
    delivery: Delivery,
    params: GenerateParams,
    source: Tensor | None,
    options: dict[str, Any],
) -> PictureWork:
    return PictureWork(
        id=delivery.job.id,
        prompt=params.prompt,
        negative_prompt=params.negative_prompt,
        seed=params.seed,
        num_steps=params.steps,
        sampler=params.sampler,
        guidance_scale=params.guidance_scale,
        guidance_interval=(params.guidance_min_t, params.guidance_max_t),
        source=source,
        partial_images=params.partial_images,
        owner=delivery.job.owner,
        urgency=PRIORITIES.index(delivery.job.priority),
        deadline_at=delivery.job.deadline_at,
        **options,
    )


def _read(delivery: Delivery, name: str) -> dict[str, Tensor]:
    """The payload's tensors, of which `name` is the one that matters."""
    if delivery.payload is None:
        raise InvalidRequest(f"the job's payload is gone: send the {name} again", param=name)
    try:
        return load(delivery.payload)
    except SafetensorError as error:
        raise InvalidRequest(
            f"the job's payload cannot be read as safetensors: {error}", param=name
        ) from None


def _tensor(tensors: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """(B, ...), 4-dimensional."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != dtype or tensor.ndim != 4:
        raise InvalidRequest(
            f"the job's payload must hold {name}, 4-dimensional, {dtype}", param=name
        )
    return tensor


def _mask(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """(H, W) bool, True where the picture may change."""
    mask = _tensor(tensors, "mask", torch.uint8)
    expected = (1, 1, *images.shape[2:])
    if tuple(mask.shape) != expected:
        raise InvalidRequest(
            f"the job's mask must be {expected}, got {tuple(mask.shape)}", param="mask"
        )
    return mask[0, 0] > 0
