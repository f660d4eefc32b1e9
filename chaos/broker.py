"""A real mosquitto that is restarted, with what it holds or without."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
from pathlib import Path

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 15.0
DATABASE = "mosquitto.db"


class StageError(Exception):
    """A part of the run that is not under test can't be had, or failed."""


class Mosquitto:
    """A mosquitto on a port of its own."""

    def __init__(self, folder: Path, port: int, *, persistent: bool) -> None:
        """Write its settings; `start` starts it.

        Raises:
            StageError: It is not installed.
        """
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
        executable = shutil.which("mosquitto", path=path)
        if executable is None:
            raise StageError("mosquitto is needed: apt install mosquitto, or brew install it")
        self.port = port
        self.log = folder / "mosquitto.log"
        self._folder = folder
        self._command = (executable, "-c", str(folder / "mosquitto.conf"))
        self._process: asyncio.subprocess.Process | None = None
        settings = [
            f"listener {port} 127.0.0.1",
            "allow_anonymous true",
            f"user {getpass.getuser()}",
            "log_dest stderr",
            "log_timestamp_format %H:%M:%S",
            "set_tcp_nodelay true",
            # By default it drops what exceeds a thousand messages, which is no fault of the daemon.
            "max_queued_messages 0",
            "max_inflight_messages 200",
            f"persistence {'true' if persistent else 'false'}",
        ]
        if persistent:
            settings += [f"persistence_location {folder}/", "autosave_interval 3"]
        (folder / "mosquitto.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")

    async def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            StageError: It does not.
        """
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # as the daemon's
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._listens():
                    if self._process.returncode is not None:
                        raise StageError(f"mosquitto ended: see {self.log}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise StageError(f"mosquitto does not listen: see {self.log}") from None

    async def end(self, way: str = "restart") -> None:
        """End it: `restart` in good order, `kill` by SIGKILL, `wipe` and forget everything."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGKILL if way == "kill" else signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None
        if way == "wipe":
            (self._folder / DATABASE).unlink(missing_ok=True)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
