"""What a protocol is to the cloud route: it spells requests and reads responses, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol as Interface

from agent.job import Job, Tensor


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    path: str  # behind the endpoint's URL, with its leading slash
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Response:
    """A response, whole."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What an endpoint answered a job with."""

    outputs: tuple[Tensor, ...]


class Protocol(Interface):
    """How jobs are spelled to an endpoint; one object for each endpoint, which may learn of it."""

    probe_path: str  # asks for nothing that takes the server time

    def encode(self, job: Job, inputs: tuple[Tensor, ...]) -> Request:
        """Spell a job.

        Args:
            job: The job, of a model that the endpoint serves.
            inputs: Its tensors, those that an image was turned into included.

        Raises:
            JobError: (bad_request) the protocol can't carry it.
        """

    def decode(self, job: Job, response: Response) -> Result:
        """Read a response of status 200.

        Raises:
            JobError: It is none of this protocol.
        """

    def explain(self, response: Response) -> str:
        """Give an error response's own sentence, or nothing: it may hold anything, inputs too."""
