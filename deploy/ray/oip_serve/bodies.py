"""Bodies of Open Inference Protocol v2 over HTTP, in JSON and in the binary tensor extension."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent.job import ErrorCode, JobError, Tensor
from agent.wire import oip, tensors
from oip_serve.batches import Arrays


class TooLargeError(JobError):
    """The body is longer than is allowed."""

    def __init__(self, allowed: int) -> None:
        super().__init__(ErrorCode.TOO_LARGE, f"the body is longer than {allowed} bytes")


async def read(request: Request, max_bytes: int) -> bytes:
    """Take in a request's body.

    Raises:
        TooLargeError: It is longer than `max_bytes`.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise TooLargeError(max_bytes)
    return bytes(body)


def decode(body: bytes, headers: Mapping[str, str]) -> tuple[oip.InferRequest, tuple[Tensor, ...]]:
    """Decode an infer request, and its input tensors.

    Raises:
        JobError: (bad_request) it is none.
    """
    length = headers.get(oip.HEADER_LENGTH_HTTP, "")
    header, raw = oip.split(body, int(length) if length.isdecimal() else None)
    asked = oip.decode_request(header)
    oip.decode_id(asked.id)
    oip.decode_parameters(asked.parameters)
    return asked, oip.take_tensors(asked.inputs, raw)


def answer(model: str, asked: oip.InferRequest, outputs: Arrays) -> Response:
    """Encode the outputs that were asked for, each in the form that was asked for."""
    wanted = {output.name: output for output in asked.outputs or ()}
    usual = oip.decode_parameters(asked.parameters).get("binary_data_output") is True
    binary = tuple(
        name
        for name in outputs
        if (wanted[name].is_binary(default=usual) if name in wanted else usual)
    )
    results = [
        tensors.from_array(name, array)
        for name, array in outputs.items()
        if not wanted or name in wanted
    ]
    head: dict[str, Any] = {"model_name": model}
    job_id = oip.decode_id(asked.id)
    if job_id is not None:
        head["id"] = job_id
    body, header_length = oip.encode(head, "outputs", results, binary=binary)
    if header_length is None:
        return Response(body, media_type="application/json")
    return Response(
        body,
        media_type="application/octet-stream",
        headers={oip.HEADER_LENGTH_HTTP: str(header_length)},
    )


def refusal(status: HTTPStatus, reason: str) -> Response:
    """Say in the protocol's form why there is no result."""
    return JSONResponse({"error": reason}, status)
