"""A plot of quantities over time: one panel under the other, one line in each."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # drawn at twice the size that a page shows it in
_WIDTH, _HEIGHT = 560 * _SCALE, 90 * _SCALE
_LEFT, _TOP, _BOTTOM, _MARGIN = 52 * _SCALE, 24 * _SCALE, 20 * _SCALE, 12 * _SCALE
_FONT_SIZE = 11 * _SCALE
_TEXT, _RULE, _LINE = (32, 32, 32), (222, 222, 222), (22, 92, 168)


@dataclass(frozen=True, kw_only=True)
class Line:
    """x ascending, one y for each."""

    title: str
    x: Sequence[float]
    y: Sequence[float]


def draw_lines(lines: Sequence[Line], x_title: str) -> Image.Image:
    """All panels share the range of x; each has its own of y, from zero.

    Raises:
        ValueError: there is no line, or one without points.
    """
    if not lines or any(not line.x or len(line.x) != len(line.y) for line in lines):
        raise ValueError("needs at least one line, each with as many x as y and at least one")
    panel = _TOP + _HEIGHT
    image = Image.new("RGB", (_LEFT + _WIDTH + _MARGIN, panel * len(lines) + _BOTTOM), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_SIZE)
    low = min(min(line.x) for line in lines)
    high = max(max(line.x) for line in lines)
    for index, line in enumerate(lines):
        top, bottom = index * panel + _TOP, (index + 1) * panel
        most = 1.1 * max(line.y) or 1.0
        draw.text((_LEFT, top - _TOP // 2), line.title, fill=_TEXT, font=font, anchor="lm")
        for value in (0.0, max(line.y)):
            y = bottom - round(_HEIGHT * value / most)
            draw.line((_LEFT, y, _LEFT + _WIDTH, y), fill=_RULE, width=_SCALE)
            place = (_LEFT - 4 * _SCALE, y)
            draw.text(place, f"{value:.0f}", fill=_TEXT, font=font, anchor="rm")
        points = [
            (
                _LEFT + _WIDTH * (x - low) / ((high - low) or 1.0),
                bottom - _HEIGHT * max(0.0, y) / most,
            )
            for x, y in zip(line.x, line.y, strict=True)
        ]
        draw.line(points, fill=_LINE, width=_SCALE)
    y = panel * len(lines) + _BOTTOM // 2
    draw.text((_LEFT, y), f"{low:.0f}", fill=_TEXT, font=font, anchor="lm")
    draw.text((_LEFT + _WIDTH, y), f"{high:.0f} {x_title}", fill=_TEXT, font=font, anchor="rm")
    return image
