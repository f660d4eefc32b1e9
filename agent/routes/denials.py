"""An endpoint that refuses our credentials: it is there, and of no use until they are others.

Some refuse them for one model and not for another, so each model has a circuit of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import structlog

from agent.routes.circuit import Circuit

log = structlog.get_logger(__name__)

# Statuses that speak of our credentials.
DENIED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
# They are rarely right again by themselves, and who keeps on trying may be locked out.
PAUSE_LAST_S = 30.0


class Denials:
    """The models that an endpoint has refused our credentials for."""

    def __init__(
        self, endpoint: str, credentials: Callable[[], object], clock: Callable[[], float]
    ) -> None:
        """Begin with none.

        Args:
            endpoint: The endpoint's name.
            credentials: Gives what we show now; another object where it has changed.
            clock: Monotonic seconds.
        """
        self._endpoint = endpoint
        self._credentials = credentials
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}  # by model
        self._shown: object = None  # when the last of them was refused

    @property
    def reason(self) -> str | None:
        """What the endpoint says where it is left alone for its refusals, or None."""
        self._forget_if_changed()
        refusals = (each.last_failure for each in self._circuits.values() if each.is_open)
        return next(refusals, None)

    def open_for(self, model: str) -> Circuit | None:
        """Give the circuit of a model, where it is open."""
        self._forget_if_changed()
        circuit = self._circuits.get(model)
        return circuit if circuit is not None and circuit.is_open else None

    @contextmanager
    def attempt(self, model: str) -> Iterator[None]:
        """Make a request; see `Circuit.attempt`."""
        circuit = self._circuits.get(model)
        if circuit is None:
            yield
            return
        with circuit.attempt():
            yield

    def deny(self, model: str, reason: str) -> None:
        """A request for a model was refused for what it was shown."""
        circuit = self._circuits.get(model)
        if circuit is None:
            circuit = self._circuits[model] = Circuit(self._clock, PAUSE_LAST_S)
        was_open = circuit.is_open
        circuit.fail(reason)
        self._shown = self._credentials()
        if circuit.is_open and not was_open:
            log.error("credentials_denied", endpoint=self._endpoint, model=model, detail=reason)

    def admit(self, model: str) -> None:
        """A request for a model was not refused for that."""
        circuit = self._circuits.pop(model, None)
        if circuit is not None and circuit.is_open:
            log.info("credentials_admitted", endpoint=self._endpoint, model=model)

    def _forget_if_changed(self) -> None:
        if self._circuits and self._credentials() is not self._shown:
            self._circuits.clear()
