"""What is learned, kept over restarts: one JSON file each, in the state directory.

It is a convenience, not a promise: a file that is lost or damaged costs some relearning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

log = structlog.get_logger(__name__)

# At least this often; each time wears a memory card.
SAVE_EVERY_S = 600.0
SOON_S = 2.0
MOST_BYTES = 16 * 1024 * 1024
MOST_DETAIL = 400

# Gives what encodes to a JSON object.
Dump = Callable[[], dict[str, Any] | msgspec.Raw]


class Learned:
    """Keeps what others learn."""

    def __init__(self, folder: Path) -> None:
        """Keep it in this folder."""
        self._folder = folder
        self._kept: dict[str, Dump] = {}
        self._unsaved: dict[str, bytes] = {}  # what the disk would not take
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()

    def keep(self, name: str, dump: Dump) -> None:
        """Keep from now on what `dump` gives, under this name."""
        self._kept[name] = dump

    async def release(self, name: str) -> None:
        """Save what is kept under a name once more, and no longer from then on."""
        await self._save(name)
        self._kept.pop(name, None)

    def read(self, name: str) -> dict[str, Any] | None:
        """Give what was kept under a name; None where there is nothing that can be read."""
        path = self._path(name)
        try:
            content = self._unsaved.get(name)
            if content is None:
                with path.open("rb") as file:
                    content = file.read(MOST_BYTES)
            return msgspec.json.decode(content, type=dict[str, Any])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("learned_unreadable", file=str(path), error=str(error))
            return None

    async def run(self) -> None:
        """Save now and then, and soon when asked to, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(SAVE_EVERY_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            else:
                # What else happens soon goes with it.
                await asyncio.sleep(SOON_S)
            self._wanted.clear()
            await self.save()

    def save_soon(self) -> None:
        """Save before long: something was learned that must not be lost."""
        self._wanted.set()

    async def save(self) -> None:
        """Save it all; what the disk won't take is said, and tried again the next time."""
        for name in (*self._kept, *(self._unsaved.keys() - self._kept.keys())):
            await self._save(name)

    async def _save(self, name: str) -> None:
        async with self._writing:
            dump = self._kept.get(name)
            try:
                content = self._unsaved.get(name) if dump is None else msgspec.json.encode(dump())
            except Exception as error:  # noqa: BLE001 - what is kept may be a stranger's
                log.warning("learned_not_saved", name=name, error=said(error))
                return
            if content is None:
                return
            try:
                await asyncio.to_thread(self._write, self._path(name), content)
            except OSError as error:
                self._unsaved[name] = content
                log.warning("learned_not_saved", name=name, error=str(error))
            else:
                self._unsaved.pop(name, None)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        """Put it in place of what was there: whole, or not at all."""
        made = path.with_suffix(".new")
        try:
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            made.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                made.unlink()
            raise


def said(error: Exception) -> str:
    """Give a stranger's error as a log line has room for it."""
    return f"{type(error).__name__}: {error}"[:MOST_DETAIL]
