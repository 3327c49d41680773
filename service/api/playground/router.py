"""`/`: the page on which people try the service; programs get links instead.

The page is static files without a build step. It names everything relative to its own address, so
that a proxy may put the service under a path.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from service.api.negotiation import choose_media_type
from service.errors import NotFound

_LINKS = {
    "documentation": "/docs",
    "interface": "/openapi.json",
    "models": "/v1/models",
    "readiness": "/readyz",
    "metrics": "/metrics",
}

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE = "index.html"

# Nothing but the page's own files runs, and nothing leaves for another host. `blob:` and `data:`
# are the pictures that the page itself holds. No string can become markup or a script's address.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    # Kept, but asked about each time: a page and modules of two releases never meet.
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class StaticFile:
    """One file of the page, held in memory; `etag` changes with its content."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Traversable) -> "StaticFile":
        """The file, its media type told by its suffix."""
        content = path.read_bytes()
        suffix = path.name[path.name.rindex(".") :]
        return cls(content, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request, extra: Mapping[str, str] | None = None) -> Response:
        """200 with the content, or 304 to a client that holds it already."""
        headers = {**_HEADERS, "etag": self.etag, **(extra or {})}
        held = (tag.strip() for tag in request.headers.get("if-none-match", "").split(","))
        # A proxy that compressed the file marks its tag as weak; it names the same content.
        if any(tag == "*" or tag.removeprefix("W/") == self.etag for tag in held):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers={**headers, "content-type": self.media_type})


def _read_files() -> dict[str, StaticFile]:
    folder = resources.files(__package__) / "static"
    return {path.name: StaticFile.read(path) for path in folder.iterdir()}


_FILES = _read_files()


@router.api_route("/", methods=["GET", "HEAD"])
async def show_page(request: Request) -> Response:
    """The page where `Accept` prefers HTML; links for everybody else."""
    chosen = choose_media_type(request.headers.get("accept"), ("application/json", "text/html"))
    if chosen == "text/html":
        return _FILES[_PAGE].answer(request, {"vary": "accept"})
    return JSONResponse(_LINKS, headers={"vary": "accept"})


@router.api_route("/playground/{name}", methods=["GET", "HEAD"])
async def show_file(request: Request, name: str) -> Response:
    """A file that the page asks for."""
    if name == _PAGE or name not in _FILES:
        raise NotFound(f"the playground has no file {name[:100]}", code="unknown_route")
    return _FILES[name].answer(request)
