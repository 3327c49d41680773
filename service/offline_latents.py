"""The commands `encode` and `decode`: pictures to a file of latents and back, without a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.bridge import Posterior
from service.api.latents.formats import (
    BOXES,
    NPY_TYPE,
    SAFETENSORS_TYPE,
    Accepted,
    boxes_to_keep,
    read_latents,
    write_safetensors,
)
from service.api.uploads import stack_uploads
from service.boxes import Box, array_of_boxes
from service.errors import InvalidRequest
from service.offline import OfflineModel
from service.offline_files import format_of, numbered, read_file, write_file, write_image
from service.outputs import crop
from service.sizes import written

_MAX_LATENTS = 4096
_BATCH = 8  # pictures of the model's own size that are computed together


@dataclass(frozen=True)
class Encoded:
    """The shape (B, C, h, w) of latents, and what was done to each picture to fit its frame."""

    shape: tuple[int, ...]
    fitted: list[str]


@dataclass(frozen=True)
class Decoded:
    """A picture's file, its size as WIDTHxHEIGHT, and the frame's that it was cut from."""

    path: Path
    size: str
    frame: str


def encode_files(
    model: OfflineModel,
    images: Sequence[Path],
    output: Path,
    *,
    size: str = "auto",
    sample: bool = False,
    seed: int = 0,
) -> Encoded:
    """Write latents, mean, logvar and boxes of pictures as safetensors.

    Args:
        model: does the work.
        images: picture files.
        output: a .safetensors file.
        size: `auto`, `native` or WIDTHxHEIGHT; see `Sizes.parse`.
        sample: draw from the posterior, with `seed`, instead of taking its mean.
        seed: of that draw.

    Raises:
        InvalidRequest: a file is no usable picture, the model does not encode at that size, or the
            output is no .safetensors file.
    """
    if output.suffix != ".safetensors":
        raise InvalidRequest(f"{output} must end in .safetensors", param="output")
    frame = model.sizes.parse(size)
    uploads = [model.read_image(path, frame) for path in images]
    pixels = torch.from_numpy(stack_uploads(uploads))
    parts = [model.encode(part) for part in torch.split(pixels, _batch(model, uploads[0].frame))]
    mean, logvar = torch.cat([p.mean for p in parts]), torch.cat([p.logvar for p in parts])
    latents = mean
    if sample:
        latents = Posterior(mean, logvar).sample(torch.Generator().manual_seed(seed))
    named = {"latents": latents, "mean": mean, "logvar": logvar}
    arrays = {name: tensor.cpu().numpy() for name, tensor in named.items()}
    boxes = array_of_boxes([upload.box for upload in uploads])
    write_file(output, write_safetensors({**arrays, BOXES: boxes}))
    return Encoded(tuple(latents.shape), [upload.fitted for upload in uploads])


def decode_file(
    model: OfflineModel, latents: Path, output: Path, *, box: str = "auto"
) -> list[Decoded]:
    """Write the pictures of latents, a .safetensors or .npy file.

    Args:
        model: does the work.
        latents: the file; a tensor `boxes` in it says what of each picture is kept.
        output: a picture file; several are numbered.
        box: `auto`, `none` or boxes; see `boxes_to_keep`.

    Raises:
        InvalidRequest: the file holds no latents of this model, or the boxes do not fit them.
    """
    accepted = Accepted(
        shape=model.manifest.latent_shape,
        max_latents=_MAX_LATENTS,
        max_grid=model.sizes.max_grid,
    )
    media_type = NPY_TYPE if latents.suffix == ".npy" else SAFETENSORS_TYPE
    file = read_latents(read_file(latents), media_type, accepted)
    frame = model.sizes.frame_of(file.latents.shape[2:])
    boxes: list[Box | None] = [*boxes_to_keep(box, file, frame)]
    format_of(output)  # refuses other formats before anything is computed
    paths = numbered(output, len(file.latents))
    parts = torch.split(torch.from_numpy(file.latents.copy()), _batch(model, frame))
    pictures = (image for part in parts for image in model.decode(part))
    decoded = []
    for path, image, kept in zip(paths, pictures, boxes or [None] * len(paths), strict=True):
        write_image(path, crop(image, kept))
        size = written(frame) if kept is None else kept.size
        decoded.append(Decoded(path, size, written(frame)))
    return decoded


def _batch(model: OfflineModel, frame: tuple[int, int]) -> int:
    """Pictures of a frame (height, width) that are computed together."""
    height, width = model.sizes.own
    return max(1, _BATCH * height * width // (frame[0] * frame[1]))
