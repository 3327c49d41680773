"""A trace as an SVG picture: one row for each span, one colour for each service."""

from collections.abc import Sequence
from html import escape

from benchmarks.trace_receiver import ReceivedSpan

_LABEL, _BARS, _VALUE = 150, 560, 70  # widths in pixels
_ROW, _TOP = 16, 40
_COLOURS = ("#1f5fa8", "#c4671b")
_TICKS = 5
_STYLE = (
    "text{font:11px sans-serif;fill:#222}.end{text-anchor:end}.mid{text-anchor:middle}"
    "line{stroke:#ddd}"
)


def draw_trace(rows: Sequence[tuple[int, str, ReceivedSpan]]) -> str:
    """The picture.

    Args:
        rows: depth in the tree, label and span, from above; the first is the longest.
    """
    _, _, top = rows[0]
    services = sorted({span.service for _, _, span in rows})
    width, height = _LABEL + _BARS + _VALUE, _TOP + _ROW * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(top.name)}</title>",
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for index, service in enumerate(services):
        x = _LABEL + 130 * index
        parts.append(
            f'<rect x="{x}" y="4" width="10" height="10" fill="{_colour(services, index)}"/>'
        )
        parts.append(f'<text x="{x + 15}" y="13">{escape(service)}</text>')
    for tick in range(_TICKS + 1):
        x = _LABEL + _BARS * tick / _TICKS
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{_TOP - 4}" y2="{height - 8}"/>')
        milliseconds = 1000 * top.seconds * tick / _TICKS
        parts.append(f'<text class="mid" x="{x:.0f}" y="{_TOP - 8}">{milliseconds:.0f} ms</text>')
    for index, (depth, label, span) in enumerate(rows):
        y = _TOP + _ROW * index
        start = _LABEL + _BARS * (span.start - top.start) / top.seconds
        long = max(1.5, _BARS * span.seconds / top.seconds)
        colour = _colour(services, services.index(span.service))
        parts.append(f'<text x="{6 + 10 * depth}" y="{y + 12}">{escape(label)}</text>')
        parts.append(
            f'<rect x="{start:.1f}" y="{y + 3}" width="{long:.1f}" height="{_ROW - 5}" '
            f'fill="{colour}"/>'
        )
        value = f"{1000 * span.seconds:.1f}"
        parts.append(f'<text class="end" x="{width - 8}" y="{y + 12}">{value}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _colour(services: Sequence[str], index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
