"""The policy in force and its shadows: made, switched, and what they have learned kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
import structlog

from agent import plugins
from agent.config import ConfigError, Policy
from agent.events import Events
from agent.learned import MOST_BYTES, Learned, said
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.guard import Guard
from agent.router.shadows import Shadows
from policies.api import Keeper

log = structlog.get_logger(__name__)

MOST_DETAIL = 400


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What `control/policy` asks for."""

    name: str | None = None
    path: str | None = None
    options: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Policies made to take over, checked and not yet in force; None: the present ones stay."""

    settings: Policy
    policy: LoadedPolicy | None
    shadows: list[LoadedPolicy] | None


class InForce:
    """The policy that decides, the shadows beside it, and how others take their places.

    What a policy that is a `Keeper` has learned is kept by its name: ``policy-NAME``, and apart
    from that ``shadow-NAME`` for a shadow, which learns from other outcomes.
    """

    def __init__(self, settings: Policy, learned: Learned, events: Events) -> None:
        """Make the configured policies; they have not learned anything yet.

        Raises:
            ConfigError: One of them can't be used.
        """
        self._configured = self._settings = settings
        self._learned = learned
        # Of all of them, for there is one alarm.
        self._guard = Guard(settings.timeout_ms / 1000)
        self._policy = plugins.load(settings)
        self._shadowing = plugins.load_shadows(settings)
        self.decider = Decider(self._policy, self._guard)
        self.shadows = Shadows(events)
        self._use_shadows()

    @property
    def shadow_names(self) -> list[str]:
        """The shadows' names, those that were switched off included."""
        return [shadow.name for shadow in self._shadowing]

    async def start(self) -> None:
        """Arm the guard, in the thread that decides, and take up what was kept.

        `decider` may be another one afterwards.
        """
        self._guard.install()
        await self._enter(self._policy, self._settings)
        await self._enter_shadows(self._shadowing, self._settings)

    def prepare(self, settings: Policy) -> Change:
        """Make what these settings want otherwise than those in force.

        To be followed by `adopt`, with no other change between.

        Raises:
            ConfigError: They can't be used.
        """
        now = self._settings
        policy = None if _same_policy(settings, now) else plugins.load(settings)
        shadows = None if _same_shadows(settings, now) else plugins.load_shadows(settings)
        return Change(settings, policy, shadows)

    async def adopt(self, change: Change) -> None:
        """Put a change of the configuration in force; shadows that were switched off begin again.

        `decider` may be another one afterwards. The present one goes on until then.
        """
        await self._adopt(change)
        self._configured = change.settings
        self._use_shadows()

    async def switch(self, payload: bytes) -> None:
        """Put in force what `control/policy` asks for, until `adopt`.

        Raises:
            ConfigError: It can't be used, and nothing has changed.
        """
        try:
            settings = _asked(payload, self._configured, self._settings)
            change = await asyncio.to_thread(self.prepare, settings)
        except ConfigError as error:
            # One line, whatever was sent.
            reason = " ".join(error.reason.split())[:MOST_DETAIL]
            raise ConfigError("control/policy", error.key[:MOST_DETAIL], reason) from error
        await self._adopt(change)
        log.info("policy_switched", policy=self.decider.name)

    async def _adopt(self, change: Change) -> None:
        settings = change.settings
        self._guard.use(settings.timeout_ms / 1000)
        if change.policy is not None:
            await self._learned.release(_kept_as("policy", self._policy))
            await self._enter(change.policy, settings)
        if change.shadows is not None:
            for shadow in self._shadowing:
                await self._learned.release(_kept_as("shadow", shadow))
            await self._enter_shadows(change.shadows, settings)
        self._settings = settings

    async def _enter(self, policy: LoadedPolicy, settings: Policy) -> None:
        self._policy = await self._remind(
            _kept_as("policy", policy), policy, lambda: plugins.load(settings)
        )
        self.decider = Decider(self._policy, self._guard)

    async def _enter_shadows(self, shadows: list[LoadedPolicy], settings: Policy) -> None:
        self._shadowing = [
            await self._remind(
                _kept_as("shadow", shadow),
                shadow,
                partial(plugins.load_shadow, settings, shadow.name),
            )
            for shadow in shadows
        ]
        self._use_shadows()

    def _use_shadows(self) -> None:
        self.shadows.use([Decider(shadow, self._guard) for shadow in self._shadowing])

    async def _remind(
        self, name: str, loaded: LoadedPolicy, make: Callable[[], LoadedPolicy]
    ) -> LoadedPolicy:
        """Have a policy take up what was kept, and keep what it learns.

        Returns:
            The policy, or where it refused what was kept a fresh one from `make`.
        """
        keeper = loaded.policy
        if not isinstance(keeper, Keeper):
            return loaded
        state = await asyncio.to_thread(self._learned.read, name)
        try:
            if state is not None:
                self._guard.call(keeper.load, state)
        except Exception as error:  # noqa: BLE001 - a policy may raise anything
            log.warning("learned_refused", name=name, error=said(error))
            # It may have taken up a part.
            loaded = make()
        self._learned.keep(name, lambda: self._dump(loaded.policy))
        return loaded

    def _dump(self, keeper: Any) -> msgspec.Raw:
        """Give what a policy has learned, as JSON; raises whatever it raises."""
        text = self._guard.call(_dumped, keeper)
        if len(text) > MOST_BYTES:
            raise ValueError(f"dump gave {len(text)} bytes, at most {MOST_BYTES} are kept")
        return msgspec.Raw(text)


def _dumped(keeper: Any) -> bytes:
    state = keeper.dump()
    if type(state) is not dict:
        raise TypeError(f"dump gave {type(state).__name__}, no dict")
    return json.dumps(state, allow_nan=False).encode()


def _asked(payload: bytes, configured: Policy, now: Policy) -> Policy:
    """Give the settings that a request comes to.

    Args:
        payload: The request, as JSON.
        configured: The operator's settings.
        now: Those in force.

    Raises:
        ConfigError: It is malformed, or asks for a file other than the operator's.
    """
    try:
        asked = msgspec.json.decode(payload, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError("policy", "", f"the payload is not as wanted: {error}") from None
    if asked.name is not None and asked.path is not None:
        raise ConfigError("policy", "", "want a name or a path, not both")
    if asked.name is None and asked.path is None:
        if asked.options is None:
            raise ConfigError("policy", "", "want a name, a path or options")
        return msgspec.structs.replace(now, options={**now.options, **asked.options})
    # A program in a file runs as we do: whoever may publish must not choose which.
    if asked.path is not None and asked.path != configured.path:
        reason = "only the configured file may be asked for; other policies by their names"
        raise ConfigError("policy", "policy.path", reason)
    name = configured.name if asked.name is None else asked.name
    wanted = msgspec.structs.replace(now, name=name, path=asked.path, options=asked.options or {})
    if asked.options is None and _is_named(wanted, configured):
        return msgspec.structs.replace(wanted, options=configured.options)
    return wanted


def _is_named(settings: Policy, other: Policy) -> bool:
    if settings.path is not None or other.path is not None:
        return settings.path == other.path
    return settings.name == other.name


def _same_policy(settings: Policy, other: Policy) -> bool:
    return _is_named(settings, other) and settings.options == other.options


def _same_shadows(settings: Policy, other: Policy) -> bool:
    return (settings.shadow, settings.shadow_options) == (other.shadow, other.shadow_options)


def _kept_as(place: str, loaded: LoadedPolicy) -> str:
    return f"{place}-{quote(loaded.name, safe='')}"
