"""The live page's own files: they hold nothing of the device, so that they need no token."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).with_name("static")
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    # Nothing from elsewhere, nothing inline, and no way to make markup out of a string.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Page:
    """Serves / and what it loads."""

    def routes(self) -> list[web.RouteDef]:
        """Give what it serves."""
        return [web.get(path, self._file) for path in FILES]

    async def _file(self, request: web.Request) -> web.Response:
        name, content_type = FILES[request.path]
        body = (FOLDER / name).read_bytes()
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)
