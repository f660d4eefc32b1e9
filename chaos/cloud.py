"""The demo's stand-in cloud, made to flap; it notes every id that anything sent to it mentions."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web
from aiohttp.typedefs import Handler
from jobs import LARGE

from agent.demo.cloud import StandInCloud

MODEL = "digits-large"
SLOW_S = 0.7
AN_ID = re.compile(rb"chaos-\d+-\d+")


class FlappingCloud:
    """A server that really runs the model, when it serves at all."""

    def __init__(self, port: int) -> None:
        """Set it up; `serve` listens."""
        self.port = port
        self.seen: set[str] = set()
        self.requests = 0
        self._way = "serve"
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._served = StandInCloud(MODEL, LARGE)

    async def become(self, way: str) -> None:
        """Behave so from now on: `serve`, `refuse` connections, `fail` with 500, `hang`, `slow`."""
        async with self._changed:
            self._way = way
            self._changed.notify_all()
        if way == "refuse":
            await self.stop()
        elif self._runner is None:
            application = self._served.application()
            application.middlewares.append(self._behave)
            self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Close the port and all connections."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    @web.middleware
    async def _behave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        told = [request.raw_path.encode(), *(b for pair in request.raw_headers for b in pair)]
        told.append(await request.read())
        self.requests += 1
        self.seen.update(found.decode() for text in told for found in AN_ID.findall(text))
        if self._way == "hang":
            async with self._changed:
                await self._changed.wait_for(lambda: self._way != "hang")
        if self._way == "fail":
            return web.json_response({"error": "out of order"}, status=500)
        if self._way == "slow":
            await asyncio.sleep(SLOW_S)
        return await handler(request)
