"""A sheet of pictures with their prompts, for people to look at."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_FONT_SIZE = 11
_LINE_HEIGHT = 14
_NUM_LINES = 4
_PIXELS_PER_LETTER = 6.2
_RIGHT, _WRONG = (32, 32, 32), (190, 24, 24)


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """Pictures of one size side by side, the text under them; red if the judge found it wrong."""

    pictures: tuple[NDArray[np.uint8], ...]
    text: str
    right: bool


def _draw_entry(sheet: Image.Image, entry: SheetEntry, left: int, top: int, width: int) -> None:
    height = 0
    for number, picture in enumerate(entry.pictures):
        image = Image.fromarray(picture)
        sheet.paste(image, (left + number * (image.width + _MARGIN // 2), top))
        height = max(height, image.height)
    lines = textwrap.wrap(entry.text, int(width / _PIXELS_PER_LETTER), max_lines=_NUM_LINES)
    ImageDraw.Draw(sheet).multiline_text(
        (left, top + height + 2),
        "\n".join(lines),
        fill=_RIGHT if entry.right else _WRONG,
        font=ImageFont.load_default(_FONT_SIZE),
        spacing=1,
    )


def save_sheet(path: Path, rows: Sequence[Sequence[SheetEntry]]) -> None:
    """Writes a PNG with the entries of each row side by side."""
    sheet_image(rows).save(path, optimize=True)


def sheet_image(rows: Sequence[Sequence[SheetEntry]]) -> Image.Image:
    """The entries of each row side by side."""
    rows = [row for row in rows if row]
    sizes = [[_size(entry) for entry in row] for row in rows]
    width = max(sum(w + _MARGIN for w, _ in row) for row in sizes) + _MARGIN
    heights = [max(h for _, h in row) + _NUM_LINES * _LINE_HEIGHT + _MARGIN for row in sizes]
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN), "white")
    top = _MARGIN
    for row, row_sizes, height in zip(rows, sizes, heights, strict=True):
        left = _MARGIN
        for entry, (entry_width, _) in zip(row, row_sizes, strict=True):
            _draw_entry(sheet, entry, left, top, entry_width)
            left += entry_width + _MARGIN
        top += height
    return sheet


def _size(entry: SheetEntry) -> tuple[int, int]:
    """Width and height of the entry's pictures."""
    heights, widths = zip(*(picture.shape[:2] for picture in entry.pictures), strict=True)
    return sum(widths) + _MARGIN // 2 * (len(widths) - 1), max(heights)
