"""Metrics, and whether the daemon is alive and ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CollectorRegistry

from agent.web.exposition import page


class Health:
    """Serves /metrics, /healthz and /readyz."""

    def __init__(
        self,
        registry: CollectorRegistry,
        not_ready: Callable[[], str | None],
        notes: Callable[[], Iterable[str]] = tuple,
        *,
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Set it up.

        Args:
            registry: The metrics.
            not_ready: Gives the reason why the daemon is not ready, or None.
            notes: Gives what is wrong all the same.
            catch_up: Has the metrics count all that has happened.
        """
        self._registry = registry
        self._not_ready = not_ready
        self._notes = notes
        self._catch_up = catch_up

    def routes(self) -> list[web.RouteDef]:
        """Give what it serves."""
        return [
            web.get("/metrics", self._metrics),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
        ]

    async def _metrics(self, request: web.Request) -> web.Response:
        self._catch_up()
        body, content_type = page(self._registry, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._not_ready()
        if reason is None:
            return web.Response(text="".join(f"{line}\n" for line in ("ok", *self._notes())))
        return web.Response(status=503, text=f"{reason}\n")
