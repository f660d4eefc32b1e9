"""The dashboard of a device: its rows answer the questions that stand over them."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from dashboards.encode import Annotation, annotation
from dashboards.layout import Row, choice, laid_out
from dashboards.panels import Words, line, named, note, number, state
from dashboards.queries import HERE, JOBS, Query, mean, narrowed, quantiles, rate, share, total
from dashboards.workings import DEVICE, ESTIMATES, NETWORK, POLICIES, SERVICE

UID = "edgewise"
CLOUD = narrowed(HERE, route="cloud")
ALARMS = '{alertstate="firing", device=~"$device"}'
HAPPENS: Words = {"1": ("yes", "orange"), "0": ("no", "transparent")}

READ_ME = (
    "A program submits a **job**; the **policy** decides for each whether the device's own model "
    "answers it (**local**, blue) or an endpoint (**cloud**, orange); **none**: it was answered "
    "with an error before any route was taken. Marks on the time axes: the policy was switched, a "
    "circuit was open, the network was down, an alert fired, the daemon started. Dots in the "
    "latency panel are single jobs; `edgewise explain JOB_ID` tells all of one."
)

AT_A_GLANCE: Row = (
    "At a glance",
    [
        number(
            "Jobs answered",
            "In the chosen time range, results and errors.",
            "none",
            total("edgewise_jobs_total", JOBS),
            decimals=0,
        ),
        number(
            "Deadlines kept",
            "Share of the jobs in the chosen time range that were not late; an error in time is "
            "not late either, see Succeeded. A job names its own deadline, or has "
            "limits.default_deadline_ms.",
            "percentunit",
            f"1 - {total('edgewise_deadline_misses_total', JOBS)}"
            f" / {total('edgewise_jobs_total', JOBS)}",
            limits=((None, "red"), (0.95, "orange"), (0.99, "green")),
            decimals=1,
        ),
        number(
            "Succeeded",
            "Share of the jobs in the chosen time range that were answered with a result.",
            "percentunit",
            f"{total('edgewise_jobs_total', narrowed(JOBS, outcome='succeeded'))}"
            f" / {total('edgewise_jobs_total', JOBS)}",
            limits=((None, "red"), (0.95, "orange"), (0.99, "green")),
            decimals=1,
        ),
        number(
            "Answered on the device",
            "Share of the jobs in the chosen time range that succeeded on the local route; the "
            "others did so in the cloud.",
            "percentunit",
            total("edgewise_jobs_total", narrowed(JOBS, route="local", outcome="succeeded"))
            + " / "
            + total("edgewise_jobs_total", narrowed(JOBS, outcome="succeeded")),
            decimals=1,
        ),
        number(
            "Cloud cost",
            "In the chosen time range, in the currency of the endpoints' prices.",
            "short",
            total("edgewise_cloud_cost_total"),
        ),
        number(
            "Energy",
            "What jobs took of the device in the chosen time range, estimated, or measured where "
            "the device has a meter.",
            "joule",
            total("edgewise_energy_joules_total"),
        ),
        named(
            "Policy in force",
            "What decides now. Marks on the graphs show when it was switched.",
            f"edgewise_policy_info{narrowed(HERE, role='decides')}",
            "{{policy}}",
        ),
        number(
            "Alerts firing",
            "Of the chosen devices, by deploy/prometheus/alerts.yml.",
            "short",
            f"count(ALERTS{ALARMS}) or vector(0)",
            limits=((None, "green"), (1, "red")),
        ),
    ],
)

ROUTES: Row = (
    "Where do jobs go, and why?",
    [
        note(READ_ME),
        line(
            "Jobs by route",
            "Jobs answered, by the route that they were answered on. Look at the same time in the "
            "panels beside and below for why it changed.",
            "reqps",
            [Query(rate("edgewise_jobs_total", "route", JOBS), "{{route}}")],
            stack=True,
        ),
        line(
            "Decisions by reason",
            "Why the policy chose as it did. expected_cost: the cheapest in time, misses, energy "
            "and money together; only_route: the others were closed; fallback: the preferred one "
            "was; retry: an attempt failed; escalated: a local answer was too doubtful; "
            "exploration: in part to learn; rejected: no route was worth it, or in time; "
            "policy_failed: a static rule stood in. Each attempt is a decision, so a job that was "
            "tried twice counts twice.",
            "reqps",
            [Query(rate("edgewise_decisions_total", "route, reason"), "{{route}}: {{reason}}")],
            stack=True,
        ),
        state(
            "What was going on",
            "What makes policies decide otherwise, on the same time axis. A coloured bar: it was "
            "so. Sensors that the device lacks have no line.",
            [
                Query(f"edgewise_policy_info{narrowed(HERE, role='decides')}", "policy {{policy}}"),
                Query(f"edgewise_endpoint_circuit_open{HERE}", "circuit of {{endpoint}} open"),
                Query(f"1 - edgewise_endpoint_reachable{HERE}", "{{endpoint}} unreachable"),
                Query(
                    f"edgewise_network_rtt_seconds{HERE} > bool "
                    f"3 * quantile_over_time(0.5, edgewise_network_rtt_seconds{HERE}[1h])",
                    "{{endpoint}} slower than usual",
                ),
                Query(f"1 - edgewise_network_up{HERE}", "network down"),
                Query(f"edgewise_network_metered{HERE}", "link is metered"),
                Query(f"edgewise_battery_discharging{HERE}", "on battery"),
                Query(f"edgewise_battery_charge_ratio{HERE} < bool 0.2", "battery below 20 %"),
                Query(f"edgewise_cpu_contention_ratio{HERE} > bool 0.5", "CPU taken by others"),
                Query(f"edgewise_thermal_pressure_ratio{HERE} >= bool 1", "too hot"),
                Query(f"edgewise_budget_used_ratio{HERE} >= bool 1", "{{budget}} used up"),
                Query(f"edgewise_paused{HERE}", "paused"),
                Query(f"1 - edgewise_mqtt_connected{HERE}", "no broker"),
                Query(f"1 - edgewise_store_writable{HERE}", "disk fails"),
            ],
            HAPPENS,
        ),
    ],
)

DEADLINES: Row = (
    "Are deadlines kept?",
    [
        line(
            "Jobs that missed their deadline",
            "Share of all jobs of a model: answered too late, or with no result by then. What "
            "ended earlier with an error is among the outcomes beside.",
            "percentunit",
            [
                Query(
                    share(
                        "edgewise_deadline_misses_total", "edgewise_jobs_total", "model", JOBS, JOBS
                    ),
                    "{{model}}",
                )
            ],
        ),
        line(
            "Outcomes",
            "Jobs answered, by how they ended. expired: no result by the deadline; rejected: bad "
            "input, no room or no route.",
            "reqps",
            [Query(rate("edgewise_jobs_total", "outcome", JOBS), "{{outcome}}")],
            stack=True,
        ),
        line(
            "Latency of jobs that succeeded",
            "From receipt to answer, by the route of the answer. Quantiles are interpolated in "
            "wide buckets, the mean is exact. Dots are single jobs: point at one for its id.",
            "s",
            [
                *quantiles("edgewise_job_duration_seconds", "route", JOBS),
                Query(mean("edgewise_job_duration_seconds", "route", JOBS), "{{route}} mean"),
            ],
            log=True,
            exemplars=True,
        ),
        line(
            "Time on the route",
            "Mean time of an attempt without waiting, of failed ones too. Much below the mean "
            "latency: jobs wait.",
            "s",
            [
                Query(
                    mean("edgewise_route_duration_seconds", "model, route", JOBS),
                    "{{model}} {{route}}",
                )
            ],
            log=True,
        ),
        line(
            "Waiting and running",
            "Jobs in the routes' queues, and jobs on each route.",
            "short",
            [
                Query(f"sum(edgewise_jobs_waiting{HERE})", "waiting"),
                Query(f"sum by (route) (edgewise_jobs_running{HERE})", "running {{route}}"),
            ],
        ),
        line(
            "Backlog",
            "Jobs in the store that are not over: deferred ones wait for a route to open, answered "
            "ones for the broker to take the answer.",
            "short",
            [
                Query(
                    'sum by (state) (edgewise_store_jobs{device=~"$device", '
                    'instance=~"$instance", state!="published"})',
                    "{{state}}",
                )
            ],
            stack=True,
        ),
    ],
)

COSTS: Row = (
    "What does it cost?",
    [
        line(
            "Money per hour",
            "What endpoints are paid at the present rate, in the currency of their prices.",
            "short",
            [Query(f"3600 * {rate('edgewise_cloud_cost_total', 'endpoint')}", "{{endpoint}}")],
            stack=True,
        ),
        line(
            "Power that jobs take",
            "Energy in each second, by route. The cloud's is that of the device's radio.",
            "watt",
            [Query(rate("edgewise_energy_joules_total", "route"), "{{route}}")],
            stack=True,
        ),
        line(
            "Energy of an attempt",
            "Mean, by route: what the device gives to answer one job here or there.",
            "joule",
            [
                Query(
                    rate("edgewise_energy_joules_total", "route")
                    + " / "
                    + rate("edgewise_attempts_total", "route"),
                    "{{route}}",
                )
            ],
        ),
        line(
            "Money of a cloud attempt",
            "Mean of what endpoints are paid for one, in the currency of their prices.",
            "short",
            [
                Query(
                    f"sum(rate(edgewise_cloud_cost_total{HERE}[$__rate_interval])) / "
                    f"sum(rate(edgewise_attempts_total{CLOUD}[$__rate_interval]))",
                    "cloud",
                )
            ],
        ),
        line(
            "Bytes to and from endpoints",
            "In each second, both ways: of jobs by model, and of probes, which ask an endpoint "
            "whether it is there while no job goes to it.",
            "Bps",
            [
                Query(
                    rate("edgewise_cloud_bytes_total", "endpoint, model"), "{{endpoint}} {{model}}"
                ),
                Query(rate("edgewise_probe_bytes_total", "endpoint"), "{{endpoint}} probes"),
            ],
        ),
        line(
            "Budgets left",
            "Of the limits under [budget], for the present day or hour. At 0 the routes that would "
            "take more are closed. No line: no limit is set.",
            "percentunit",
            [Query(f"1 - edgewise_budget_used_ratio{HERE}", "{{budget}}")],
            top=1,
        ),
    ],
)

ROWS = (AT_A_GLANCE, ROUTES, DEADLINES, COSTS, ESTIMATES, DEVICE, NETWORK, POLICIES, SERVICE)


def annotations() -> list[Annotation]:
    """Give what is marked on the time axes."""
    policy = f"edgewise_policy_info{narrowed(HERE, role='decides')}"
    return [
        annotation(
            "Policy switched", "blue", f"{policy} unless {policy} offset 1m", "now {{policy}}"
        ),
        annotation(
            "Circuit open", "red", f"edgewise_endpoint_circuit_open{HERE} == 1", "of {{endpoint}}"
        ),
        annotation("Network down", "dark-red", f"edgewise_network_up{HERE} == 0", "{{device}}"),
        annotation("Alert", "purple", f"ALERTS{ALARMS}", "{{alertname}}"),
        annotation(
            "Daemon started",
            "green",
            f"1000 * process_start_time_seconds{HERE}"
            f" and on (device, instance) edgewise_build_info{HERE}",
            "{{device}}",
            useValueForTime=True,
        ),
    ]


def build() -> tuple[model.Dashboard, list[Annotation]]:
    """Make the dashboard."""
    made = (
        dashboard.Dashboard("Edgewise: device")
        .uid(UID)
        .description("Where inference jobs run, why, and how that goes.")
        .tags(["edgewise"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("All devices")
            .type(model.DashboardLinkType.LINK)
            .url("/d/edgewise-fleet")
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(choice("device", "Device", "label_values(edgewise_build_info, device)"))
        .with_variable(
            choice(
                "instance",
                "Instance",
                'label_values(edgewise_build_info{device=~"$device"}, instance)',
            )
        )
        .with_variable(
            choice("model", "Model", f"label_values(edgewise_jobs_received_total{HERE}, model)")
        )
    )
    return laid_out(made, ROWS).build(), annotations()
