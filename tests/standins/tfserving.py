"""A stand-in for TensorFlow Serving: its REST API v1 as documented, before a real TFLite model.

TensorFlow Serving is a C++ server in a Docker image and an apt repository of its own; PyPI has its
gRPC messages only (`tensorflow-serving-api`). Format and errors are those of
https://www.tensorflow.org/tfx/serving/api_rest. It shares no code with the protocol it tests but
the interpreter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from agent.routes.interpreter import Model
from agent.routes.messages import ModelSpec

DTYPES = {
    "FP32": ("DT_FLOAT", np.float32),
    "INT8": ("DT_INT8", np.int8),
    "INT64": ("DT_INT64", np.int64),
}


class TensorFlowServing:
    """Serves one model."""

    def __init__(self, name: str, path: Path) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._name = name
        self._model = Model(ModelSpec(name, str(path), None, 1, False, None))

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**26)
        path = f"/v1/models/{self._name}"
        application.router.add_get(path, self._status)
        application.router.add_get(f"{path}/metadata", self._metadata)
        application.router.add_post("/v1/models/{model}:predict", self._predict)
        return application

    async def _status(self, _request: web.Request) -> web.Response:
        status = {"error_code": "OK", "error_message": ""}
        version = {"version": "1", "state": "AVAILABLE", "status": status}
        return web.json_response({"model_version_status": [version]})

    async def _metadata(self, _request: web.Request) -> web.Response:
        signature = {
            "inputs": {port.name: _info(port) for port in self._model.inputs},
            "outputs": {port.name: _info(port) for port in self._model.outputs},
            "method_name": "tensorflow/serving/predict",
        }
        init = {"inputs": {}, "outputs": {"__saved_model_init_op": {"dtype": "DT_INVALID"}}}
        signatures = {"serving_default": signature, "__saved_model_init_op": init}
        return web.json_response(
            {
                "model_spec": {"name": self._name, "signature_name": "", "version": "1"},
                "metadata": {"signature_def": {"signature_def": signatures}},
            }
        )

    async def _predict(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name != self._name:
            return _error(404, f"Servable not found for request: Latest({name})")
        try:
            body = json.loads(await request.read())
        except ValueError:
            return _error(400, "JSON Parse error: Invalid value.")
        self.bodies.append(body)
        if ("instances" in body) == ("inputs" in body):
            return _error(400, "Missing 'inputs' or 'instances' key")
        try:
            outputs = self._model.run(self._inputs(body))
        except (KeyError, TypeError, ValueError) as error:
            return _error(400, f"Failed to process element: {error}")
        return web.json_response(_answer(outputs, in_columns="inputs" in body))

    def _inputs(self, body: dict[str, Any]) -> dict[str, np.ndarray]:
        ports = {port.name: port for port in self._model.inputs}
        values: Any
        if "inputs" in body:
            values = body["inputs"]
            if not isinstance(values, dict):
                values = {next(iter(ports)): values}
        elif isinstance(body["instances"][0], dict):
            values = {name: [row[name] for row in body["instances"]] for name in ports}
        else:
            values = {next(iter(ports)): body["instances"]}
        arrays = {}
        for name, port in ports.items():
            dtype = np.float32 if port.quantised else DTYPES[port.datatype][1]
            arrays[name] = np.array(values[name], dtype)
        return arrays


def _info(port: Any) -> dict[str, Any]:
    # Quantised ports take and give real numbers here.
    kind = "DT_FLOAT" if port.quantised else DTYPES[port.datatype][0]
    dims = [{"size": str(n), "name": ""} for n in port.shape]
    return {
        "dtype": kind,
        "tensor_shape": {"dim": dims, "unknown_rank": False},
        "name": f"serving_default_{port.name}:0",
    }


def _answer(outputs: dict[str, np.ndarray], *, in_columns: bool) -> dict[str, Any]:
    nested = {name: array.tolist() for name, array in outputs.items()}
    if in_columns:
        return {"outputs": _bare(nested)}
    if len(nested) == 1:
        return {"predictions": _bare(nested)}
    rows = zip(*nested.values(), strict=True)
    return {"predictions": [dict(zip(nested, row, strict=True)) for row in rows]}


def _bare(nested: dict[str, Any]) -> Any:
    return next(iter(nested.values())) if len(nested) == 1 else nested


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
