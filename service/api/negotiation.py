"""What a client asks for in `Accept`, of the media types on offer, and in `Prefer`."""

from collections.abc import Sequence

from fastapi import Request

from service.errors import InvalidRequest
from service.jobs.job import ImageFormat

IMAGE_TYPES: dict[str, ImageFormat] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
}


def choose_media_type(accept: str | None, offered: Sequence[str]) -> str | None:
    """The offered type the client prefers, or None if it accepts none of them.

    Equal preferences go to the type offered first; so does an absent header. The most specific
    range that covers a type gives its quality (RFC 9110, section 12.5.1).
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [_parse_range(part) for part in accept.split(",") if part.strip()]
    best, best_quality = None, 0.0
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > best_quality:
            best, best_quality = media_type, quality
    return best


def _parse_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return name, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    family = media_type.partition("/")[0]
    for pattern in (media_type, f"{family}/*", "*/*"):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0


def not_acceptable(accept: str | None, offered: Sequence[str]) -> InvalidRequest:
    """The error for an `Accept` header that none of the offered types meets."""
    return InvalidRequest(
        f"Accept is {accept}: this request is answered with {', '.join(offered)}",
        status=406,
        param="accept",
        code="not_acceptable",
    )


def prefers_async(request: Request) -> bool:
    """Whether the client asks for an answer before the work is done (RFC 7240)."""
    preferences = (
        part for header in request.headers.getlist("prefer") for part in header.split(",")
    )
    return any(part.partition(";")[0].strip().lower() == "respond-async" for part in preferences)
