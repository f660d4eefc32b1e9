"""Open Inference Protocol v2: KServe, Triton, MLServer, Ray Serve and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.job import Job, Tensor
from agent.routes.protocols.interface import Request, Response, Result
from agent.wire import oip

MAX_DIGITS = 12  # of a header's length, which no response comes near


class _ErrorResponse(msgspec.Struct):
    error: str


class OpenInference:
    """Speaks to one endpoint."""

    probe_path = "/v2/health/live"

    def __init__(self, names: Mapping[str, str], *, binary: bool) -> None:
        """Set it up.

        Args:
            names: The models that the endpoint serves: the name here, and there.
            binary: Whether it takes the binary tensor extension.
        """
        self._names = names
        self._binary = binary

    def encode(self, job: Job, inputs: tuple[Tensor, ...]) -> Request:
        """Spell a job; see `Protocol`."""
        head: dict[str, Any] = {"id": job.id}
        if self._binary:
            head["parameters"] = {"binary_data_output": True}
        if job.outputs:
            head["outputs"] = [{"name": name} for name in job.outputs]
        body, header_length = oip.encode(head, "inputs", inputs, binary=self._binary)
        headers = {"Content-Type": "application/json"}
        if header_length is not None:
            headers = {
                "Content-Type": "application/octet-stream",
                oip.HEADER_LENGTH_HTTP: str(header_length),
            }
        return Request(f"/v2/models/{self._names[job.model]}/infer", body, headers)

    def decode(self, job: Job, response: Response) -> Result:  # noqa: ARG002 - part of `Protocol`
        """Read a response; see `Protocol`."""
        length = response.headers.get(oip.HEADER_LENGTH_HTTP, "")
        header_length = int(length) if length.isdecimal() and len(length) < MAX_DIGITS else None
        return Result(oip.decode_response(response.body, header_length))

    def explain(self, response: Response) -> str:
        """Give an error response's own sentence; see `Protocol`."""
        try:
            return msgspec.json.decode(response.body, type=_ErrorResponse).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""
