"""The commands of `control/{command}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from agent.config import ConfigError
from agent.lifecycle import Lifecycle

KNOWN = "pause, resume, reload, policy"


class Control:
    """Carries out commands; the reply says whether it did."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        reload: Callable[[], Awaitable[list[str]]],
        switch: Callable[[bytes], Awaitable[str]],
    ) -> None:
        """Wire it up.

        Args:
            lifecycle: What `pause` and `resume` are for.
            reload: Goes by the configuration as it is now; gives what takes a restart to change.
            switch: Goes by the policy that a payload asks for; gives its name.
        """
        self._lifecycle = lifecycle
        self._reload = reload
        self._switch = switch

    async def carry_out(self, command: str, payload: bytes) -> dict[str, Any]:
        """Carry out a command; give the reply, as plain JSON types."""
        try:
            match command:
                case "pause":
                    self._lifecycle.pause()
                case "resume":
                    self._lifecycle.resume()
                case "reload":
                    if later := await self._reload():
                        return {"ok": True, "restart_needed_for": later}
                case "policy":
                    return {"ok": True, "policy": await self._switch(payload)}
                case _:
                    reason = f"unknown command '{command[:64]}', known: {KNOWN}"
                    return {"ok": False, "error": reason}
        except ConfigError as error:
            return {"ok": False, "error": str(error)}
        return {"ok": True}
