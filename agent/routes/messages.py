"""What the daemon and its worker processes say to each other, over a socket.

Tensors and images lie in shared memory beside it; a message holds their offsets.
"""

from __future__ import annotations

import mmap
import os

import msgspec

from agent.config import ImageInput

MAX_MESSAGE_BYTES = 128 * 1024
# Requests that may be under way at a worker, each with shared memory of its own.
SLOTS = 4


class ModelSpec(msgspec.Struct, frozen=True):
    """A model to load."""

    name: str
    path: str
    sha256: str | None
    threads: int
    stateful: bool
    image: ImageInput | None
    max_output_tokens: int = 0  # of a language model


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """An input or output of a loaded model. A dimension of -1 is open."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    quantised: bool


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in shared memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes


class Load(msgspec.Struct, tag=True):
    """Load a model, and run it once on zeros."""

    spec: ModelSpec


class Run(msgspec.Struct, tag=True):
    """Run a model on tensors."""

    slot: int
    model: str
    inputs: list[Placed]


class RunImage(msgspec.Struct, tag=True):
    """Run a model on an encoded image at the start of the slot's memory."""

    slot: int
    model: str
    size: int


class Prepare(msgspec.Struct, tag=True):
    """Turn an encoded image into the tensor its model takes, in real numbers."""

    slot: int
    model: str
    size: int
    image: ImageInput


class Loaded(msgspec.Struct, tag=True):
    """The model runs. `run_s` is what its run on zeros took; None: it was not run."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    run_s: float | None


class Done(msgspec.Struct, tag=True):
    """The result lies in the slot's memory."""

    outputs: list[Placed]
    run_s: float  # of the model alone
    cpu_s: float = 0.0  # processor time for the whole request


class Failed(msgspec.Struct, tag=True):
    """It did not work; the worker is fine."""

    code: str
    message: str


Request = Load | Run | RunImage | Prepare
Reply = Loaded | Done | Failed


class Arena:
    """Memory that the daemon shares with one worker; it grows to what is put into it."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("edgewise")
            os.ftruncate(descriptor, mmap.PAGESIZE)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)

    def write(self, pieces: list[bytes]) -> list[int]:
        """Write pieces one behind the other, each aligned to 64 bytes; give their offsets."""
        offsets = []
        end = 0
        for piece in pieces:
            offsets.append(end)
            end += -(-len(piece) // 64) * 64
        if end > len(self._map):
            self._map.resize(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
        for offset, piece in zip(offsets, pieces, strict=True):
            self._map[offset : offset + len(piece)] = piece
        return offsets

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out.

        Raises:
            ValueError: They lie outside the memory.
        """
        if offset + size > len(self._map):
            # The other side may have grown it.
            self._map.resize(os.fstat(self.descriptor).st_size)
        if not 0 <= offset <= offset + size <= len(self._map):
            raise ValueError(f"{size} bytes at {offset} lie outside the shared memory")
        return self._map[offset : offset + size]

    def close(self) -> None:
        """Give the memory up."""
        self._map.close()
        os.close(self.descriptor)
