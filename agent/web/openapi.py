"""The description of what the HTTP port takes and gives, by OpenAPI 3.1."""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import web

from agent import __version__
from agent.web.server import json_response

FILE = Path(__file__).with_name("openapi.json")


class Description:
    """Serves /openapi.json."""

    def routes(self) -> list[web.RouteDef]:
        """Give what it serves."""
        return [web.get("/openapi.json", self._get)]

    async def _get(self, _request: web.Request) -> web.Response:
        description = json.loads(FILE.read_bytes())
        description["info"]["version"] = __version__
        return json_response(description)
