"""Which frames a model encodes and decodes, and what a client's `size` asks for. No torch.

A frame is (height, width) in pixels. A cell is what one latent covers, so a frame of another size
than the model's own is a whole number of cells on each side.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from models.manifest import Manifest
from service.errors import InvalidRequest

Size: TypeAlias = tuple[int, int] | Literal["native"]
"""Height and width of a frame, or each picture's own size in whole cells."""

_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")
_SHOWN_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model's own frame and grid of latents, and the limits of others.

    own: height, width in pixels; grid: rows, columns of latents; other_sizes: others run as well;
    max_side: longest side of those in pixels.
    """

    model: str
    own: tuple[int, int]
    grid: tuple[int, int]
    other_sizes: bool
    max_side: int

    @classmethod
    def of(cls, manifest: Manifest, max_side: int) -> Self:
        """What a manifest says, with the service's limit."""
        _, rows, columns = manifest.latent_shape
        return cls(
            model=manifest.name,
            own=manifest.image_size,
            grid=(rows, columns),
            other_sizes=manifest.other_sizes,
            max_side=max_side,
        )

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a cell in pixels."""
        return self.own[0] // self.grid[0], self.own[1] // self.grid[1]

    @property
    def max_grid(self) -> tuple[int, int] | None:
        """Most rows and columns of latents; None where the model has its own grid only."""
        if not self.other_sizes:
            return None
        rows, columns = (self.max_side // side for side in self.cell)
        return max(rows, self.grid[0]), max(columns, self.grid[1])

    def frame_of(self, grid: Sequence[int]) -> tuple[int, int]:
        """The frame that latents of a grid (rows, columns) are decoded to."""
        return grid[0] * self.cell[0], grid[1] * self.cell[1]

    def parse(self, text: str) -> Size:
        """What `auto`, `native` or WIDTHxHEIGHT stands for.

        Raises:
            InvalidRequest: 422 when this model does not encode at that size; `param` is `size`.
        """
        if text == "auto":
            return self.own
        match = _SIZE.fullmatch(text)
        if match is None and text != "native":
            raise _wrong(
                f"is {text[:_SHOWN_CHARS]!r}: write WIDTHxHEIGHT in pixels, for example "
                f"{written(self.own)}, or auto, or native"
            )
        frame = (int(match[2]), int(match[1])) if match else None
        if frame == self.own:
            return self.own
        if not self.other_sizes:
            raise _wrong(
                f"is {text}: {self.model} encodes at {written(self.own)} only, leave size out "
                "or send auto"
            )
        if frame is None:
            return "native"
        self._check(frame, text)
        return frame

    def native_frame(self, picture: tuple[int, int]) -> tuple[int, int]:
        """The smallest frame of whole cells around a picture (height, width).

        Raises:
            InvalidRequest: 422 when that is beyond the limit.
        """
        rows, columns = (-(-side // cell) for side, cell in zip(picture, self.cell, strict=True))
        frame = rows * self.cell[0], columns * self.cell[1]
        if frame != self.own and max(frame) > self.max_side:
            raise _wrong(
                f"is native and the picture {written(picture)}, which takes {written(frame)}: at "
                f"most {self.max_side} on a side are encoded, send a smaller picture or "
                "size=WIDTHxHEIGHT"
            )
        return frame

    def check_total(self, count: int, frame: tuple[int, int], max_pixels: int, param: str) -> None:
        """Check that the pictures of a request at another size than the model's are not too much.

        Raises:
            InvalidRequest: 422, more than `max_pixels` in all.
        """
        total = count * frame[0] * frame[1]
        if frame != self.own and total > max_pixels:
            raise InvalidRequest(
                f"{param}: {count} pictures of {written(frame)} are {total} pixels, the limit of "
                f"one request is {max_pixels}: send fewer, or a smaller size",
                status=422,
                param=param,
                code="invalid_value",
            )

    def _check(self, frame: tuple[int, int], text: str) -> None:
        high, wide = self.cell
        if frame[0] % high or frame[1] % wide or min(frame) < 1:
            raise _wrong(
                f"is {text}: the width must be a multiple of {wide} pixels from {wide} on, "
                f"the height of {high} from {high} on"
            )
        if max(frame) > self.max_side:
            raise _wrong(f"is {text}: at most {self.max_side} pixels on a side are encoded")


def written(frame: tuple[int, int]) -> str:
    """WIDTHxHEIGHT of (height, width)."""
    return f"{frame[1]}x{frame[0]}"


def _wrong(problem: str) -> InvalidRequest:
    return InvalidRequest(f"size {problem}", status=422, param="size", code="invalid_value")
