"""A stand-in cloud: a real Open Inference Protocol v2 server that really runs a model.

Started as ``python -m agent.demo.cloud PORT NAME MODEL_FILE [HOST]``. It counts what it
sees, so that the demo and the tests can tell whether a private job has ever reached it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path

from aiohttp import web

from agent.job import JobError
from agent.routes.interpreter import Model
from agent.routes.messages import ModelSpec
from agent.wire import oip, tensors

MAX_BODY_BYTES = 32 * 1024 * 1024
MOST_IDS = 100_000  # that are remembered


class StandInCloud:
    """Serves one model."""

    def __init__(self, name: str, path: Path) -> None:
        """Load the model.

        Raises:
            JobError: The file is no model.
        """
        self._name = name
        self._model = Model(
            ModelSpec(name, str(path), sha256=None, threads=1, stateful=False, image=None)
        )
        self._seen: deque[str] = deque(maxlen=MOST_IDS)

    def application(self) -> web.Application:
        """Make the server's routes."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.add_routes(
            [
                web.get("/v2", self._about),
                web.get("/v2/health/live", self._health),
                web.get("/v2/health/ready", self._health),
                web.get(f"/v2/models/{self._name}", self._metadata),
                web.get(f"/v2/models/{self._name}/ready", self._health),
                web.post(f"/v2/models/{self._name}/infer", self._infer),
                web.get("/seen", self._ids),
            ]
        )
        return application

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"live": True, "ready": True})

    async def _about(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"name": "edgewise-stand-in", "version": "2", "extensions": ["binary_tensor_data"]}
        )

    async def _metadata(self, _request: web.Request) -> web.Response:
        ports = {
            "inputs": [
                {"name": p.name, "datatype": p.datatype, "shape": p.shape}
                for p in self._model.inputs
            ],
            "outputs": [
                {"name": p.name, "datatype": p.datatype, "shape": p.shape}
                for p in self._model.outputs
            ],
        }
        return web.json_response({"name": self._name, "platform": "tflite", **ports})

    async def _ids(self, _request: web.Request) -> web.Response:
        return web.json_response(list(self._seen))

    async def _infer(self, request: web.Request) -> web.Response:
        body = await request.read()
        length = request.headers.get(oip.HEADER_LENGTH_HTTP, "")
        try:
            header, raw = oip.split(body, int(length) if length.isdecimal() else None)
            asked = oip.decode_request(header)
            job_id = oip.decode_id(asked.id)
            parameters = oip.decode_parameters(asked.parameters)
            self._seen.append(str(job_id))
            inputs = {t.name: tensors.to_array(t) for t in oip.take_tensors(asked.inputs, raw)}
            missing = {port.name for port in self._model.inputs} - inputs.keys()
            if missing:
                return _refusal(f"no inputs {sorted(missing)}")
            outputs = self._model.run(inputs)
        except JobError as error:
            return _refusal(error.message)
        wants_binary = parameters.get("binary_data_output") is True
        answer, header_length = oip.encode(
            {"id": job_id, "model_name": self._name},
            "outputs",
            [tensors.from_array(name, array) for name, array in outputs.items()],
            binary=wants_binary,
        )
        headers = {"Content-Type": "application/json"}
        if header_length is not None:
            headers = {
                "Content-Type": "application/octet-stream",
                oip.HEADER_LENGTH_HTTP: str(header_length),
            }
        return web.Response(body=answer, headers=headers)


def _refusal(reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=400)


async def _serve(port: int, name: str, path: Path, host: str = "127.0.0.1") -> None:
    runner = web.AppRunner(StandInCloud(name, path).application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    # Says that it listens; whoever started it waits for this line.
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:5]))
