"""Results of the engine as what a caller downloads: picture files and safetensors."""

import torch
from safetensors.torch import save
from torch import Tensor

from service.boxes import Box
from service.engine.images import encode_file, picture_text
from service.engine.work import PictureWork, Work
from service.jobs.job import DecodeParams, EditParams, GenerateParams, Job


def encode_outputs(job: Job, tensors: dict[str, Tensor], work: Work) -> list[bytes]:
    """One file for each picture, or one safetensors file; takes CPU time, not the device's.

    Finished pictures and previews alike; `work` has the source that a mask keeps parts of.
    """
    match job.params:
        case GenerateParams() as params:
            box, source_options = None, {}
            if isinstance(params, EditParams):
                box = params.box
                source_options = {
                    "image_guidance_scale": params.image_guidance_scale,
                    "strength": params.strength,
                }
            text = picture_text(
                prompt=params.prompt,
                seed=params.seed,
                num_steps=params.steps,
                sampler=params.sampler,
                guidance_scale=params.guidance_scale,
                model=job.model,
                **source_options,
            )
            return [
                encode_file(crop(image, box), params.output_format, params.output_compression, text)
                for image in keep_unmasked(tensors["images"], work)
            ]
        case DecodeParams(output_format="png" | "jpeg" | "webp" as image_format) as params:
            return [
                encode_file(image, image_format, params.output_compression)
                for image in _cropped(tensors["images"], params)
            ]
        case DecodeParams() as params:  # as one array: the boxes are of one size
            return [save({"images": torch.stack(_cropped(tensors["images"], params))})]
        case _:
            # Copies: safetensors refuses tensors that share memory, as `latents` and `mean` may.
            return [save({name: tensor.clone() for name, tensor in tensors.items()})]


def keep_unmasked(images: Tensor, work: Work) -> Tensor:
    """Pictures (B, 3, H, W) uint8 with the source's own pixels wherever the mask keeps them."""
    if not isinstance(work, PictureWork) or work.mask is None or work.source is None:
        return images
    return torch.where(work.mask, images, work.source)


def _cropped(images: Tensor, params: DecodeParams) -> list[Tensor]:
    if not params.boxes:
        return list(images)
    return [crop(image, box) for image, box in zip(images, params.boxes, strict=True)]


def crop(image: Tensor, box: Box | None) -> Tensor:
    """What a box holds of an image (3, H, W); all of it without a box."""
    if box is None:
        return image
    return image[:, box.top : box.top + box.height, box.left : box.left + box.width]


def describe(job: Job) -> dict[str, int | float | str]:
    """What a finished job's info says of how its picture was made."""
    if not isinstance(job.params, GenerateParams):
        return {}
    return {
        "seed": job.params.seed,
        "steps": job.params.steps,
        "sampler": job.params.sampler,
        "guidance_scale": job.params.guidance_scale,
    }
