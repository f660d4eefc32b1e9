"""What the live page reads, and the commands that it may give."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from agent import __version__, explain, plugins
from agent.events import Events
from agent.history import Entry, EntryError, decode
from agent.job import ID_PATTERN
from agent.store import StoreError
from agent.store.decisions import open_decisions
from agent.web.feed import Feed
from agent.web.page import Page
from agent.web.rows import Row, Rows
from agent.web.server import NO_STORE, error_response, json_response

STATE_EVERY_S = 1.0
LATEST = 100  # decisions that a page begins with
COMMANDS = ("pause", "resume", "policy")
# A policy's name and options; and how long they may take to come.
MOST_COMMAND_BYTES = 64 * 1024
COMMAND_WITHIN_S = 10.0

CarryOut = Callable[[str, bytes], Awaitable[dict[str, Any]]]


class Live:
    """Serves / and /api."""

    def __init__(
        self,
        state: Callable[[], dict[str, Any]],
        folder: Path,
        *,
        device: str,
        trouble: Callable[[], str | None],
        carry_out: CarryOut | None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Wire it up.

        Args:
            state: Gives the readings, and each route's estimates.
            folder: The state directory, which has the decision log.
            device: The device's id.
            trouble: Gives the reason why not all is well, or None.
            carry_out: Carries out a command; None: the page may give none.
            clock: Monotonic seconds.
            wall: Unix seconds.
        """
        self._state = state
        self._folder = folder
        self._device = device
        self._trouble = trouble
        self._carry_out = carry_out
        self._clock = clock
        self._wall = wall
        self._feed = Feed(self._say)
        self._rows = Rows(wanted=lambda: self._feed.listeners > 0, wall=wall)
        self._told_at = float("-inf")
        self._reading = asyncio.Lock()

    def observe(self, events: Events) -> None:
        """Show what happens."""
        self._rows.observe(events)

    def routes(self) -> list[web.RouteDef]:
        """Give what it serves."""
        return [
            *Page().routes(),
            web.get("/api/state", self._get_state),
            web.get("/api/events", self._feed.stream),
            web.get("/api/decisions", self._get_decisions),
            web.get("/api/jobs/{id}", self._get_job),
            web.get("/api/policies", self._get_policies),
            web.post("/api/control/{command}", self._control),
        ]

    async def close(self) -> None:
        """Send the browsers away: the daemon stops."""
        await self._feed.close()

    def _say(self, first: bool) -> Iterator[tuple[str, Any]]:  # noqa: FBT001 - Feed's form
        now = self._clock()
        if first:
            if self._feed.listeners == 1:
                self._rows.clear()  # of what an earlier one saw
            yield "state", self._seen()
            return
        # Estimates of many models take time that jobs would have to wait.
        if now - self._told_at >= STATE_EVERY_S:
            self._told_at = now
            yield "state", self._seen()
        report = self._rows.report()
        if report is not None:
            yield "jobs", report

    def _seen(self) -> dict[str, Any]:
        return {
            **self._state(),
            "id": self._device,
            "version": __version__,
            "time": self._wall(),
            "trouble": self._trouble(),
            "controls": self._carry_out is not None,
        }

    async def _get_state(self, _request: web.Request) -> web.Response:
        return json_response(self._seen(), headers=NO_STORE)

    async def _get_decisions(self, _request: web.Request) -> web.Response:
        # Another that asks meanwhile waits: it is work that jobs share the processor with.
        async with self._reading:
            try:
                found = await asyncio.to_thread(_latest, self._folder)
            except StoreError as error:
                return error_response(503, str(error), headers=NO_STORE)
        return json_response(found, headers=NO_STORE)

    async def _get_job(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        if ID_PATTERN.fullmatch(job_id) is None:
            return error_response(400, "this can't be a job's id", headers=NO_STORE)
        async with self._reading:
            try:
                found = await asyncio.to_thread(_explained, self._folder, job_id)
            except StoreError as error:
                return error_response(503, str(error), headers=NO_STORE)
        if isinstance(found, str):
            return error_response(404, found, headers=NO_STORE)
        return json_response({"id": job_id, "decisions": found}, headers=NO_STORE)

    async def _get_policies(self, _request: web.Request) -> web.Response:
        found = await asyncio.to_thread(plugins.available)
        names = [{"name": info.name, "summary": info.summary} for info in found]
        return json_response({"policies": names}, headers=NO_STORE)

    async def _control(self, request: web.Request) -> web.Response:
        if self._carry_out is None:
            return error_response(403, "commands need a token: set http.token_file")
        command = request.match_info["command"]
        if command not in COMMANDS:
            return error_response(404, f"no such command, known: {', '.join(COMMANDS)}")
        body = bytearray()
        try:
            async with asyncio.timeout(COMMAND_WITHIN_S):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > MOST_COMMAND_BYTES:
                        return error_response(413, f"at most {MOST_COMMAND_BYTES} bytes")
        except TimeoutError:
            return error_response(408, "the body did not come in time")
        reply = await self._carry_out(command, bytes(body))
        return json_response(reply, 200 if reply["ok"] else 400, headers=NO_STORE)


def _latest(folder: Path) -> dict[str, Any]:
    """Give the last decisions on record, the newest last; in a thread."""
    with open_decisions(folder) as decisions:
        found = decisions.latest(LATEST)
    rows, attempts = [], []
    for kept in reversed(found):
        try:
            entry = decode(kept.body)
        except EntryError:
            continue  # `edgewise explain` tells of it
        rows.append(Row.of(entry))
        attempts += [
            {
                "id": entry.decision.id,
                "time": entry.decision.time,
                "route": attempt.route,
                "latency_s": attempt.latency_s,
                "failed": attempt.error is not None,
                "cost": attempt.cost or 0.0,
                "energy_j": attempt.energy_j or 0.0,
            }
            for attempt in entry.attempts
            if attempt.route is not None
        ]
    return {"rows": rows, "attempts": attempts}


def _explained(folder: Path, job_id: str) -> list[dict[str, Any]] | str:
    """Explain a job as `edgewise explain` does, or say why that can't be done; in a thread."""
    with open_decisions(folder) as decisions:
        rows = decisions.of(job_id)
        if not rows:
            return explain.absent(job_id, decisions.state_of(job_id))
    told = []
    for row in rows:
        try:
            told.append(_told(decode(row.body)))
        except EntryError as error:
            told.append({"time": row.decided, "sentences": [f"This entry can't be read: {error}"]})
    return told


def _told(entry: Entry) -> dict[str, Any]:
    decision = entry.decision
    return {
        "time": decision.time,
        "model": decision.job.model,
        "sentences": explain.tell(entry),
        "candidates": {"titles": explain.CANDIDATES, "rows": explain.candidates(decision)},
        "terms": {"titles": explain.TERMS, "rows": explain.terms(decision)},
    }
