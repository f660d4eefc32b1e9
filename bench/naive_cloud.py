"""What the failure matrix compares with: cloud first, written the plainest way.

`requests` with a timeout, then the local model. It has 32 threads, so that one slow request does
not hold up all others; it does not know when to stop asking.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import requests
from ai_edge_litert.interpreter import Interpreter

THREADS = 32
# Of a deadline of 500 ms: leaves the device time to answer.
TIMEOUT_S = 0.4


class Naive:
    """Asks the endpoint, then the model here."""

    def __init__(self, url: str, ca_file: str | None, model: Path) -> None:
        self._url = url
        self._sessions = threading.local()
        self._verify = True if ca_file is None else ca_file
        self._interpreter = Interpreter(model_path=str(model))
        self._interpreter.allocate_tensors()
        self._lock = threading.Lock()

    def answer(self, payload: bytes) -> dict[str, Any]:
        """Answer a job."""
        request = json.loads(payload)
        try:
            if not hasattr(self._sessions, "own"):
                self._sessions.own = requests.Session()
            body = {"id": request["id"], "inputs": request["inputs"]}
            response = self._sessions.own.post(
                self._url, json=body, timeout=TIMEOUT_S, verify=self._verify
            )
            response.raise_for_status()
            outputs = response.json()["outputs"]
            route, attempts = "cloud", 1
        except (requests.RequestException, ValueError, TypeError, KeyError):
            outputs, route, attempts = self._run(request), "local", 2
        return {
            "id": request["id"],
            "outputs": outputs,
            "parameters": {"route": route, "attempts": attempts},
        }

    def _run(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        [given] = request["inputs"]
        with self._lock:
            [wanted] = self._interpreter.get_input_details()
            values = np.array(given["data"], np.float32).reshape(given["shape"])
            scale, zero = wanted["quantization"]
            quantised = np.clip(np.round(values / scale + zero), -128, 127).astype(np.int8)
            self._interpreter.set_tensor(wanted["index"], quantised)
            self._interpreter.invoke()
            [output] = self._interpreter.get_output_details()
            scale, zero = output["quantization"]
            scores = self._interpreter.get_tensor(output["index"]).astype(np.float32)
            return [
                {
                    "name": output["name"],
                    "shape": output["shape"].tolist(),
                    "datatype": "FP32",
                    "data": ((scores - zero) * scale).ravel().tolist(),
                }
            ]


async def main(port: int, device: str, naive: Naive) -> None:
    """Serve."""
    loop = asyncio.get_running_loop()
    async with aiomqtt.Client(
        "127.0.0.1",
        port,
        protocol=aiomqtt.ProtocolVersion.V5,
        max_queued_outgoing_messages=0,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    ) as client:
        await client.subscribe(f"edgewise/v1/{device}/jobs/+", qos=1)
        threads = ThreadPoolExecutor(THREADS)

        async def serve(payload: bytes) -> None:
            answer = await loop.run_in_executor(threads, naive.answer, payload)
            topic = f"edgewise/v1/{device}/results/{answer['id']}"
            await client.publish(topic, json.dumps(answer), qos=1)

        async with asyncio.TaskGroup() as serving:
            async for message in client.messages:
                serving.create_task(serve(message.payload))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the broker's")
    parser.add_argument("--device", required=True, help="a topic level")
    parser.add_argument("--url", required=True, help="of the model at the endpoint")
    parser.add_argument("--ca-file", help="of the authority that vouches for the endpoint")
    parser.add_argument("--model", type=Path, required=True, help="the local model's file")
    asked = parser.parse_args()
    served = Naive(asked.url, asked.ca_file, asked.model)
    asyncio.run(main(asked.port, asked.device, served))
