"""The rows of the device dashboard on what lies behind: for whoever wants to know why."""

from __future__ import annotations

from dashboards.layout import Row
from dashboards.panels import Words, line, named, state
from dashboards.queries import HERE, JOBS, Query, mean, narrowed, quantiles, rate, share

YES_IS_GOOD: Words = {"1": ("yes", "green"), "0": ("no", "red")}

ESTIMATES: Row = (
    "Are the estimates right, on which decisions rest?",
    [
        line(
            "Expected and actual latency",
            "Means of attempts that succeeded, waiting included. The closer the two lines of a "
            "route, the better its decisions.",
            "s",
            [
                Query(
                    rate(f"edgewise_{figure}_latency_seconds_total", "route")
                    + " / "
                    + rate("edgewise_estimate_error_seconds_count", "route"),
                    f"{{{{route}}}} {figure}",
                )
                for figure in ("expected", "actual")
            ],
            log=True,
        ),
        line(
            "Estimate error",
            "Mean absolute difference between an attempt's expected and actual latency.",
            "s",
            [
                Query(
                    mean("edgewise_estimate_error_seconds", "model, route", JOBS),
                    "{{model}} {{route}}",
                )
            ],
            log=True,
        ),
        line(
            "Attempts within their expected p95",
            "Of the latest 200 or so. About 95 % where the estimates know their own uncertainty.",
            "percentunit",
            [Query(f"edgewise_estimate_p95_coverage_ratio{HERE}", "{{route}}")],
            top=1,
        ),
    ],
)

DEVICE: Row = (
    "The device",
    [
        line(
            "Battery charge",
            "A device without a battery has no line.",
            "percentunit",
            [Query(f"edgewise_battery_charge_ratio{HERE}", "charge {{device}}")],
            top=1,
        ),
        line(
            "Battery: time left, and the goal",
            "Until empty at the present draw, while on battery; and until "
            "budget.battery_last_until. Below its goal, jobs that may wait do so.",
            "s",
            [
                Query(f"edgewise_battery_time_left_seconds{HERE}", "left {{device}}"),
                Query(f"edgewise_battery_goal_seconds{HERE}", "goal {{device}}"),
            ],
        ),
        line(
            "Power",
            "What the device draws, where a meter tells.",
            "watt",
            [Query(f"edgewise_power_watts{HERE}", "{{device}}")],
        ),
        line(
            "CPU",
            "Busy share of all cores; and of what Edgewise leaves, what others take.",
            "percentunit",
            [
                Query(f"edgewise_cpu_utilization_ratio{HERE}", "busy {{device}}"),
                Query(f"edgewise_cpu_contention_ratio{HERE}", "taken by others {{device}}"),
            ],
            top=1,
        ),
        line(
            "Heat",
            "Of the hottest CPU sensor.",
            "celsius",
            [Query(f"edgewise_cpu_temperature_celsius{HERE}", "{{device}}")],
        ),
        line(
            "Memory available",
            "That programs could get.",
            "bytes",
            [Query(f"edgewise_memory_available_bytes{HERE}", "{{device}}")],
        ),
    ],
)

NETWORK: Row = (
    "Network and endpoints",
    [
        line(
            "Round trip",
            "To each endpoint, learned from jobs and probes; a gap while nothing is known.",
            "s",
            [Query(f"edgewise_network_rtt_seconds{HERE}", "{{endpoint}}")],
            log=True,
        ),
        line(
            "Uplink",
            "Throughput to each endpoint, learned from jobs.",
            "Bps",
            [Query(f"edgewise_network_uplink_bytes_per_second{HERE}", "{{endpoint}}")],
        ),
        line(
            "Attempts by how they ended",
            "Each try of a route. failed and timed_out ones are tried again elsewhere while the "
            "deadline allows; called_off: another route was quicker, or the job was cancelled.",
            "reqps",
            [Query(rate("edgewise_attempts_total", "route, outcome"), "{{route}} {{outcome}}")],
            stack=True,
        ),
        state(
            "Endpoints: circuit closed",
            "No: left alone after repeated failures; jobs go elsewhere, and single ones try "
            "whether it is back.",
            [Query(f"1 - edgewise_endpoint_circuit_open{HERE}", "{{device}} {{endpoint}}")],
            YES_IS_GOOD,
        ),
        state(
            "Endpoints: reachable",
            "Whether it answered when a job or a probe last asked.",
            [Query(f"edgewise_endpoint_reachable{HERE}", "{{device}} {{endpoint}}")],
            YES_IS_GOOD,
        ),
    ],
)

POLICIES: Row = (
    "Policies",
    [
        line(
            "Shadows: share that agrees",
            "How often a shadow policy would have taken the same route. No line: policy.shadow is "
            "not set.",
            "percentunit",
            [
                Query(
                    share(
                        "edgewise_shadow_agreement_total",
                        "edgewise_shadow_decisions_total",
                        "policy",
                        narrowed(HERE, agrees="true"),
                        HERE,
                    ),
                    "{{policy}}",
                )
            ],
            top=1,
        ),
        line(
            "Shadows: expected cost",
            "Of what a shadow would have chosen, as a multiple of what was chosen; below 1 it "
            "would have been cheaper, by the estimates.",
            "short",
            [
                Query(
                    rate(
                        "edgewise_shadow_expected_cost_total",
                        "policy",
                        narrowed(HERE, choice="shadow"),
                    )
                    + " / "
                    + rate(
                        "edgewise_shadow_expected_cost_total",
                        "policy",
                        narrowed(HERE, choice="real"),
                    ),
                    "{{policy}}",
                )
            ],
            log=True,
        ),
        line(
            "Shadows: where they would send jobs",
            "Decisions of the shadow policies, which have no effect.",
            "reqps",
            [
                Query(
                    rate("edgewise_shadow_decisions_total", "policy, route"), "{{policy}} {{route}}"
                )
            ],
            stack=True,
        ),
        line(
            "Hedges",
            "Jobs sent on a second route since the first was late, by whether that was quicker.",
            "reqps",
            [Query(rate("edgewise_hedges_total", "outcome"), "{{outcome}}")],
            stack=True,
        ),
        line(
            "Audits of local answers",
            "Confident local answers that the cloud was asked about afterwards, by whether it "
            "agreed. No line: no policy asks.",
            "reqps",
            [Query(rate("edgewise_audits_total", "agrees"), "agrees: {{agrees}}")],
            stack=True,
        ),
        line(
            "Decisions by policy",
            "Which policy decided. More than one in the time range: it was switched.",
            "reqps",
            [Query(rate("edgewise_decisions_total", "policy"), "{{policy}}")],
            stack=True,
        ),
        line(
            "Time to decide",
            "That the policy takes for a decision, on the daemon's event loop.",
            "s",
            quantiles("edgewise_decision_duration_seconds", "device", HERE),
        ),
        line(
            "Policy failures",
            "Decisions that a static rule took, since the policy raised, overran or gave an "
            "impossible plan; and failures of shadows, which have no effect. No line: none.",
            "reqps",
            [
                Query(rate("edgewise_policy_failures_total", "policy"), "{{policy}}"),
                Query(rate("edgewise_shadow_failures_total", "policy"), "shadow {{policy}}"),
            ],
        ),
    ],
)

SERVICE: Row = (
    "The service itself",
    [
        line(
            "Jobs taken in",
            "By the way they came.",
            "reqps",
            [Query(rate("edgewise_jobs_received_total", "intake", JOBS), "{{intake}}")],
            stack=True,
        ),
        line(
            "Messages that are no job",
            "By what is wrong with them; the log says more.",
            "reqps",
            [Query(rate("edgewise_bad_messages_total", "reason"), "{{reason}}")],
            stack=True,
        ),
        line(
            "Worker restarts",
            "Processes that run models and were started again, in the last five minutes: a model "
            "crashed or hung.",
            "short",
            [
                Query(
                    f"sum by (device) (increase(edgewise_worker_restarts_total{HERE}[5m]))",
                    "{{device}}",
                )
            ],
        ),
        line(
            "Store: time of a commit",
            "How long the disk takes. Answers wait for it.",
            "s",
            quantiles("edgewise_store_commit_duration_seconds", "device", HERE),
        ),
        line(
            "CPU that the daemon takes",
            "Of one core, without its worker processes.",
            "percentunit",
            [
                Query(
                    f"rate(process_cpu_seconds_total{HERE}[$__rate_interval])"
                    f" and on (device, instance) edgewise_build_info{HERE}",
                    "{{device}}",
                )
            ],
        ),
        line(
            "Memory that the daemon takes",
            "Resident, without its worker processes.",
            "bytes",
            [
                Query(
                    f"process_resident_memory_bytes{HERE}"
                    f" and on (device, instance) edgewise_build_info{HERE}",
                    "{{device}}",
                )
            ],
        ),
        state(
            "Connected to the broker",
            "Connected and subscribed.",
            [Query(f"edgewise_mqtt_connected{HERE}", "{{device}}")],
            YES_IS_GOOD,
        ),
        named(
            "Version",
            "Of the chosen daemons.",
            f"count by (version) (edgewise_build_info{HERE})",
            "{{version}}",
        ),
    ],
)
