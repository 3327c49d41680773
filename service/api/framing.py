"""A picture in a frame of another size: scaled, padded or cut, and where it then lies."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.boxes import Box

Fit: TypeAlias = Literal["pad", "center-crop", "stretch"]

_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Framed:
    """RGB at the frame's size; what was done, for the header `x-rpiae-fit`; where it lies."""

    image: Image.Image
    fitted: str
    box: Box


def fit_to_frame(image: Image.Image, frame: tuple[int, int], fit: Fit) -> Framed:
    """A picture, RGB or RGBA, at the size of a frame (height, width); see `decode_image`."""
    return _placed(image, _scaled(image, frame, fit, Image.Resampling.LANCZOS), frame, fit)


def pad_to_frame(image: Image.Image, frame: tuple[int, int]) -> Framed:
    """A picture, RGB or RGBA, in the middle of a frame that is no smaller, every pixel kept."""
    return _placed(image, image, frame, "pad")


def fit_mask_to_frame(
    mask: NDArray[np.bool_], frame: tuple[int, int], fit: Fit
) -> NDArray[np.bool_]:
    """A mask (h, w) brought to a frame (height, width) as `fit_to_frame` brings its picture.

    A pixel of the frame is set when any pixel that it covers is, so that thin strokes survive;
    beside the picture nothing is set.
    """
    # In floats, as a single set pixel of many would be rounded away in 8 bits.
    share = Image.fromarray(mask.astype(np.float32))
    scaled = np.asarray(_scaled(share, frame, fit, Image.Resampling.BOX)) > 0
    height, width = frame
    left, top = (width - scaled.shape[1]) // 2, (height - scaled.shape[0]) // 2
    placed = np.zeros(frame, dtype=np.bool_)
    placed[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return placed


def _scaled(
    image: Image.Image, frame: tuple[int, int], fit: Fit, method: Image.Resampling
) -> Image.Image:
    """What of the picture the frame will show, at its size there."""
    height, width = frame
    if (image.height, image.width) == frame:
        return image
    if fit == "stretch":
        return image.resize((width, height), method)
    if fit == "center-crop":
        return ImageOps.fit(image, (width, height), method)
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, method)


def _placed(image: Image.Image, scaled: Image.Image, frame: tuple[int, int], fit: Fit) -> Framed:
    """The scaled picture in the middle of a white frame, transparency painted white."""
    height, width = frame
    canvas = Image.new("RGB", (width, height), _WHITE)
    left, top = (width - scaled.width) // 2, (height - scaled.height) // 2
    canvas.paste(scaled, (left, top), scaled if scaled.mode == "RGBA" else None)
    fitted = "none"
    if image.size != canvas.size:
        source, inner = f"{image.width}x{image.height}", f"{scaled.width}x{scaled.height}"
        fitted = f"{fit} {source} to {inner} in {width}x{height}"
    return Framed(canvas, fitted, Box(left, top, scaled.width, scaled.height))
