"""Tracing as the daemon has it: the traces that jobs begin, the spans, and their way out."""

from __future__ import annotations

from agent.config import Tracing as Settings
from agent.events import Events
from agent.tracing.context import Begin
from agent.tracing.export import Export
from agent.tracing.spans import Spans


class Tracing:
    """Traces jobs."""

    def __init__(self, settings: Settings, device: str, events: Events) -> None:
        """Set it up.

        Args:
            settings: The configuration, with an endpoint.
            device: The device's id.
            events: What happens to jobs.

        Raises:
            ConfigError: A file that the configuration names can't be used.
        """
        self._settings = settings
        self._export = Export(settings)
        self._export.credentials.read()
        Spans(device, self._export.take).observe(events)

    def begin(self, intake: str) -> Begin:
        """Give what begins the traces of jobs that come in this way."""
        return Begin(intake, self._settings.sample_ratio)

    def start(self) -> None:
        """Begin to send spans."""
        self._export.start()

    async def stop(self) -> None:
        """Send what is left, within a second or two."""
        await self._export.stop()
