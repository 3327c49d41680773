"""Results of the engine as what a caller downloads: picture files and safetensors."""

from safetensors.torch import save
from torch import Tensor

from service.engine.images import encode_file, picture_text
from service.jobs.job import DecodeParams, GenerateParams, Job


def encode_outputs(job: Job, tensors: dict[str, Tensor]) -> list[bytes]:
    """One file for each picture, or one safetensors file; takes CPU time, not the device's."""
    match job.params:
        case GenerateParams() as params:
            text = picture_text(
                prompt=params.prompt,
                seed=params.seed,
                num_steps=params.steps,
                guidance_scale=params.guidance_scale,
                model=job.model,
            )
            return [
                encode_file(image, params.output_format, params.output_compression, text)
                for image in tensors["images"]
            ]
        case DecodeParams(output_format="png" | "jpeg" | "webp" as image_format) as params:
            return [
                encode_file(image, image_format, params.output_compression)
                for image in tensors["images"]
            ]
        case _:
            # Copies: safetensors refuses tensors that share memory, as `latents` and `mean` may.
            return [save({name: tensor.clone() for name, tensor in tensors.items()})]


def describe(job: Job) -> dict[str, int | float]:
    """What a finished job's info says of how its picture was made."""
    if not isinstance(job.params, GenerateParams):
        return {}
    return {
        "seed": job.params.seed,
        "steps": job.params.steps,
        "guidance_scale": job.params.guidance_scale,
    }
