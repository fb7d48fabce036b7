"""The files of the dashboard, read once, so that no path of a request is ever opened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "dashboard"
INDEX = "index.html"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A file as it is sent."""

    body: bytes
    content_type: str
    etag: str


def read_pages(folder: Path = FOLDER) -> Mapping[str, Page]:
    """The files of a folder and those below it by the path they are asked for; `/` is the index. Others are left out.

    Empty if the folder is not there.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            name = path.relative_to(folder).as_posix()
            found[f"/{name}"] = Page(body=body, content_type=_TYPES[path.suffix], etag=etag)
    if f"/{INDEX}" in found:
        found["/"] = found[f"/{INDEX}"]
    return found


def show(page: Page, request: web.Request) -> web.Response:
    """The file, or that it is still the one that the browser has."""
    headers = {
        "ETag": page.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Content-Type": page.content_type,
    }
    known = {one.strip().removeprefix("W/") for one in request.headers.get("If-None-Match", "").split(",")}
    if page.etag in known or "*" in known:
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    return web.Response(body=page.body, headers=headers)
