"""The worker process: loads models and runs them, one request at a time.

It is a process of its own because a hostile model or image can kill or hang whatever decodes it,
and because a busy Python thread beside an interpreter slows both (they contend for the GIL).
Started as ``python -m agent.routes.worker LIMIT_MB SOCKET MEMORY…``; the socket and each slot's
memory are inherited descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from agent.config import ImageInput
from agent.job import BYTES, ErrorCode, JobError
from agent.routes.interpreter import Model
from agent.routes.language import SUFFIX, LanguageModel
from agent.routes.messages import (
    MAX_MESSAGE_BYTES,
    Arena,
    Done,
    Failed,
    Load,
    Loaded,
    ModelSpec,
    Placed,
    Prepare,
    Reply,
    Request,
    Run,
    RunImage,
)
from agent.wire.tensors import DATATYPES, NUMPY_DTYPES, pack_elements, split_elements

PR_SET_PDEATHSIG = 1
MOST_SAID = 1000  # characters of an error that is too long

Array = npt.NDArray[Any]


class Worker:
    """Answers requests from the models it has loaded."""

    def __init__(self, arenas: list[Arena]) -> None:
        self._arenas = arenas
        self._models: dict[str, tuple[ModelSpec, Model | LanguageModel]] = {}

    def answer(self, request: Request) -> Reply:
        """Carry out one request. A job's failure is an answer, not an exception."""
        busy = time.process_time()
        try:
            reply = self._carry_out(request)
            if isinstance(reply, Done):
                reply.cpu_s = time.process_time() - busy
            return reply  # noqa: TRY300 - what follows are failures
        except JobError as error:
            return Failed(error.code.value, error.message)
        except MemoryError:
            return Failed(ErrorCode.MODEL_ERROR.value, "the worker ran out of memory")
        except Exception as error:  # noqa: BLE001 - one request's failure is not the worker's
            return Failed(ErrorCode.MODEL_ERROR.value, f"{type(error).__name__}: {error}")

    def _carry_out(self, request: Request) -> Reply:
        match request:
            case Load(spec):
                return self._load(spec)
            case Run(slot, name, placed):
                arena = self._arenas[slot]
                return self._run(arena, name, {p.name: _take(arena, p) for p in placed})
            case RunImage(slot, name, size):
                arena = self._arenas[slot]
                spec, model = self._model(name)
                assert spec.image is not None
                return self._run(arena, name, _image(model, spec.image, arena.read(0, size)))
            case Prepare(slot, name, size, settings):
                return self._prepare(self._arenas[slot], name, settings, size)

    def _model(self, name: str) -> tuple[ModelSpec, Model | LanguageModel]:
        if name not in self._models:
            raise JobError(ErrorCode.MODEL_ERROR, f"model '{name}' could not be loaded again")
        return self._models[name]

    def _load(self, spec: ModelSpec) -> Loaded:
        if spec.path.endswith(SUFFIX):
            language = LanguageModel(spec)
            self._models[spec.name] = (spec, language)
            # A text takes long, and how long depends on the text: no run tells of others.
            return Loaded(language.inputs, language.outputs, None)
        model = Model(spec)
        zeros = {
            port.name: np.zeros([max(n, 1) for n in port.shape], NUMPY_DTYPES[port.datatype])
            for port in model.inputs
        }
        model.run(zeros)
        began = time.perf_counter()
        model.run(zeros)
        run_s = time.perf_counter() - began
        if spec.image is not None:
            importlib.import_module("agent.routes.images")  # now, rather than in the first job
        self._models[spec.name] = (spec, model)
        return Loaded(model.inputs, model.outputs, run_s)

    def _run(self, arena: Arena, name: str, inputs: Mapping[str, Array]) -> Done:
        _, model = self._model(name)
        began = time.perf_counter()
        outputs = model.run(inputs)
        run_s = time.perf_counter() - began
        return Done(_place(arena, outputs), run_s)

    def _prepare(self, arena: Arena, name: str, settings: ImageInput, size: int) -> Done:
        began = time.perf_counter()
        encoded = arena.read(0, size)
        if name in self._models:
            prepared = _image(self._models[name][1], settings, encoded)
        else:
            assert settings.size is not None
            width, height = settings.size
            channels = 1 if settings.color == "grey" else 3
            prepared = {"image": _decode(encoded, settings, height, width, channels)}
        return Done(_place(arena, prepared), time.perf_counter() - began)


def _image(model: Model | LanguageModel, settings: ImageInput, encoded: bytes) -> dict[str, Array]:
    port = model.inputs[0]
    if len(model.inputs) != 1 or len(port.shape) != 4:  # noqa: PLR2004 - batch, y, x, channel
        raise JobError(
            ErrorCode.MODEL_ERROR,
            "images need a model with one input of shape [1, height, width, channels]",
        )
    _, height, width, channels = port.shape
    if settings.size is not None:
        width, height = settings.size
    if height < 1 or width < 1:
        raise JobError(
            ErrorCode.MODEL_ERROR, "the model takes images of any size: set preprocess.size"
        )
    prepared = _decode(encoded, settings, height, width, channels)
    if port.datatype != "FP32" and not port.quantised:
        prepared = prepared.astype(NUMPY_DTYPES[port.datatype])
    return {port.name: prepared}


def _decode(encoded: bytes, settings: ImageInput, height: int, width: int, channels: int) -> Array:
    # Workers whose models take tensors only are spared the memory of the decoders.
    from agent.routes import images  # noqa: PLC0415

    return images.prepare(encoded, settings, height, width, channels)


def _take(arena: Arena, placed: Placed) -> Array:
    data = arena.read(placed.offset, placed.size)
    if placed.datatype == BYTES:
        texts = np.empty(placed.shape, object)
        texts.flat[:] = split_elements(placed.name, data)
        return texts
    return np.frombuffer(data, NUMPY_DTYPES[placed.datatype]).reshape(placed.shape)


def _place(arena: Arena, outputs: Mapping[str, Array]) -> list[Placed]:
    pieces = [_bytes(array) for array in outputs.values()]
    offsets = arena.write(pieces)
    return [
        Placed(name, _datatype(array), array.shape, offset, len(piece))
        for (name, array), offset, piece in zip(outputs.items(), offsets, pieces, strict=True)
    ]


def _datatype(array: Array) -> str:
    return BYTES if array.dtype == object else DATATYPES[array.dtype]


def _bytes(array: Array) -> bytes:
    return pack_elements(list(array.flat)) if array.dtype == object else array.tobytes()


def encode(reply: Reply) -> bytes:
    """Encode a reply; a model may have more to say than a message holds."""
    message = msgspec.msgpack.encode(reply)
    if len(message) <= MAX_MESSAGE_BYTES:
        return message
    text = reply.message if isinstance(reply, Failed) else ""
    code = reply.code if isinstance(reply, Failed) else ErrorCode.MODEL_ERROR.value
    said = text[:MOST_SAID] or "the model has too many tensors, or too long names"
    return msgspec.msgpack.encode(Failed(code, said))


def main() -> None:
    """Serve requests until the daemon closes the socket."""
    memory_mb, socket_descriptor, *memory_descriptors = (int(word) for word in sys.argv[1:])
    # Told to end, the daemon drains first; it ends its workers itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A model that hangs would not notice that the daemon is gone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if memory_mb:
        limit = memory_mb * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection = socket.socket(fileno=socket_descriptor)
    worker = Worker([Arena(descriptor) for descriptor in memory_descriptors])
    decoder = msgspec.msgpack.Decoder(Request)
    # The daemon may die at any moment.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while received := connection.recv(MAX_MESSAGE_BYTES):
            connection.send(encode(worker.answer(decoder.decode(received))))


if __name__ == "__main__":
    main()
