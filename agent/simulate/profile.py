"""A device profile: what a simulated device, its models and its endpoints take, as TOML.

Every key has a default but a model's `median_s`; a key that is not in these structs is an error.
Service times are lognormal: `median_s`, and `spread` is the standard deviation of the logarithm.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from agent.config import NAME_PATTERN, ConfigError, Endpoint, Energy
from agent.config import CloudModel as ServedModel
from agent.config import Model as ConfiguredModel
from agent.config.schema import LARGEST, Count, NotNegative, Positive

DEFAULT = "pi4"

Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
Times = Annotated[float, msgspec.Meta(ge=1, le=LARGEST)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Spread = Annotated[float, msgspec.Meta(ge=0, le=3)]


class _Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class Contention(_Section, frozen=True):
    """What other programs take of the processor, from a second on."""

    at_s: NotNegative
    contention: Ratio  # of what Edgewise leaves of all cores


class Slowdown(_Section, frozen=True):
    """How an endpoint's servers are, from a second on."""

    at_s: NotNegative
    factor: Positive  # times the usual service time


class Battery(_Section, frozen=True):
    """The battery, at the beginning."""

    capacity_wh: Positive = 20.0
    charge: Ratio = 1.0


class Network(_Section, frozen=True):
    """What the device knows of its link."""

    kind: Literal["ethernet", "wifi", "cellular", "other"] = "other"
    metered: bool | None = None


class Model(_Section, frozen=True):
    """A model: its runs here and at the endpoints, and its data."""

    median_s: Positive  # a run on the undisturbed device
    spread: Spread = 0.1
    cpu_s: Positive | None = None  # processor time of a median run; default: one core throughout
    input_bytes: Bytes = 50_000  # up
    response_bytes: Bytes = 500  # down
    server_s: Positive = 0.02  # median at an endpoint
    server_spread: Spread = 0.2
    confidence: Ratio | None = None  # the mean, of answers of this device; None: not told
    confidence_spread: Ratio = 0.15
    cloud_confidence: Ratio | None = None


class CloudEndpoint(_Section, frozen=True):
    """An endpoint. It serves all models, with as many servers as it takes."""

    price_per_request: NotNegative = 0.0
    price_per_gib: NotNegative = 0.0
    max_in_flight: Count = 32
    timeout_s: Positive = 10.0
    probe_interval_s: Positive = 10.0
    speed: Positive = 1.0  # divides the models' `server_s`
    distance_s: NotNegative = 0.0  # round trip beyond the network trace's
    # Round trips before a new connection's first request: 1, with TLS 1.3 it is 2; 0: there always
    # is a connection. Each is kept for the next request.
    handshakes: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0
    slowdowns: tuple[Slowdown, ...] = ()

    def server_factor(self, now_s: float) -> float:
        """Give what a service time is multiplied by at a second."""
        at = bisect_right(self.slowdowns, now_s, key=lambda step: step.at_s) - 1
        return (self.slowdowns[at].factor if at >= 0 else 1.0) / self.speed

    def as_configured(self) -> Endpoint:
        """Give the settings that the daemon would have for it."""
        return Endpoint(
            url="http://simulated",
            timeout_s=self.timeout_s,
            price_per_request=self.price_per_request,
            price_per_gib=self.price_per_gib,
            max_in_flight=self.max_in_flight,
            probe_interval_s=self.probe_interval_s,
        )


class Profile(_Section, frozen=True):
    """A device, its models and its endpoints."""

    models: dict[str, Model]
    cores: Count = 4
    workers: Count = 1
    overhead_s: NotNegative = 0.0  # what each job takes besides: to be stored, decided, published
    battery: Battery | None = None
    mains: bool = False  # plugged in; without a battery it always is
    slowdown: Times = 2.0  # a run's time at full contention, times the undisturbed
    contention: tuple[Contention, ...] = ()
    network: Network = Network()
    energy: Energy = Energy()
    endpoints: dict[str, CloudEndpoint] = msgspec.field(
        default_factory=lambda: {"cloud": CloudEndpoint()}
    )

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: at least one is needed")
        for section, names in (("models", self.models), ("endpoints", self.endpoints)):
            for name in names:
                if not NAME_PATTERN.fullmatch(name):
                    raise ValueError(f"{section}: '{name[:64]}' is no name")
        _check_order("contention", [step.at_s for step in self.contention])
        for name, endpoint in self.endpoints.items():
            times = [step.at_s for step in endpoint.slowdowns]
            _check_order(f"endpoints.{name}.slowdowns", times)

    def contention_at(self, now_s: float) -> float:
        """Give what others take of the processor at a second, 0..1."""
        at = bisect_right(self.contention, now_s, key=lambda step: step.at_s) - 1
        return self.contention[at].contention if at >= 0 else 0.0

    def slowdown_at(self, now_s: float) -> float:
        """Give what a local run's time is multiplied by at a second.

        Others disturb a run only where they leave it less than one core.
        """
        taken = self.contention_at(now_s) * self.cores
        crowded = min(max(taken - (self.cores - 1), 0.0), 1.0)
        return 1.0 + (self.slowdown - 1.0) * crowded

    def configured_models(self) -> dict[str, ConfiguredModel]:
        """Give the models as the daemon would have them: all on the device and all endpoints."""
        served = tuple(ServedModel(endpoint) for endpoint in self.endpoints)
        return {name: ConfiguredModel(path="simulated", cloud=served) for name in self.models}


def packaged() -> list[str]:
    """Name the profiles that come with Edgewise."""
    names = (entry.name for entry in _packaged().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load(name: str) -> Profile:
    """Load a profile that comes with Edgewise by its name, or one of your own by its path.

    Raises:
        ConfigError: There is none, or it can't be used; says which key, and what is wrong.
    """
    if name in packaged():
        return parse(name, (_packaged() / f"{name}.toml").read_bytes())
    try:
        return parse(name, Path(name).read_bytes())
    except OSError as error:
        known = ", ".join(packaged())
        raise ConfigError(name, "", f"{error.strerror}; profiles by name: {known}") from None


def _packaged() -> Traversable:
    return resources.files("agent.simulate") / "profiles"


def parse(where: str, text: bytes) -> Profile:
    """Read a profile from TOML; `where` names it in errors.

    Raises:
        ConfigError: It is no TOML, or a key is unknown, missing or out of range.
    """
    try:
        return msgspec.toml.decode(text, type=Profile)
    except msgspec.ValidationError as error:
        reason, _, key = str(error).partition(" - at `$")
        raise ConfigError(where, key.strip(".`"), reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(where, "", f"no TOML: {error}") from None


def _check_order(what: str, times: Sequence[float]) -> None:
    if any(later <= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"{what}: at_s has to increase")
