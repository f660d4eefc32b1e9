"""Tells in plain sentences what was decided for a job, why, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from agent.history import ANSWERED, DECIDED_AGAIN, DEFERRED, PUT_BACK, Attempt, Decision, End, Entry
from agent.job import split_route
from policies.api import LOCAL, WITHDRAWN, Device, Why

MEGABYTE = 1e6
CANDIDATES = ("route", "mean", "p95", "joules", "price", "fails", "closed because")
TERMS = ("term", "value", "weight", "product")
# What became of a job that has no end yet.
GOES_ON = {DECIDED_AGAIN: "was decided again", PUT_BACK: "waits for its turn again"}
UNKNOWN_END = "What then became of the job is not on record."
BETTER, WORSE = 0.8, 1.25  # of the expected latency: within these it took as long as expected


def tell(entry: Entry) -> list[str]:
    """Tell of one decision: what was chosen and why, what was closed, and what came of it."""
    decision = entry.decision
    return [
        f"{_chosen(decision)}: {_why(decision)}.",
        *_closed(decision),
        *_besides(entry),
        *(_attempted(entry, attempt) for attempt in entry.attempts),
        _end(entry),
    ]


def absent(job_id: str, state: str | None) -> str:
    """Say that there is nothing to tell of a job; `state` is its state on disk, where known."""
    if state is None:
        return f"no decision on job '{job_id}' is on record"
    return f"no decision on job '{job_id}' is on record yet; it is {state}"


def route(name: str | None) -> str:
    """Name a route in a sentence."""
    if name is None:
        return "no route"
    if name == LOCAL:
        return "the local route"
    _, endpoint = split_route(name)
    return f"endpoint '{endpoint}'" if endpoint else "the cloud"


def _chosen(decision: Decision) -> str:
    name = f"'{decision.policy or 'unknown'}'"
    policy = f"Policy {name}"
    if decision.reason == Why.POLICY_FAILED:
        return f"The static rule took {route(decision.route_name)} in place of policy {name}"
    if decision.route is not None:
        return f"{policy} chose {route(decision.route_name)}"
    if decision.defer_s is not None:
        return f"{policy} had the job wait for at least {seconds(decision.defer_s)}"
    return f"{policy} rejected the job"


def _why(decision: Decision) -> str:
    try:
        return WHY[Why(decision.reason or "")](decision)
    except ValueError:
        # Written by a later version, which has a word for it.
        return f"its reason is '{decision.reason}'" if decision.reason else "it gave no reason"


def _fallback(decision: Decision) -> str:
    if decision.route is None:
        return "the routes it would have taken were closed"
    return "the routes it would rather take were closed"


def _battery(decision: Decision) -> str:
    return f"the battery was low{_reading(decision, lambda d: d.battery_charge_ratio)}"


def _cpu(decision: Decision) -> str:
    return f"the processor was busy{_reading(decision, lambda d: d.cpu_utilization_ratio)}"


def _reading(decision: Decision, read: Callable[[Device], float | None]) -> str:
    ratio = read(decision.device)
    return "" if ratio is None else f" ({ratio:.0%})"


def _network(decision: Decision) -> str:
    trips = [view.rtt_s for view in decision.routes if view.rtt_s is not None]
    shown = f" (round trip {seconds(min(trips))})" if trips else ""
    return f"the network was slow{shown}"


def _expected(decision: Decision) -> str:
    least = "its expected cost was the least of the open routes"
    prefix = "cost "
    costs = {
        term.name.removeprefix(prefix): term.value
        for term in decision.reasons
        if term.name.startswith(prefix) and term.value is not None
    }
    own = costs.pop(decision.route_name or "", None)
    if own is None or not costs:
        return least
    others = ", ".join(f"{value:.3g} for {route(name)}" for name, value in costs.items())
    return f"{least}, {own:.3g} deadlines against {others}"


def _explored(decision: Decision) -> str:
    chance = decision.propensity
    shown = "" if chance is None else f"; such a choice had a probability of {chance:.2g}"
    return f"in part to learn how it does{shown}"


WHY: dict[Why, Callable[[Decision], str]] = {
    Why.ONLY_ROUTE: lambda _: "it was the only route there was for this job",
    Why.PREFERRED: lambda _: "that is what it prefers as long as nothing speaks against it",
    Why.FALLBACK: _fallback,
    Why.BATTERY_LOW: _battery,
    Why.CPU_BUSY: _cpu,
    Why.NETWORK_SLOW: _network,
    Why.INPUT_LARGE: lambda decision: (
        f"the input was large ({decision.job.input_bytes / MEGABYTE:.3g} MB)"
    ),
    Why.EXPECTED_COST: _expected,
    Why.EXPLORATION: _explored,
    Why.RULE: lambda _: "a rule of the operator's matched",
    Why.HEDGED: lambda _: "the route chosen first was late, and this one was quicker",
    Why.RETRY: lambda _: "an earlier attempt had failed, so it was asked again",
    Why.ESCALATED: lambda _: "the earlier answer was not confident enough, so it was asked again",
    Why.POLICY_FAILED: lambda _: "the policy raised, took too long, or broke the rules",
    Why.REJECTED: lambda _: "it would take none of the open routes for it",
}


def _closed(decision: Decision) -> Iterator[str]:
    for view in decision.routes:
        if view.closed is not None:
            yield f"{_upper(route(view.name))} was closed: {view.closed}."


def _besides(entry: Entry) -> Iterator[str]:
    decision = entry.decision
    if decision.hedge is not None:
        after = seconds(decision.hedge_after_s or 0.0)
        made = any(entry.is_hedge(attempt) for attempt in entry.attempts)
        so = "" if made or not entry.attempts else " It did not come to that."
        yield (
            f"The plan was hedged: {route(decision.hedge)} was to start as well if there was no "
            f"answer after {after}.{so}"
        )
    if decision.escalate_below is not None:
        below = decision.escalate_below
        yield f"A local answer with a confidence below {below:.3g} was to be escalated."
    if entry.audit is not None:
        found = {True: "agreed", False: "saw something else", None: "could not tell"}
        who = _upper(route(entry.audit.route))
        yield f"{who} was asked afterwards, to compare, and {found[entry.audit.agrees]}."


def _attempted(entry: Entry, attempt: Attempt) -> str:
    decision = entry.decision
    hedge = "The hedge, " if entry.is_hedge(attempt) else ""
    name = route(attempt.route)
    who = f"{hedge}{name}," if hedge else _upper(name)
    took = "" if attempt.latency_s is None else f" after {seconds(attempt.latency_s)}"
    if attempt.error == WITHDRAWN:
        did = f"{who} was called off{took}"
    elif attempt.error is not None:
        message = "" if attempt.message is None else f" ({attempt.message})"
        did = f"{who} failed{took} with {attempt.error}{message}"
    else:
        did = f"{who} answered{took}{_against_expected(decision, attempt)}"
        if attempt.confidence is not None:
            did += f", with a confidence of {attempt.confidence:.3g}"
    taken = _taken(attempt)
    return f"{did}; it took {taken}." if taken else f"{did}."


def _against_expected(decision: Decision, attempt: Attempt) -> str:
    view = decision.situation.route(attempt.route)
    mean_s = None if view is None else view.estimate.latency_mean_s
    if view is None or mean_s is None or attempt.latency_s is None or mean_s <= 0:
        return ""
    ratio = attempt.latency_s / mean_s
    p95_s = view.estimate.latency_p95_s
    if ratio < BETTER:
        judged = "quicker than"
    elif p95_s is not None and attempt.latency_s > p95_s:
        return (
            f", later than 19 in 20 were expected to ({seconds(mean_s)} expected, p95 "
            f"{seconds(p95_s)})"
        )
    else:
        judged = "slower than" if ratio > WORSE else "about as"
    return f", {judged} expected ({seconds(mean_s)})"


def _taken(attempt: Attempt) -> str:
    parts = []
    if attempt.energy_j is not None:
        source = "measured" if attempt.energy_measured else "by the power model"
        parts.append(f"{attempt.energy_j:.3g} J ({source})")
    if attempt.cost:
        parts.append(f"a price of {attempt.cost:.3g}")
    if attempt.bytes_up or attempt.bytes_down:
        parts.append(f"{attempt.bytes_up or 0} bytes up and {attempt.bytes_down or 0} down")
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else "".join(parts)


def _end(entry: Entry) -> str:
    end = entry.end
    if end is None:
        return UNKNOWN_END
    if end.kind == ANSWERED:
        return _answered(end)
    if end.kind == DEFERRED:
        return f"The job was put off: {end.message or 'no reason is on record'}."
    goes_on = GOES_ON.get(end.kind or "")
    if goes_on is None:
        return UNKNOWN_END
    if entry.attempts:
        return f"So it {goes_on}."
    return f"Its run was called off before it came to anything, and it {goes_on}."


def _answered(end: End) -> str:
    total = "" if end.total_s is None else f", {seconds(end.total_s)} after it came in"
    if end.error is None:
        return f"The job got its answer{total}."
    return f"The job was answered with {end.error}{total}: {end.message or 'no more is known'}."


def seconds(value: float) -> str:
    """Give a time in a unit that suits it."""
    if value < 1.0:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 600.0 else f"{value / 60:.0f} min"  # noqa: PLR2004


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def candidates(decision: Decision) -> Sequence[tuple[str, ...]]:
    """Give a row for each route: name, mean, p95, energy, price, failures, and why it is closed."""
    rows = []
    for view in decision.routes:
        known = view.estimate
        mark = "* " if view.name == decision.route_name else "  "
        rows.append(
            (
                f"{mark}{view.name}",
                *(
                    "-" if value is None else seconds(value)
                    for value in (known.latency_mean_s, known.latency_p95_s)
                ),
                _figure(known.energy_j),
                _figure(known.cost),
                "-" if known.failure_probability is None else f"{known.failure_probability:.1%}",
                view.closed or "",
            )
        )
    return rows


def terms(decision: Decision) -> Sequence[tuple[str, str, str, str]]:
    """Give a row for each term: name, value, weight or limit, and their product."""
    return [
        (
            term.name,
            _figure(term.value),
            _figure(term.weight),
            "-" if term.value is None or term.weight is None else f"{term.value * term.weight:.3g}",
        )
        for term in decision.reasons
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
