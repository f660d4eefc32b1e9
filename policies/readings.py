"""What a condition may name of a situation, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, get_args, get_type_hints

from policies.api import CLOUD, LOCAL, Device, Estimate, JobTraits, RouteView, Situation


def _fields(kind: type, within: str = "", leave: Sequence[str] = ()) -> dict[str, Any]:
    """Give, for each field of a type, a sample of its type (numbers are doubles) and its reader."""
    samples = {float: 1.0, int: 1.0, bool: True, str: "x"}
    found = {}
    for name, hint in get_type_hints(kind).items():
        types = [each for each in (hint, *get_args(hint)) if each in samples]
        if types and name not in leave:
            found[name] = (samples[types[0]], attrgetter(within + name))
    return found


_ROUTE: dict[str, Any] = {
    "open": (True, lambda route: route.closed is None),
    **_fields(RouteView, leave=("kind", "closed")),
    **_fields(Estimate, "estimate."),
}
# What conditions may name. `cloud` is the cloud route that a rule for the cloud would take.
NAMES: dict[str, dict[str, Any]] = {
    "job": _fields(JobTraits),
    "device": _fields(Device),
    LOCAL: _ROUTE,
    CLOUD: _ROUTE,
}


def variable(root: str, name: str) -> str:
    """Give the variable for `root.name`: CEL libraries convert nested maps slowly."""
    return f"{root}__{name}"


def presence(root: str, name: str) -> str:
    """Give the variable for `has(root.name)`."""
    return f"has__{root}__{name}"


class Reader:
    """Reads certain names from situations.

    Example:
        >>> from policies.testing import situation
        >>> reader = Reader([("job", "priority"), ("device", "network_up")])
        >>> reader.read(situation())
        {'device.network_up': None, 'job.priority': 5.0}
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        """Set up for these names out of `NAMES`."""
        self._names = [
            (root, name, f"{root}.{name}", *NAMES[root][name]) for root, name in sorted(names)
        ]

    def read(self, situation: Situation, cloud: RouteView | None = None) -> dict[str, Any]:
        """Give the readings by name; None where one is not known.

        Args:
            situation: Where they are read.
            cloud: The route that `cloud` stands for.
        """
        local = situation.route(LOCAL)
        sources = {"job": situation.job, "device": situation.device, LOCAL: local, CLOUD: cloud}
        found: dict[str, Any] = {}
        for root, name, key, sample, read in self._names:
            source = sources[root]
            if source is None:
                found[key] = False if name == "open" else None
                continue
            value = read(source)
            if value is not None and type(sample) is float:
                value = float(value)
                if math.isnan(value):
                    value = None
            found[key] = value
        return found

    def variables(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Give readings as variables; one that is not known is not there."""
        variables: dict[str, Any] = {}
        for root, name, key, _, _ in self._names:
            value = known[key]
            variables[presence(root, name)] = value is not None
            if value is not None:
                variables[variable(root, name)] = value
        return variables
