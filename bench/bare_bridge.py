"""What a cloud job costs in any case: MQTT in, the request, the disk, MQTT out, and nothing else.

It checks and decides nothing, and its file is of no use. But an answer is on disk before it goes
out, as Edgewise promises, so that what Edgewise adds beyond this is its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
from bare_loop import HEADER_LENGTH_PROPERTY

HEADER_LENGTH_HTTP = "Inference-Header-Content-Length"
FILE_BYTES = 8 * 1024 * 1024


class Disk:
    """A file of some size, written from its beginning: no commit changes its size."""

    def __init__(self, path: Path) -> None:
        """Make it."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(self._file, bytes(FILE_BYTES))
        os.fsync(self._file)
        self._at = 0

    def keep(self, answer: bytes) -> None:
        """Have an answer on disk; blocks."""
        self._at = 0 if self._at + len(answer) > FILE_BYTES else self._at
        self._at += os.pwrite(self._file, answer, self._at)
        os.fdatasync(self._file)


async def main(port: int, device: str, path: Path, urls: dict[str, str]) -> None:
    """Serve."""
    disk = Disk(path)
    async with (
        aiohttp.ClientSession() as http,
        aiomqtt.Client(
            "127.0.0.1",
            port,
            protocol=aiomqtt.ProtocolVersion.V5,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        ) as client,
    ):
        await client.subscribe(f"edgewise/v1/{device}/jobs/+", qos=1)
        async for message in client.messages:
            payload: Any = message.payload
            told = dict(getattr(message.properties, "UserProperty", []))
            headers = {"Content-Type": "application/json"}
            length = len(payload)
            if HEADER_LENGTH_PROPERTY in told:
                length = int(told[HEADER_LENGTH_PROPERTY])
                headers = {
                    "Content-Type": "application/octet-stream",
                    HEADER_LENGTH_HTTP: str(length),
                }
            job_id = json.loads(payload[:length])["id"]
            url = urls[message.topic.value.rpartition("/")[2]]
            async with http.post(url, data=payload, headers=headers) as response:
                answer = await response.read()
            await asyncio.to_thread(disk.keep, answer)
            await client.publish(f"edgewise/v1/{device}/results/{job_id}", answer, qos=1)


if __name__ == "__main__":
    broker, name, file, *served = sys.argv[1:]
    asyncio.run(main(int(broker), name, Path(file), dict(pair.split("=", 1) for pair in served)))
