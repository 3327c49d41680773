"""A picture in a frame of another size: scaled, padded or cut, and where it then lies."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

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
    height, width = frame
    if (image.height, image.width) == frame:
        return _placed(image, image, frame, fit)
    lanczos = Image.Resampling.LANCZOS
    if fit == "stretch":
        scaled = image.resize((width, height), lanczos)
    elif fit == "center-crop":
        scaled = ImageOps.fit(image, (width, height), lanczos)
    else:
        scale = min(width / image.width, height / image.height)
        scaled = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), lanczos
        )
    return _placed(image, scaled, frame, fit)


def pad_to_frame(image: Image.Image, frame: tuple[int, int]) -> Framed:
    """A picture, RGB or RGBA, in the middle of a frame that is no smaller, every pixel kept."""
    return _placed(image, image, frame, "pad")


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
