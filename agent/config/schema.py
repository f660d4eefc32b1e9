"""The reference of the configuration: a key that is not in these structs is an error.

`make docs` writes docs/reference/config.md from these types and the comments at their fields.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

import msgspec

NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")

GIB = 2**30
MILLION = 1_000_000
CLOCK = "^([01][0-9]|2[0-3]):[0-5][0-9]$"

# TOML knows inf, timers and prices do not.
LARGEST = 1e12
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ConfigError(Exception):
    """A configuration that can't be used: where (file or variable), which key, and why."""

    def __init__(self, where: str, key: str, reason: str) -> None:
        super().__init__(f"{where}: {key}: {reason}" if key else f"{where}: {reason}")
        self.where = where
        self.key = key
        self.reason = reason


class _Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class Device(_Section, frozen=True):
    """The device: who it is, and where its kernel tells of it."""

    # The device's name in topics: 1 to 64 characters of A-Z a-z 0-9 . _ -, and not `pool`. Default:
    # the hostname.
    id: str = ""
    # Jobs, answers, decisions and what was learned. One daemon at a time.
    state_dir: str = "/var/lib/edgewise"
    # How often readings and estimates are published on the topic `state`.
    state_interval_s: Positive = 10.0
    sysfs_root: str = "/sys"  # where sensors look for batteries, meters, heat and links
    procfs_root: str = "/proc"  # where they look for the processor and memory


class Mqtt(_Section, frozen=True):
    """The broker. Files of credentials are read again when they change, for the next connection."""

    url: str = "mqtt://127.0.0.1:1883"  # `mqtt://host:port`, or `mqtts://`; no credentials
    protocol: Literal["5", "3.1.1"] = "5"  # MQTT's version
    username: str | None = None  # sent with the password
    password_file: str | None = None  # one line; needs `username`
    # The authority that signed the broker's certificate; needs mqtts://. Default: the system's.
    ca_file: str | None = None
    cert_file: str | None = None  # this client's certificate; needs mqtts://
    key_file: str | None = None  # its key, where that is not in `cert_file` too
    # Filters: a job's MQTT 5 response topic has to match one, or else it is answered on
    # `results/{id}`. Default: no response topic is used.
    reply_topics: tuple[str, ...] = ()
    # Agents of one group share the jobs of `edgewise/v1/pool/jobs/{model}`. Default: no pool.
    share_group: Annotated[str, msgspec.Meta(pattern=f"^{NAME_PATTERN.pattern}$")] | None = None
    # So many of the pool's jobs are begun with at a time; further ones go to agents that have room.
    share_jobs: Count = 16


class Http(_Section, frozen=True):
    """The HTTP port: metrics, health, the live page, and jobs by Open Inference Protocol v2.

    Files are read again when they change.
    """

    listen: str = "127.0.0.1:9464"  # `host:port`; an IPv6 host stands in brackets
    # When set, everything but /healthz and the live page's files asks for the token in it.
    token_file: str | None = None
    cert_file: str | None = None  # when set, the port speaks HTTPS
    key_file: str | None = None  # the certificate's key, where that is not in `cert_file` too


class Log(_Section, frozen=True):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"  # what is less is left out
    # A JSON object a line, or text for people; `auto` is `console` on a terminal, else `json`.
    format: Literal["auto", "json", "console"] = "auto"


class Tracing(_Section, frozen=True):
    """Traces of jobs, sent by OTLP over HTTP. It needs the extra `otel`.

    Files are read again when they change.
    """

    # A collector's, http://127.0.0.1:4318; /v1/traces is added. Default: nothing is traced.
    endpoint: str | None = None
    # The share of jobs that are traced, of those whose requester has not decided it already.
    sample_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    headers_file: str | None = None  # sent along with spans: a line of `Name: value` each
    # The authority that signed the collector's certificate; needs https://. Default: the system's.
    ca_file: str | None = None
    cert_file: str | None = None  # a client certificate; needs https://
    key_file: str | None = None  # its key, where that is not in `cert_file` too


class Limits(_Section, frozen=True):
    """What one daemon takes on."""

    max_payload_bytes: Count = 16 * 1024 * 1024  # a larger job is refused
    # Unfinished jobs in memory. Beyond, the lowest priority is refused as `overloaded`. Deferrable
    # jobs that wait on disk don't count.
    max_waiting_jobs: Count = 2_000
    max_waiting_bytes: Count = 64 * 1024 * 1024  # the inputs of these jobs, likewise
    result_ttl_s: Positive = 3600.0  # how long an answer is kept for its id sent again
    default_deadline_ms: Positive = 30_000.0  # for jobs that name none
    # How long jobs that run may go on when the daemon is told to stop. Others wait for its return.
    shutdown_grace_s: NotNegative = 10.0


class Store(_Section, frozen=True):
    """Jobs and answers on disk, in device.state_dir."""

    # SQLite's pragma: `full` survives a power cut, `normal` may forget the last moments before one
    # and spares the disk, `off` may damage the file in one.
    synchronous: Literal["full", "normal", "off"] = "full"
    # Jobs and kept answers. Beyond, the oldest answers are forgotten; when none is left, new jobs
    # are refused.
    max_jobs: Count = 200_000
    max_bytes: Count = 1024 * 1024 * 1024  # what these take on disk, likewise
    max_decisions: Count = 50_000  # kept for `explain` and `replay`; the oldest go first


class Local(_Section, frozen=True):
    """The local route."""

    workers: Count = 1  # processes, each with every model in its memory
    run_timeout_s: Positive = 10.0  # an inference that takes longer is cut off
    # The most data a worker may have in memory (RLIMIT_DATA). 0: no limit.
    memory_mb: Annotated[int, msgspec.Meta(ge=0)] = 0


class TensorInput(_Section, frozen=True, tag="tensor", tag_field="kind"):
    """Inputs are tensors in the model's own shape and units."""


class ImageInput(_Section, frozen=True, tag="image", tag_field="kind"):
    """Inputs may be JPEG or PNG files: value = pixel (0..255) * scale + offset."""

    # How an image of another shape fits: `crop` fills and cuts the rest, `letterbox` pads it black.
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    color: Literal["auto", "grey", "rgb"] = "auto"  # `auto`: by the model's channels
    scale: float = 1 / 255  # by which a pixel is multiplied
    offset: float = 0.0  # what is added then; a quantised input is quantised afterwards
    # Width and height. Default: the model's own; needed where the model leaves them open.
    size: tuple[Count, Count] | None = None
    max_pixels: Count = 25_000_000  # a larger image is refused before it is decoded


class CloudModel(_Section, frozen=True):
    """A model at an endpoint."""

    endpoint: str  # one under `[endpoints]`
    name: str = ""  # the model's name there; default: the same
    # How an image gets there: as the tensor that `preprocess` makes, or as the file that came in.
    image: Literal["tensor", "original"] = "tensor"
    weight: Positive = 1.0  # its share among endpoints that are expected to cost the same
    task: Literal["chat", "embeddings"] = "chat"  # what a text model is asked; `openai` only
    prompt: str = ""  # the system message before each job's; `openai` only
    # Further fields of the request, such as `{ max_completion_tokens = 200 }`; `openai` only.
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class Model(_Section, frozen=True):
    """A model. With no `path` it is served by its endpoints only."""

    # A .tflite file, or .litertlm for a language model. Without, endpoints alone serve the model.
    path: str | None = None
    # The file's digest: one with another is not loaded. `check` warns where it is missing.
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None
    threads: Count = 1  # of an interpreter
    stateful: bool = False  # the model holds state: each job gets a fresh interpreter
    # `"tensor"`; or `"image"` for JPEG and PNG files too, or a table with `kind = "image"`, see
    # below.
    preprocess: Literal["tensor", "image"] | TensorInput | ImageInput = "tensor"
    # Names of the classes: a list, or a file with one a line. Answers have `label` and `confidence`
    # then.
    labels: str | tuple[str, ...] | None = None
    top_k: Count = 3  # how many labels an answer gives
    max_output_tokens: Count = 512  # of a language model on the device (LiteRT-LM)
    cloud: tuple[CloudModel, ...] = ()  # the endpoints that serve it too

    @property
    def image_input(self) -> ImageInput | None:
        """How images are prepared, or None where the model takes tensors only."""
        if self.preprocess == "image":
            return ImageInput()
        return self.preprocess if isinstance(self.preprocess, ImageInput) else None


class Endpoint(_Section, frozen=True):
    """A cloud endpoint. Files of credentials are read again when they change."""

    url: str  # `http://host:port`, or `https://`; no credentials
    # Open Inference Protocol v2, TensorFlow Serving's REST API v1, or OpenAI's chat completions and
    # embeddings.
    protocol: Literal["oip", "tfserving", "openai"] = "oip"
    timeout_s: Positive = 10.0  # of an attempt, and always within the job's deadline
    connect_timeout_s: Positive = 3.0  # of that, until there is a connection; half of it at most
    first_byte_timeout_s: Positive | None = None  # until a response begins; default: `timeout_s`
    token_file: str | None = None  # one line, sent as `Authorization: Bearer …`
    # The authority that signed the endpoint's certificate. Default: the system's.
    ca_file: str | None = None
    cert_file: str | None = None  # a client certificate
    key_file: str | None = None  # its key, where that is not in `cert_file` too
    price_per_request: NotNegative = 0.0  # in a currency of your own, everywhere the same
    price_per_gib: NotNegative = 0.0  # of what is carried, both ways together
    price_per_million_input_tokens: NotNegative = 0.0  # by the endpoint's count; `openai` only
    price_per_million_output_tokens: NotNegative = 0.0  # likewise
    max_in_flight: Count = 32  # requests at a time; others wait
    # Whether the server takes OIP's binary tensors. `"auto"`: as it says, else tried once.
    binary: bool | Literal["auto"] = "auto"
    # How `tfserving` gets tensors. `auto`: in rows where all inputs have the same first dimension.
    tensor_format: Literal["auto", "row", "column"] = "auto"
    # Of requests, where it saves more time on the air than it takes. `auto`: what the server says
    # that it takes. `zstd` needs the extra `zstd` before Python 3.14.
    compression: Literal["auto", "off", "gzip", "deflate", "zstd"] = "auto"
    # How often it is asked whether it is there while no job goes to it; on a metered link once a
    # minute at most.
    probe_interval_s: Positive = 10.0

    def cost(self, carried_bytes: float, input_tokens: int = 0, output_tokens: int = 0) -> float:
        """Give what a request costs that carries so much; bytes count both ways together."""
        return (
            self.price_per_request
            + self.price_per_gib * carried_bytes / GIB
            + self.price_per_million_input_tokens * input_tokens / MILLION
            + self.price_per_million_output_tokens * output_tokens / MILLION
        )


class Policy(_Section, frozen=True):
    """The policy: one that is installed, by name, or one from a file, by path."""

    name: str = "adaptive"  # one that `edgewise policies` lists
    # `FILE.py:Class`, in place of a name. Refused where others can write the file or its folder.
    path: str | None = None
    timeout_ms: Positive = 50.0  # a decision that takes longer is taken by a static rule instead
    shadow: tuple[str, ...] = ()  # installed policies that decide besides, without effect
    options: dict[str, Any] = msgspec.field(default_factory=dict)  # the policy's own, see below
    # A table of options for each shadow, by its name.
    shadow_options: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)


class Energy(_Section, frozen=True):
    """Power model used where no sensor measures."""

    cpu_active_watts: NotNegative = 3.0  # of one busy core, above idle
    radio_tx_watts: NotNegative = 1.2  # while it sends, above idle
    radio_rx_watts: NotNegative = 1.0  # while it receives, above idle
    # The radio stays awake for a while after a transfer; this is Wi-Fi's. LTE: 1.06 W for 11.6 s
    # (Huang et al. 2012, "A close examination of performance and power characteristics of 4G LTE").
    radio_tail_watts: NotNegative = 0.12
    radio_tail_s: NotNegative = 0.24  # for so long
    idle_watts: NotNegative = 2.5  # the device at rest


class Network(_Section, frozen=True):
    """The network, as far as the operator knows more of it than the device can find out."""

    # Whether data over the device's link cost money or are scarce. Default: as NetworkManager says,
    # where it runs, else unknown.
    metered: bool | None = None


class Budget(_Section, frozen=True):
    """What may be spent, whatever a policy says. Left out: no limit.

    Days and hours are the calendar's and the clock's. Once a limit is reached, a job that may wait
    does so; others take a route that is still open, or fail.
    """

    cloud_cost_per_day: NotNegative | None = None  # in the currency of the endpoints' prices
    cloud_bytes_per_day: NotNegative | None = None  # both ways together
    metered_bytes_per_day: NotNegative | None = None  # of these, over a metered link
    energy_joules_per_hour: NotNegative | None = None  # of all jobs, by measure or model
    # A time of day, HH:MM. Jobs that may wait do so where the battery would not last until then.
    battery_last_until: Annotated[str, msgspec.Meta(pattern=CLOCK)] | None = None


class Config(_Section, frozen=True):
    """The whole configuration."""

    device: Device = Device()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    log: Log = Log()
    tracing: Tracing = Tracing()
    limits: Limits = Limits()
    store: Store = Store()
    local: Local = Local()
    models: dict[str, Model] = msgspec.field(default_factory=dict)
    endpoints: dict[str, Endpoint] = msgspec.field(default_factory=dict)
    policy: Policy = Policy()
    energy: Energy = Energy()
    network: Network = Network()
    budget: Budget = Budget()


# Sections whose tables the operator names.
NAMED_SECTIONS = {"models": Model, "endpoints": Endpoint}


def split_listen(listen: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ValueError: It is not of that form.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:  # noqa: PLR2004 - ports
        raise ValueError("want host:port")
    if host.startswith("["):
        host = str(ipaddress.IPv6Address(host.strip("[]")))
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this device itself, by its name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
