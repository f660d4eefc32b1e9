"""What a protocol is to the cloud route: it spells requests and reads responses, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol as Interface

from agent.job import Job, Tensor

# What an endpoint says of itself, of a model or of an error is smaller; a larger body says nothing.
MOST_TOLD_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    path: str  # behind the endpoint's URL, with its leading slash
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    after: str = ""  # what the protocol has tried before, in its own words
    # Of a response that comes piece by piece: takes the next piece, gives the text that it adds.
    listen: Callable[[bytes], str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """A response, whole."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes = field(repr=False)

    @property
    def told(self) -> bytes:
        """The body, where it may be metadata or an error; nothing where it is larger."""
        return self.body if len(self.body) <= MOST_TOLD_BYTES else b""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a text model was given, and gave."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Result:
    """What an endpoint answered a job with."""

    outputs: tuple[Tensor, ...]
    tokens: Tokens = Tokens(0, 0)  # where the endpoint counts any


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a model at an endpoint. A dimension of -1 is open."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None  # None: of any rank


class Protocol(Interface):
    """How jobs are spelled to an endpoint; one object for each endpoint, which learns of it."""

    @property
    def probe_path(self) -> str:
        """What a probe asks for: nothing that takes the server time."""

    def inquiries(self) -> tuple[Request, ...]:
        """Ask the server about itself and its models: what is not known yet, and worth knowing."""

    def learn(self, inquiry: Request, response: Response) -> None:
        """Take in what the server said; any response may come."""

    @property
    def codings(self) -> Collection[str]:
        """The codings of request bodies that the server is known to take, gzip for one."""

    def knows_enough(self, job: Job) -> bool:
        """Tell whether the job can be spelled without what `inquiries` would bring."""

    def image_port(self, model: str) -> Port | None:
        """Give the only input of a model, where that is known."""

    def takes_image(self, model: str) -> bool:
        """Tell whether an encoded image goes to this model as it is."""

    def encode(self, job: Job, inputs: tuple[Tensor, ...]) -> Request:
        """Spell a job.

        Args:
            job: The job, of a model that the endpoint serves.
            inputs: Its tensors, or those that its image was turned into; empty where the image goes
                as it is.

        Raises:
            JobError: The protocol can't carry it.
        """

    def rephrase(
        self, job: Job, inputs: tuple[Tensor, ...], request: Request, response: Response
    ) -> Request | None:
        """Spell a job in another form, where the response shows that the server lacks this one."""

    def decode(self, job: Job, request: Request, response: Response) -> Result:
        """Read a response of status 200.

        Raises:
            JobError: It is none of this protocol.
        """

    def explain(self, response: Response) -> str:
        """Give an error response's own sentence, or nothing: it may hold anything, inputs too."""
