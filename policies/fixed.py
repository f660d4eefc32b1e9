"""Fixed rules: always one kind of route, or one kind first."""

from __future__ import annotations

from policies.api import CLOUD, LOCAL, Plan, RouteView, Situation, Why


class Local:
    """Always on the device; a job that can't run there is rejected."""

    def decide(self, situation: Situation) -> Plan:
        """Take the local route."""
        return _only(situation, LOCAL)


class Cloud:
    """Always in the cloud; a job that can't run there is rejected."""

    def decide(self, situation: Situation) -> Plan:
        """Take the first open cloud route."""
        return _only(situation, CLOUD)


class PreferLocal:
    """On the device while that is open, else in the cloud."""

    def decide(self, situation: Situation) -> Plan:
        """Take the local route if it is open."""
        return prefer(situation, LOCAL)


class PreferCloud:
    """In the cloud while that is open, else on the device."""

    def decide(self, situation: Situation) -> Plan:
        """Take a cloud route if one is open."""
        return prefer(situation, CLOUD)


def prefer(situation: Situation, kind: str, why: Why = Why.PREFERRED) -> Plan:
    """Take the first open route of a kind for the reason given, else the first open one."""
    routes = situation.open_routes
    wanted = _first(routes, kind)
    if wanted is not None:
        only = len(routes) == 1 and len(situation.routes) == 1
        return Plan(wanted.name, Why.ONLY_ROUTE if only else why, expected=wanted.estimate)
    other = routes[0]
    return Plan(other.name, Why.FALLBACK, expected=other.estimate)


def _only(situation: Situation, kind: str) -> Plan:
    route = _first(situation.open_routes, kind)
    if route is None:
        return Plan(None, Why.REJECTED)
    return Plan(route.name, Why.PREFERRED, expected=route.estimate)


def _first(routes: tuple[RouteView, ...], kind: str) -> RouteView | None:
    return next((route for route in routes if route.kind == kind), None)
