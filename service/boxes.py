"""Where a picture lies in its frame, when bars were painted beside it. No torch, no images.

Written as `left,top,width,height` in pixels of the frame, several separated by `;`.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest

_BOX = re.compile(r"\s*([0-9]{1,9})" + r"\s*,\s*([0-9]{1,9})" * 3 + r"\s*")
_SHOWN_CHARS = 60


class Box(NamedTuple):
    """A rectangle in pixels; left and top count from the frame's upper left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.width}x{self.height}"


def format_boxes(boxes: Sequence[Box]) -> str:
    """The boxes as text, for the header `x-rpiae-box`."""
    return ";".join(",".join(map(str, box)) for box in boxes)


def parse_boxes(text: str, *, param: str) -> list[Box]:
    """The inverse of `format_boxes`.

    Raises:
        InvalidRequest: 422 for anything but whole numbers from 0 on, four for each box.
    """
    boxes = []
    for part in text.split(";"):
        match = _BOX.fullmatch(part)
        if match is None:
            raise _wrong(
                param,
                f"holds {part.strip()[:_SHOWN_CHARS]!r}: write left,top,width,height in whole "
                "pixels from 0 on, several boxes separated by ;",
            )
        boxes.append(Box(*map(int, match.groups())))
    return boxes


def boxes_of_array(array: NDArray[Any], *, param: str) -> list[Box]:
    """Boxes of a (B, 4) array of integers.

    Raises:
        InvalidRequest: 422 another shape, or another kind of number.
    """
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iu":
        raise _wrong(
            param,
            f"have shape {list(array.shape)} and dtype {array.dtype.name}: "
            "send integers [B, 4], each left, top, width, height",
        )
    return [Box(*map(int, row)) for row in array]


def array_of_boxes(boxes: Sequence[Box]) -> NDArray[np.int64]:
    """(B, 4) int64."""
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def check_boxes(boxes: Sequence[Box], *, count: int, frame: tuple[int, int], param: str) -> None:
    """Check that there is one box for each of `count` pictures, inside a frame (height, width).

    Raises:
        InvalidRequest: 422 another number of boxes, an empty box, or one that leaves the frame.
    """
    if len(boxes) != count:
        raise _wrong(param, f"holds {len(boxes)} boxes for {count} pictures: send one for each")
    height, width = frame
    for box in boxes:
        written = format_boxes([box])
        if box.width < 1 or box.height < 1:
            raise _wrong(param, f"{written} is empty: width and height must be 1 or more")
        if (
            min(box.left, box.top) < 0
            or box.left + box.width > width
            or box.top + box.height > height
        ):
            raise _wrong(param, f"{written} leaves the frame of {width}x{height} pixels")


def same_size(boxes: Sequence[Box]) -> bool:
    """True when pictures cropped to these boxes fit one array."""
    return len({(box.width, box.height) for box in boxes}) <= 1


def _wrong(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}", status=422, param=param, code="invalid_value")
