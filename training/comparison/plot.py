"""A plot of small panels: one metric each, one row per variant, one dot per seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # drawn at twice the size that a page shows it in
_ROW = 22 * _SCALE
_LABELS = 96 * _SCALE
_PANEL = 150 * _SCALE
_NUMBER = 38 * _SCALE
_TOP = 40 * _SCALE
_MARGIN = 10 * _SCALE
_GAP = 30 * _SCALE
_RADIUS = 3 * _SCALE
_FONT_SIZE = 11 * _SCALE
_TEXT, _RULE, _DOT = (32, 32, 32), (222, 222, 222), (22, 92, 168)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """rows: the values of each variant's seeds, in one order for all panels; from_zero: the axis
    begins there, so that lengths can be compared.
    """

    title: str
    digits: int
    rows: Mapping[str, Sequence[float]]
    from_zero: bool = False


def value_range(panel: Panel) -> tuple[float, float]:
    """Smallest and largest value that the panel shows, a tenth wider; never empty."""
    found = [value for values in panel.rows.values() for value in values]
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    if panel.from_zero:
        return 0.0, 1.1 * high or 1.0
    room = (high - low) / 10 or 0.5
    return low - room, high + room


def draw_plot(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side; the number beside each row is the mean over its seeds.

    Raises:
        ValueError: there is no panel, or they differ in their rows.
    """
    names = [list(panel.rows) for panel in panels]
    if not names or any(other != names[0] for other in names):
        raise ValueError(f"panels must have the same rows and be at least one, got {names}")
    width = _LABELS + len(panels) * (_PANEL + _NUMBER + _GAP)
    height = _TOP + _ROW * len(names[0]) + _MARGIN
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_SIZE)
    for row, name in enumerate(names[0]):
        y = _TOP + row * _ROW + _ROW // 2
        draw.text((_MARGIN, y), name, fill=_TEXT, font=font, anchor="lm")
    for index, panel in enumerate(panels):
        _draw_panel(draw, panel, _LABELS + index * (_PANEL + _NUMBER + _GAP), font)
    return image


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    left: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    low, high = value_range(panel)
    draw.text((left, _TOP // 2), panel.title, fill=_TEXT, font=font, anchor="lm")
    for row, found in enumerate(panel.rows.values()):
        y = _TOP + row * _ROW + _ROW // 2
        draw.line((left, y, left + _PANEL, y), fill=_RULE, width=_SCALE)
        for value in found:
            x = left + round(_PANEL * (value - low) / (high - low))
            draw.ellipse((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), fill=_DOT)
        text = f"{sum(found) / len(found):.{panel.digits}f}" if found else "-"
        place = (left + _PANEL + _NUMBER, y)
        draw.text(place, text, fill=_TEXT, font=font, anchor="rm")
