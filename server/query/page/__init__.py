"""The page at ``/``: static files that ask the REST interface, and nothing else.

Everything comes from here, so that it works without internet and under a Content-Security-Policy
that lets a browser ask this service alone: no inline script or style, no ``eval``. plotly.js is the
one in the plotly package.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import plotly
from fastapi import FastAPI, Request, Response

_ASSETS = Path(__file__).with_name("assets")
_PLOTLY = Path(plotly.__file__).with_name("package_data") / "plotly.min.js"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".md": "text/markdown; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by the browser, and asked for anew each time: another version is seen at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    content: bytes
    media_type: str

    @cached_property
    def tag(self) -> str:
        """What tells one content from another."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @cached_property
    def packed(self) -> bytes:
        """The content, compressed: plotly.js is 5 MB."""
        return gzip.compress(self.content, 6, mtime=0)

    def answer(self, request: Request) -> Response:
        """Return the file, or that the browser has it already."""
        headers = {**_HEADERS, "ETag": self.tag, "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            packed = {**headers, "Content-Encoding": "gzip"}
            return Response(self.packed, media_type=self.media_type, headers=packed)
        return Response(self.content, media_type=self.media_type, headers=headers)


def read_assets() -> Mapping[str, Asset]:
    """Return the files of the page by their path below ``/page/``."""
    found = {
        path.relative_to(_ASSETS).as_posix(): Asset(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(_ASSETS.rglob("*"))
        if path.is_file()
    }
    return {**found, "vendor/plotly.min.js": Asset(_PLOTLY.read_bytes(), _TYPES[".js"])}


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/``; it needs no key itself, what it asks does."""
    assets = read_assets()

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        return assets["index.html"].answer(request)

    @app.get("/page/{path:path}", include_in_schema=False)
    def asset(path: str, request: Request) -> Response:
        found = assets.get(path)
        if found is None:
            return Response("there is no such file\n", 404, _HEADERS, "text/plain")
        return found.answer(request)
