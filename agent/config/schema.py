"""The reference of the configuration: a key that is not in these structs is an error."""

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

    id: str = ""  # default: the hostname
    state_dir: str = "/var/lib/edgewise"
    state_interval_s: Positive = 10.0
    sysfs_root: str = "/sys"
    procfs_root: str = "/proc"


class Mqtt(_Section, frozen=True):
    """The broker. `url` is mqtt://host:port, or mqtts:// for TLS."""

    url: str = "mqtt://127.0.0.1:1883"
    protocol: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    # These are read again when they change, for the next connection.
    password_file: str | None = None
    ca_file: str | None = None  # of an own authority; default: whom the system trusts
    cert_file: str | None = None  # a client certificate, and its key where that is not in it
    key_file: str | None = None
    reply_topics: tuple[str, ...] = ()  # filters a job's MQTT 5 response topic must match one of
    # Agents of one group share the jobs of edgewise/v1/pool/jobs/{model}.
    share_group: Annotated[str, msgspec.Meta(pattern=f"^{NAME_PATTERN.pattern}$")] | None = None
    share_jobs: Count = 16  # of these, so many are begun with at a time; others go on if they can


class Http(_Section, frozen=True):
    """The HTTP port: metrics, health, and jobs by Open Inference Protocol v2."""

    listen: str = "127.0.0.1:9464"
    # These are read again when they change.
    token_file: str | None = None  # when set, everything but /healthz needs it
    cert_file: str | None = None  # when set, the port speaks HTTPS; with its key, or in key_file
    key_file: str | None = None


class Log(_Section, frozen=True):
    """Logging. `auto` is console on a terminal, else json."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Limits(_Section, frozen=True):
    """What one daemon takes on."""

    max_payload_bytes: Count = 16 * 1024 * 1024
    max_waiting_jobs: Count = 2_000  # in memory; those that may wait longer are on disk
    max_waiting_bytes: Count = 64 * 1024 * 1024  # the inputs of these jobs
    result_ttl_s: Positive = 3600.0  # how long an answer is kept for its id sent again
    default_deadline_ms: Positive = 30_000.0
    shutdown_grace_s: NotNegative = 10.0  # for jobs that run when the daemon is told to stop


class Store(_Section, frozen=True):
    """Jobs and answers on disk, in device.state_dir."""

    # SQLite's pragma: full survives a power cut, normal may forget the last moments before one.
    synchronous: Literal["full", "normal", "off"] = "full"
    max_jobs: Count = 200_000  # answers that are kept for an id sent again included
    max_bytes: Count = 1024 * 1024 * 1024
    max_decisions: Count = 50_000


class Local(_Section, frozen=True):
    """The local route."""

    workers: Count = 1
    run_timeout_s: Positive = 10.0  # an inference that takes longer is cut off
    memory_mb: Annotated[int, msgspec.Meta(ge=0)] = 0  # a worker's data segment; 0: no limit


class TensorInput(_Section, frozen=True, tag="tensor", tag_field="kind"):
    """Inputs are tensors in the model's own shape and units."""


class ImageInput(_Section, frozen=True, tag="image", tag_field="kind"):
    """Inputs may be JPEG or PNG files: value = pixel (0..255) * scale + offset."""

    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    color: Literal["auto", "grey", "rgb"] = "auto"  # auto: by the model's channels
    scale: float = 1 / 255
    offset: float = 0.0
    size: tuple[Count, Count] | None = None  # width, height; default: the model's own
    max_pixels: Count = 40_000_000  # a larger image is refused before it is decoded


class CloudModel(_Section, frozen=True):
    """A model at an endpoint."""

    endpoint: str
    name: str = ""  # the model's name there; default: the same
    # How an image gets there: as the tensor that preprocess makes, or as the file that came in.
    image: Literal["tensor", "original"] = "tensor"
    weight: Positive = 1.0  # its share among endpoints that are expected to cost the same
    # Of text models: what is asked of them, a text to put before each job's, and further fields of
    # the request, such as { max_completion_tokens = 200 }.
    task: Literal["chat", "embeddings"] = "chat"
    prompt: str = ""
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class Model(_Section, frozen=True):
    """A model. With no `path` it is served by its endpoints only."""

    path: str | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None
    threads: Count = 1
    stateful: bool = False  # the model holds state: each job gets a fresh interpreter
    preprocess: Literal["tensor", "image"] | TensorInput | ImageInput = "tensor"
    labels: str | tuple[str, ...] | None = None  # a file with one label a line, or a list
    top_k: Count = 3
    max_output_tokens: Count = 512  # of a language model on the device (LiteRT-LM)
    cloud: tuple[CloudModel, ...] = ()

    @property
    def image_input(self) -> ImageInput | None:
        """How images are prepared, or None where the model takes tensors only."""
        if self.preprocess == "image":
            return ImageInput()
        return self.preprocess if isinstance(self.preprocess, ImageInput) else None


class Endpoint(_Section, frozen=True):
    """A cloud endpoint."""

    url: str
    protocol: Literal["oip", "tfserving", "openai"] = "oip"
    timeout_s: Positive = 10.0
    connect_timeout_s: Positive = 3.0
    first_byte_timeout_s: Positive | None = None  # until a response begins; default: timeout_s
    # These are read again when they change.
    token_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None  # a client certificate, and its key where that is not in it
    key_file: str | None = None
    price_per_request: NotNegative = 0.0
    price_per_gib: NotNegative = 0.0
    # Of text models, by the endpoint's own count of tokens.
    price_per_million_input_tokens: NotNegative = 0.0
    price_per_million_output_tokens: NotNegative = 0.0
    max_in_flight: Count = 32
    # Whether the server takes OIP's binary tensor extension; auto: as it says, else tried once.
    binary: bool | Literal["auto"] = "auto"
    # How tfserving gets tensors; auto: in rows where all inputs have the same first dimension.
    tensor_format: Literal["auto", "row", "column"] = "auto"
    # Of requests, where it saves more time on the air than it takes; auto: as the server says.
    compression: Literal["auto", "off", "gzip", "deflate", "zstd"] = "auto"
    probe_interval_s: Positive = 10.0  # while there is no traffic; a minute at least where metered

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

    name: str = "adaptive"
    path: str | None = None  # "/etc/edgewise/policies/mine.py:Mine"
    timeout_ms: Positive = 50.0
    shadow: tuple[str, ...] = ()  # installed policies that decide besides, without effect
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    shadow_options: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)


class Energy(_Section, frozen=True):
    """Power model used where no sensor measures, in watts above idle."""

    cpu_active_watts: NotNegative = 3.0
    radio_tx_watts: NotNegative = 1.2
    radio_rx_watts: NotNegative = 1.0
    # The radio stays awake for a while after a transfer; these are Wi-Fi's. LTE: 1.06 W for 11.6 s
    # (Huang et al. 2012, "A close examination of performance and power characteristics of 4G LTE").
    radio_tail_watts: NotNegative = 0.12
    radio_tail_s: NotNegative = 0.24
    idle_watts: NotNegative = 2.5


class Network(_Section, frozen=True):
    """The network, as far as the operator knows more of it than the device can find out."""

    metered: bool | None = None  # default: as NetworkManager says, where it runs, else unknown


class Budget(_Section, frozen=True):
    """What may be spent, whatever a policy says. Left out: no limit."""

    cloud_cost_per_day: NotNegative | None = None  # in the currency of the endpoints' prices
    cloud_bytes_per_day: NotNegative | None = None  # both ways together
    metered_bytes_per_day: NotNegative | None = None  # of these, over a metered link
    energy_joules_per_hour: NotNegative | None = None  # of all jobs, by measure or model
    # Jobs that may wait do so where the battery would not last until then.
    battery_last_until: Annotated[str, msgspec.Meta(pattern=CLOCK)] | None = None


class Config(_Section, frozen=True):
    """The whole configuration."""

    device: Device = Device()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    log: Log = Log()
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
