"""The playground: a page that uses the server's own HTTP API. The page holds no data and needs no key; the API that it calls does."""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from ..client.snippets import source_of
from .routing import Routes

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".py": "text/plain; charset=utf-8",
}
_SNIPPETS = ("variables", "complete", "reset", "plotly_script")
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data: blob:",
    "frame-src": "'self'",  # drawing.html, which cannot go elsewhere
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "require-trusted-types-for": "'script'",  # text becomes HTML only through a policy …
    "trusted-types": "sandboxed-frame",  # … and this one, in `frame.js`, is the only one
}
# The frame in which scripts of an output run if a person asks for it. Its origin is its own, and it may load nothing.
_DRAWING = "playground/drawing.html"
_DRAWING_POLICY = {
    "default-src": "'none'",
    "script-src": "'unsafe-inline' 'unsafe-eval' data: blob:",
    "style-src": "'unsafe-inline' data:",
    "img-src": "data: blob:",
    "font-src": "data:",
    "worker-src": "blob:",
    "frame-ancestors": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "sandbox": "allow-scripts",
}
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-dns-prefetch-control": "off",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes(max_upload: int) -> Routes:
    """Return the routes of the playground: the page at the root, and below playground/ its scripts, styles and snippets.

    A snippet is code that the page runs in a session. The page uploads files of at most `max_upload` bytes.
    """
    folder = files(__package__) / "playground"
    parts = {f"playground/{part.name}": part.read_bytes() for part in folder.iterdir() if _media_type(part.name)}
    parts |= {f"playground/snippets/{name}.py": source_of(name).encode() for name in _SNIPPETS}
    page = parts.pop("playground/page.html").replace(b'data-most=""', f'data-most="{max_upload}"'.encode())
    drawing = parts.pop(_DRAWING)
    headers = _HEADERS | {"content-security-policy": _policy(parts["playground/frame.css"])}
    drawing_headers = _HEADERS | {"content-security-policy": "; ".join(map(" ".join, _DRAWING_POLICY.items()))}
    return [
        ("", "GET", _content_handler(page, _TYPES[".html"], headers)),
        (_DRAWING, "GET", _content_handler(drawing, _TYPES[".html"], drawing_headers)),
        *((path, "GET", _content_handler(part, _media_type(path), headers)) for path, part in parts.items()),
    ]


def _policy(style: bytes) -> str:
    """Return the content security policy of the page. It permits one inline style sheet, `style`, which it identifies by a hash.

    The page writes this style sheet into its frames. They cannot load it by a URL, because the guard refuses requests of frames: their
    origin is `null`.
    """
    hashed = base64.b64encode(hashlib.sha256(style).digest()).decode()
    policy = _POLICY | {"style-src": f"'self' 'sha256-{hashed}'"}
    return "; ".join(f"{name} {value}" for name, value in policy.items())


def _content_handler(content: bytes, media_type: str, headers: dict[str, str]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return handle


def _media_type(name: str) -> str:
    return _TYPES.get(PurePosixPath(name).suffix, "")
