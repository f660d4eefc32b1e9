"""All of Edgewise's Prometheus metrics, fed by events and by readings taken at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

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
from agent.job import Answer, ErrorCode, Job, split_route

DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
DECISION_BUCKETS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2, 1e-1)

OUTCOMES = {
    ErrorCode.DEADLINE_EXCEEDED: "expired",
    ErrorCode.CANCELLED: "cancelled",
    ErrorCode.MODEL_ERROR: "failed",
    ErrorCode.ENDPOINT_ERROR: "failed",
    ErrorCode.INTERNAL: "failed",
}
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
        self.use_models(models)
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        build = Gauge("edgewise_build_info", "The running version.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        self._received = Counter(
            "edgewise_jobs_received", "Valid jobs taken in.", ["model", "intake"], registry=registry
        )
        self._jobs = Counter(
            "edgewise_jobs", "Jobs answered.", ["model", "route", "outcome"], registry=registry
        )
        self._decisions = Counter(
            "edgewise_decisions", "Decisions.", ["policy", "route", "reason"], registry=registry
        )
        self._decision_s = Histogram(
            "edgewise_decision_duration_seconds",
            "Time a decision took.",
            buckets=DECISION_BUCKETS,
            registry=registry,
        )
        self._job_s = Histogram(
            "edgewise_job_duration_seconds",
            "Time from receipt to answer.",
            ["model", "route"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._route_s = Histogram(
            "edgewise_route_duration_seconds",
            "Time an attempt ran on its route, without waiting.",
            ["model", "route"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._misses = Counter(
            "edgewise_deadline_misses",
            "Jobs not answered with a result by their deadline.",
            ["model", "route"],
            registry=registry,
        )
        self._estimate_error = Summary(
            "edgewise_estimate_error_seconds",
            "Absolute difference between an attempt's expected and actual latency.",
            ["model", "route"],
            registry=registry,
        )
        self._energy = Counter(
            "edgewise_energy_joules", "Energy jobs took, estimated.", ["route"], registry=registry
        )
        self._cost = Counter(
            "edgewise_cloud_cost", "Money spent at endpoints.", ["endpoint"], registry=registry
        )
        self._probe_bytes = Counter(
            "edgewise_probe_bytes",
            "Bytes that probes of an endpoint took, both ways.",
            ["endpoint"],
            registry=registry,
        )
        self._bad = Counter(
            "edgewise_bad_messages", "Messages that are no job.", ["reason"], registry=registry
        )
        self._policy_failures = Counter(
            "edgewise_policy_failures",
            "Decisions that a static rule took because the policy failed.",
            ["policy"],
            registry=registry,
        )
        self._shadow_decisions = Counter(
            "edgewise_shadow_decisions",
            "Decisions that a shadow policy would have taken.",
            ["policy", "route"],
            registry=registry,
        )
        self._shadow_agreement = Counter(
            "edgewise_shadow_agreement",
            "Of these, whether the route was the same as the one decided on.",
            ["policy", "agrees"],
            registry=registry,
        )
        self._shadow_cost = Counter(
            "edgewise_shadow_expected_cost",
            "Expected cost of what the shadow policy and of what the real one chose, in deadlines.",
            ["policy", "choice"],
            registry=registry,
        )
        self._shadow_failures = Counter(
            "edgewise_shadow_failures",
            "A shadow policy raised, overran or broke the rules.",
            ["policy"],
            registry=registry,
        )
        self._audits = Counter(
            "edgewise_audits",
            "Local answers that an endpoint was asked about, and whether it agreed.",
            ["model", "agrees"],
            registry=registry,
        )
        self._commit_s = Histogram(
            "edgewise_store_commit_duration_seconds",
            "Time the store took to commit.",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._restarts = Counter(
            "edgewise_worker_restarts", "Worker processes started again.", registry=registry
        )

    def observe(self, events: Events) -> None:
        """Count what happens."""
        events.subscribe(Received, self._on_received)
        events.subscribe(BadMessage, lambda event: self._bad.labels(event.reason).inc())
        events.subscribe(Decided, self._on_decided)
        events.subscribe(
            PolicyFailed, lambda event: self._policy_failures.labels(event.policy).inc()
        )
        events.subscribe(Shadowed, self._on_shadowed)
        events.subscribe(
            ShadowFailed, lambda event: self._shadow_failures.labels(event.policy).inc()
        )
        events.subscribe(Attempted, self._on_attempted)
        events.subscribe(Audited, self._on_audited)
        events.subscribe(Answered, self._on_answered)
        events.subscribe(
            Probed,
            lambda event: self._probe_bytes.labels(event.endpoint).inc(
                event.bytes_up + event.bytes_down
            ),
        )
        events.subscribe(Committed, lambda event: self._commit_s.observe(event.duration_s))

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
        self._route_s.labels(model, kind).observe(event.outcome.run_s)
        if event.energy_j is not None:
            self._energy.labels(kind).inc(event.energy_j)
        if endpoint and event.cost is not None:
            self._cost.labels(endpoint).inc(event.cost)
        expected_s = event.expected.latency_mean_s
        if event.outcome.error is None and expected_s is not None:
            error = abs(expected_s - event.latency_s)
            self._estimate_error.labels(model, kind).observe(error)

    def _on_audited(self, event: Audited) -> None:
        agrees = "unknown" if event.agrees is None else str(event.agrees).lower()
        self._audits.labels(self._model(event.job), agrees).inc()

    def _on_answered(self, event: Answered) -> None:
        model = self._model(event.job)
        account = event.answer.account
        route = account.route or NO_ROUTE
        self._jobs.labels(model, route, _outcome(event.answer)).inc()
        self._job_s.labels(model, route).observe(account.total_s)
        if _missed(event.job, event.answer):
            self._misses.labels(model, route).inc()

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


def _outcome(answer: Answer) -> str:
    return "succeeded" if answer.error is None else OUTCOMES.get(answer.error.code, "rejected")


def _missed(job: Job, answer: Answer) -> bool:
    if answer.error is not None:
        return answer.error.code is ErrorCode.DEADLINE_EXCEEDED
    return job.received_at + answer.account.total_s > job.deadline_at
