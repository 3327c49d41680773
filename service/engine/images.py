"""Pixels as the service speaks them: uint8 tensors, and encoded files that carry their origin."""

import io
from collections.abc import Mapping
from typing import Literal

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

ImageFormat = Literal["png", "jpeg", "webp"]

_FASTEST_PNG = 1  # zlib level; level 6 costs three times as much for a few percent


def to_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W) float, clamped to [0, 1], to uint8 on the CPU."""
    # In place: a new tensor for each of these costs more than what is computed.
    return images.clamp(0, 1).mul_(255).round_().to(torch.uint8).cpu()


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def encode_file(
    image: Tensor, image_format: ImageFormat, quality: int, text: Mapping[str, str] | None = None
) -> bytes:
    """One image (3, H, W) uint8 as a file.

    quality: 0 to 100, for jpeg and webp; webp at 100 is lossless. text: chunks of a PNG;
    the other formats have no place for them.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    if image_format == "png":
        chunks = PngInfo()
        for key, value in (text or {}).items():
            chunks.add_text(key, value)
        picture.save(buffer, "PNG", pnginfo=chunks, compress_level=_FASTEST_PNG)
    elif image_format == "jpeg":
        picture.save(buffer, "JPEG", quality=max(1, quality), subsampling=0 if quality > 90 else 2)
    else:
        picture.save(buffer, "WEBP", quality=quality, lossless=quality == 100)
    return buffer.getvalue()


def picture_text(
    *,
    prompt: str,
    seed: int,
    num_steps: int,
    sampler: str,
    guidance_scale: float,
    model: str,
    image_guidance_scale: float | None = None,
    strength: float | None = None,
) -> dict[str, str]:
    """Text chunks that tell how a picture was made; the last two, if it has a source."""
    chunks = {
        "prompt": prompt,
        "seed": seed,
        "steps": num_steps,
        "sampler": sampler,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": image_guidance_scale,
        "strength": strength,
        "model": model,
    }
    return {name: str(value) for name, value in chunks.items() if value is not None}
