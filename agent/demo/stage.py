"""The demo's stage: broker, stand-in cloud, a battery of files, and a real daemon process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from agent.demo.broker import Listening, embedded_broker, free_port

DATA = Path(__file__).parent / "data"
DEVICE = "demo"
MODEL = "digits"
CLOUD_MODEL = "digits-large"
START_TIMEOUT_S = 30.0

CONFIG = """\
[device]
id = "{device}"
state_dir = "{folder}/state"
state_interval_s = 0.5
sysfs_root = "{folder}/sys"

[mqtt]
url = "mqtt://127.0.0.1:{mqtt_port}"

[http]
listen = "127.0.0.1:{http_port}"

[models.{model}]
path = "{data}/digits_small.tflite"
preprocess = "image"
labels = "{data}/digits.labels.txt"
cloud = [{{ endpoint = "lab", name = "{cloud_model}" }}]

[endpoints.lab]
url = "http://127.0.0.1:{cloud_port}"
probe_interval_s = 0.5

[policy]
name = "threshold"
[policy.options]
battery_below = 0.3
# The demo shares its processor with broker, cloud and client: that is not the act's subject.
cpu_above = 1.0
"""


class StageError(Exception):
    """A part of the stage did not come up."""


@dataclass(slots=True)
class Stage:
    """What the acts play on."""

    folder: Path
    mqtt: Listening
    http_port: int
    cloud_port: int
    config: Path
    cloud: asyncio.subprocess.Process | None = field(default=None)
    daemon: asyncio.subprocess.Process | None = field(default=None)

    def set_battery(self, percent: int, status: str) -> None:
        """Write the battery that the daemon reads."""
        battery = self.folder / "sys/class/power_supply/BAT0"
        battery.mkdir(parents=True, exist_ok=True)
        for name, value in (("type", "Battery"), ("status", status), ("capacity", percent)):
            (battery / name).write_text(f"{value}\n", encoding="ascii")

    async def start_cloud(self) -> None:
        """Start the stand-in cloud, and wait until it listens.

        Raises:
            StageError: It did not come up.
        """
        self.cloud = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent.demo.cloud", str(self.cloud_port)),
            *(CLOUD_MODEL, str(DATA / "digits_large.tflite")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self.cloud.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            if not await self.cloud.stdout.readline():
                raise StageError("the stand-in cloud did not start")

    async def stop_cloud(self) -> None:
        """Kill the stand-in cloud: its port refuses from now on."""
        if self.cloud is not None:
            await _end(self.cloud, signal.SIGKILL)

    async def seen_by_cloud(self) -> list[str]:
        """Ask the stand-in cloud for the ids of all jobs it has seen since it was started."""
        url = f"http://127.0.0.1:{self.cloud_port}/seen"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            ids: list[str] = await response.json()
            return ids

    async def start_daemon(self) -> None:
        """Start the daemon as a service manager would, and wait until it says that it is ready.

        Raises:
            StageError: It did not come up; the message holds the end of its log.
        """
        address = str(self.folder / "notify")
        log = self.folder / "daemon.log"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
            log.open("ab") as log_file,
        ):
            told.bind(address)
            told.setblocking(False)
            self.daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent", "--config", str(self.config), "run"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env={**os.environ, "NOTIFY_SOCKET": address},
            )
            ready = asyncio.create_task(_until_ready(told))
            ended = asyncio.create_task(self.daemon.wait())
            await asyncio.wait(
                (ready, ended), timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            if not ready.done():
                ready.cancel()
                raise StageError(f"the daemon did not start:\n{log.read_text()[-2000:]}")

    async def stop(self) -> None:
        """End the daemon in good order, and the cloud."""
        if self.daemon is not None:
            await _end(self.daemon, signal.SIGTERM)
        await self.stop_cloud()


@contextlib.asynccontextmanager
async def set_up() -> AsyncIterator[Stage]:
    """Set the stage for the time of the block: a full battery, cloud and daemon running.

    Raises:
        StageError: A part did not come up.
        NoBrokerError: The embedded broker is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="edgewise-demo-") as name:
        folder = Path(name)
        with embedded_broker(folder) as mqtt:
            stage = Stage(folder, mqtt, free_port(), free_port(), folder / "edgewise.toml")
            stage.config.write_text(
                CONFIG.format(
                    device=DEVICE,
                    folder=folder,
                    data=DATA,
                    model=MODEL,
                    cloud_model=CLOUD_MODEL,
                    mqtt_port=mqtt.v5,
                    http_port=stage.http_port,
                    cloud_port=stage.cloud_port,
                ),
                encoding="utf-8",
            )
            stage.set_battery(90, "Discharging")
            try:
                await stage.start_cloud()
                await stage.start_daemon()
                yield stage
            finally:
                await stage.stop()


async def _until_ready(told: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while b"READY=1" not in await loop.sock_recv(told, 4096):
        pass


async def _end(process: asyncio.subprocess.Process, how: signal.Signals) -> None:
    if process.returncode is None:
        process.send_signal(how)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
