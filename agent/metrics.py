"""All of Edgewise's Prometheus metrics, fed by events and by readings taken at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent import __version__
from agent.events import (
    Answered,
    Attempted,
    Audited,
    BadMessage,
    Committed,
    Decided,
    Events,
    PolicyFailed,
    Probed,
    Received,
    Shadowed,
    ShadowFailed,
)
from agent.job import Answer, ErrorCode, Job, Outcome, split_route
from policies.api import Why

# One series each for every model and route: docs/metrics.md has the sum that they are bounded by.
JOB_BUCKETS = (0.002, 0.02, 0.1, 1, 10, 60)
COMMIT_BUCKETS = (0.002, 0.02, 0.2)
DECISION_BUCKETS = (1e-4, 1e-3, 1e-2)
# A model is told apart in so many unsuccessful ends (route and outcome) on average; further ones
# count as `other` and `none`. All that are possible would be twelve a model.
UNSUCCESSFUL_PER_MODEL = 2
# So many models at endpoints have their bytes told apart; those of further ones are `other`, by
# endpoint.
MOST_TOLD_APART = 7
# OpenMetrics allows so many characters of an exemplar, its label's name included.
EXEMPLAR_LABEL = "job_id"
LONGEST_EXEMPLAR = 128 - len(EXEMPLAR_LABEL)

OUTCOMES = {
    ErrorCode.DEADLINE_EXCEEDED: "expired",
    ErrorCode.CANCELLED: "cancelled",
    ErrorCode.MODEL_ERROR: "failed",
    ErrorCode.ENDPOINT_ERROR: "failed",
    ErrorCode.INTERNAL: "failed",
}
SUCCEEDED = "succeeded"
NO_ROUTE = "none"
OTHER = "other"

# Gives each series' label values and value; none where there is no reading.
Reading = Callable[[], Iterable[tuple[tuple[str, ...], float]]]


class Metrics:
    """The metrics, in a registry of their own."""

    def __init__(self, models: Collection[str]) -> None:
        """Set up the metrics. Only the names in `models` become label values, others `other`."""
        # A series more for each counter, which no dashboard reads.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.use_models(models)
        ProcessCollector(registry=self.registry)
        build = Gauge(
            "edgewise_build_info", "The running version.", ["version"], registry=self.registry
        )
        build.labels(__version__).set(1)
        self._received = self._counter(
            "edgewise_jobs_received", "Valid jobs taken in.", "model", "intake"
        )
        self._jobs = self._counter("edgewise_jobs", "Jobs answered.", "model", "route", "outcome")
        self._unsuccessful: set[tuple[str, ...]] = set()
        self._decisions = self._counter(
            "edgewise_decisions", "Decisions.", "policy", "route", "reason"
        )
        self._decision_s = self._histogram(
            "edgewise_decision_duration_seconds", "Time a decision took.", DECISION_BUCKETS
        )
        self._job_s = self._histogram(
            "edgewise_job_duration_seconds",
            "Time from receipt to answer, of jobs that succeeded.",
            JOB_BUCKETS,
            "model",
            "route",
        )
        self._route_s = self._summary(
            "edgewise_route_duration_seconds",
            "Time attempts ran on their route, without waiting; those that failed count.",
            "model",
            "route",
        )
        self._attempts = self._counter(
            "edgewise_attempts",
            "Attempts to run a job on a route, by how they ended.",
            "route",
            "outcome",
        )
        self._hedges = self._counter(
            "edgewise_hedges",
            "Second attempts that were begun because the first was late, by which was quicker.",
            "outcome",
        )
        self._misses = self._counter(
            "edgewise_deadline_misses",
            "Jobs not answered with a result by their deadline.",
            "model",
            "route",
        )
        self._estimate_error = self._summary(
            "edgewise_estimate_error_seconds",
            "Absolute difference between an attempt's expected and actual latency.",
            "model",
            "route",
        )
        self._expected_s = self._counter(
            "edgewise_expected_latency_seconds",
            "Latency that was expected of attempts that succeeded, waiting included, summed up.",
            "route",
        )
        self._actual_s = self._counter(
            "edgewise_actual_latency_seconds", "Latency that these attempts had.", "route"
        )
        self._energy = self._counter(
            "edgewise_energy_joules", "Energy jobs took, estimated.", "route"
        )
        self._cost = self._counter("edgewise_cloud_cost", "Money spent at endpoints.", "endpoint")
        self._cloud_bytes = self._counter(
            "edgewise_cloud_bytes",
            "Bytes that jobs' requests to endpoints and the responses took, both ways.",
            "endpoint",
            "model",
        )
        self._told_apart: set[tuple[str, str]] = set()
        self._probe_bytes = self._counter(
            "edgewise_probe_bytes", "Bytes that probes of an endpoint took, both ways.", "endpoint"
        )
        self._bad = self._counter("edgewise_bad_messages", "Messages that are no job.", "reason")
        self._policy_failures = self._counter(
            "edgewise_policy_failures",
            "Decisions that a static rule took because the policy failed.",
            "policy",
        )
        self._shadow_decisions = self._counter(
            "edgewise_shadow_decisions",
            "Decisions that a shadow policy would have taken.",
            "policy",
            "route",
        )
        self._shadow_agreement = self._counter(
            "edgewise_shadow_agreement",
            "Of these, whether the route was the same as the one decided on.",
            "policy",
            "agrees",
        )
        self._shadow_cost = self._counter(
            "edgewise_shadow_expected_cost",
            "Expected cost of what the shadow policy and of what the real one chose, in deadlines.",
            "policy",
            "choice",
        )
        self._shadow_failures = self._counter(
            "edgewise_shadow_failures",
            "A shadow policy raised, overran or broke the rules.",
            "policy",
        )
        self._audits = self._counter(
            "edgewise_audits",
            "Local answers that an endpoint was asked about, and whether it agreed.",
            "agrees",
        )
        self._commit_s = self._histogram(
            "edgewise_store_commit_duration_seconds",
            "Time the store took to commit.",
            COMMIT_BUCKETS,
        )
        self._restarts = self._counter(
            "edgewise_worker_restarts", "Worker processes started again."
        )

    def observe(self, events: Events) -> None:
        """Count what happens."""
        events.report(Received, self._on_received)
        events.report(BadMessage, lambda event: self._bad.labels(event.reason).inc())
        events.report(Decided, self._on_decided)
        events.report(PolicyFailed, lambda event: self._policy_failures.labels(event.policy).inc())
        events.report(Shadowed, self._on_shadowed)
        events.report(ShadowFailed, lambda event: self._shadow_failures.labels(event.policy).inc())
        events.report(Attempted, self._on_attempted)
        events.report(Audited, self._on_audited)
        events.report(Answered, self._on_answered)
        events.report(
            Probed,
            lambda event: self._probe_bytes.labels(event.endpoint).inc(
                event.bytes_up + event.bytes_down
            ),
        )
        events.report(Committed, lambda event: self._commit_s.observe(event.duration_s))

    def use_models(self, models: Collection[str]) -> None:
        """Take these names as label values from now on."""
        self._models = frozenset(models)

    def gauge(self, name: str, text: str, labels: tuple[str, ...], read: Reading) -> None:
        """Add a gauge that is read at each scrape; no reading, no series."""
        self.registry.register(_ReadGauge(name, text, labels, read))

    def worker_restarted(self) -> None:
        """Count a worker process that was started again."""
        self._restarts.inc()

    def _on_received(self, event: Received) -> None:
        self._received.labels(self._model(event.job), event.intake).inc()

    def _on_decided(self, event: Decided) -> None:
        kind, _ = split_route(event.plan.route or NO_ROUTE)
        self._decisions.labels(event.policy, kind, event.plan.why.value).inc()
        self._decision_s.observe(event.duration_s)

    def _on_shadowed(self, event: Shadowed) -> None:
        decided = event.decided.plan
        for choice in event.choices:
            kind, _ = split_route(choice.plan.route or NO_ROUTE)
            self._shadow_decisions.labels(choice.policy, kind).inc()
            agrees = str(choice.plan.route == decided.route).lower()
            self._shadow_agreement.labels(choice.policy, agrees).inc()
            if choice.expected_cost is not None and event.expected_cost is not None:
                # Of decisions that both took a route for, so that the sums compare.
                self._shadow_cost.labels(choice.policy, "shadow").inc(choice.expected_cost)
                self._shadow_cost.labels(choice.policy, "real").inc(event.expected_cost)

    def _on_attempted(self, event: Attempted) -> None:
        model = self._model(event.job)
        kind, endpoint = split_route(event.plan.route or NO_ROUTE)
        ended = end_of(event.outcome)
        self._attempts.labels(kind, ended).inc()
        if event.plan.why is Why.HEDGED:
            self._hedges.labels("won" if ended == SUCCEEDED else "lost").inc()
        if event.outcome.run_s:
            # Else it never ran.
            self._route_s.labels(model, kind).observe(event.outcome.run_s)
        if event.energy_j is not None:
            self._energy.labels(kind).inc(event.energy_j)
        if endpoint:
            carried = event.outcome.bytes_up + event.outcome.bytes_down
            self._cloud_bytes.labels(*self._told(endpoint, model)).inc(carried)
        if endpoint and event.cost is not None:
            self._cost.labels(endpoint).inc(event.cost)
        expected_s = event.expected.latency_mean_s
        if event.outcome.error is None and expected_s is not None:
            error = abs(expected_s - event.latency_s)
            self._estimate_error.labels(model, kind).observe(error)
            self._expected_s.labels(kind).inc(expected_s)
            self._actual_s.labels(kind).inc(event.latency_s)

    def _on_audited(self, event: Audited) -> None:
        agrees = "unknown" if event.agrees is None else str(event.agrees).lower()
        self._audits.labels(agrees).inc()

    def _on_answered(self, event: Answered) -> None:
        model = self._model(event.job)
        account = event.answer.account
        route = account.route or NO_ROUTE
        outcome = outcome_of(event.answer)
        if outcome == SUCCEEDED:
            job_id = event.job.id
            exemplar = {EXEMPLAR_LABEL: job_id} if len(job_id) <= LONGEST_EXEMPLAR else None
            self._job_s.labels(model, route).observe(account.total_s, exemplar)
            self._jobs.labels(model, route, outcome).inc()
        else:
            self._jobs.labels(*self._bounded(model, route, outcome)).inc()
        if _missed(event.job, event.answer):
            self._misses.labels(model, route).inc()

    def _told(self, endpoint: str, model: str) -> tuple[str, str]:
        """Give an endpoint and a model of it as label values."""
        known = self._told_apart
        if (endpoint, model) in known:
            return endpoint, model
        if len(known) >= MOST_TOLD_APART:
            return endpoint, OTHER
        known.add((endpoint, model))
        return endpoint, model

    def _bounded(self, *end: str) -> tuple[str, ...]:
        """Give an unsuccessful end's model, route and outcome as label values."""
        known = self._unsuccessful
        if end in known:
            return end
        if end[0] == OTHER or len(known) >= UNSUCCESSFUL_PER_MODEL * len(self._models):
            return OTHER, NO_ROUTE, end[-1]
        known.add(end)
        return end

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _summary(self, name: str, text: str, *labels: str) -> Summary:
        return Summary(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _model(self, job: Job) -> str:
        return job.model if job.model in self._models else OTHER


class _ReadGauge(Collector):
    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: Reading) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._read = read

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, value in self._read():
            family.add_metric(values, value)
        yield family


def end_of(attempt: Outcome) -> str:
    """Name how an attempt ended."""
    if attempt.error is None:
        return SUCCEEDED
    if attempt.timed_out:
        return "timed_out"
    return "called_off" if attempt.error.code is ErrorCode.CANCELLED else "failed"


def outcome_of(answer: Answer) -> str:
    """Name how a job ended."""
    return SUCCEEDED if answer.error is None else OUTCOMES.get(answer.error.code, "rejected")


def _missed(job: Job, answer: Answer) -> bool:
    if answer.error is not None:
        return answer.error.code is ErrorCode.DEADLINE_EXCEEDED
    return job.received_at + answer.account.total_s > job.deadline_at
