"""The files of an edit or a variation: the source picture, and what of it may change."""

from dataclasses import dataclass

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray

from models.manifest import Manifest
from service.api.body import Form
from service.api.framing import Fit, fit_mask_to_frame
from service.api.latents.formats import write_safetensors
from service.api.state import Gateway
from service.api.uploads import Upload, decode_file, decode_upload
from service.errors import InvalidRequest
from service.sizes import written

# What the models here were trained on: one source picture.
MAX_SOURCES = 1


@dataclass(frozen=True)
class SourceFiles:
    """Uploaded files as they arrived."""

    image: bytes
    mask: bytes | None = None

    @property
    def content(self) -> list[bytes | None]:
        """The files in a fixed order, by which a repeated request is known."""
        return [self.image, self.mask]


@dataclass(frozen=True)
class Source:
    """A picture in the model's frame; mask: bool (H, W), what may change of it, None: all."""

    upload: Upload
    mask: NDArray[np.bool_] | None = None

    def to_payload(self) -> bytes:
        """Safetensors with `images` (1, 3, H, W) and `mask` (1, 1, H, W): 255 changes, 0 stays."""
        tensors = {"images": self.upload.pixels[None]}
        if self.mask is not None:
            tensors["mask"] = np.where(self.mask, np.uint8(255), np.uint8(0))[None, None]
        return write_safetensors(tensors)


def source_files(form: Form, manifest: Manifest, *, with_mask: bool) -> SourceFiles:
    """The files of a request, one of each kind.

    Raises:
        InvalidRequest: 422 naming the file that is missing, unknown, or given too often.
    """
    known = ("image", "mask") if with_mask else ("image",)
    for name in form.files:
        if name not in known:
            raise _invalid(name, f"is not a file of this request: it takes {' and '.join(known)}")
    for name in known:
        if name in form.fields:
            raise _invalid(name, f"must be a file (with curl: -F {name}=@picture.png)")
    images, masks = form.files.get("image", []), form.files.get("mask", [])
    if not images:
        raise InvalidRequest(
            "image is required: send a picture file",
            status=422,
            param="image",
            code="missing_required_parameter",
        )
    if len(images) > MAX_SOURCES:
        raise _invalid(
            "image",
            f"is given {len(images)} times: {manifest.name} takes {MAX_SOURCES} picture, no more",
        )
    if len(masks) > 1:
        raise _invalid("mask", f"is given {len(masks)} times: send one, for the first image")
    return SourceFiles(images[0], masks[0] if masks else None)


async def decode_source(gateway: Gateway, files: SourceFiles, fit: Fit) -> Source:
    """Both files in the model's frame.

    Raises:
        InvalidRequest: see `decode_image` and `decode_mask`.
    """
    upload = await decode_upload(
        gateway, files.image, size=gateway.manifest.image_size, fit=fit, param="image"
    )
    data = files.mask
    if data is None:
        return Source(upload)
    mask = await to_thread.run_sync(
        lambda: decode_mask(data, upload, fit=fit, max_pixels=gateway.settings.max_pixels),
        limiter=gateway.decoding,
    )
    return Source(upload, mask)


def decode_mask(data: bytes, upload: Upload, *, fit: Fit, max_pixels: int) -> NDArray[np.bool_]:
    """What of an uploaded picture may change: bool (H, W) in its frame.

    That is wherever the mask file is not fully opaque. Bars beside the picture never change.

    Raises:
        InvalidRequest: 415 or 413 as for pictures; 422 for a file that cannot be decoded, has no
            alpha channel or another size than the picture, or leaves nothing to change.
    """
    image = decode_file(data, max_pixels=max_pixels, param="mask")
    if image.mode != "RGBA":
        raise _invalid(
            "mask",
            "has no transparency: send a PNG or WebP whose transparent pixels mark what shall "
            "change",
        )
    height, width = upload.source_size
    if image.size != (width, height):
        raise _invalid(
            "mask",
            f"is {image.width}x{image.height} and image is {width}x{height}: "
            "send both in the same size",
        )
    changing = np.asarray(image.getchannel("A")) < 255
    if not changing.any():
        raise _invalid(
            "mask",
            "is opaque everywhere, so nothing would change: make the pixels that shall change "
            "transparent",
        )
    mask = fit_mask_to_frame(changing, upload.frame, fit)
    if not mask.any():
        raise _invalid(
            "mask",
            f"is transparent only where fit {fit} cuts the picture off to {written(upload.frame)}: "
            "send fit pad, or a picture of that size",
        )
    return mask


def _invalid(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}", status=422, param=param, code="invalid_value")
