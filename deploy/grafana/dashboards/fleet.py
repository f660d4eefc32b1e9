"""The dashboard of all devices: which of them needs a look, and how they compare."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from dashboards.encode import Annotation, annotation
from dashboards.layout import Row, choice, laid_out
from dashboards.panels import bars, grid, line, number
from dashboards.queries import Query, narrowed, rate, share, total

HERE = '{device=~"$device"}'
UP = 'up{job="edgewise", device=~"$device"}'
ALARMS = '{alertstate="firing", device=~"$device"}'
MANY = 10
ONE_DEVICE = "/d/edgewise?var-device=${__value.raw}&${__url_time_range}"

MISSED = share("edgewise_deadline_misses_total", "edgewise_jobs_total", "device", HERE, HERE)
LOCAL = share(
    "edgewise_jobs_total",
    "edgewise_jobs_total",
    "device",
    narrowed(HERE, route="local", outcome="succeeded"),
    narrowed(HERE, outcome="succeeded"),
)
P95 = (
    f"histogram_quantile(0.95, {rate('edgewise_job_duration_seconds_bucket', 'le, device', HERE)})"
)
LAST_READ = f"max by (device) (max_over_time(timestamp(edgewise_build_info{HERE})[$__range:]))"
BACKLOG = 'sum by (device) (edgewise_store_jobs{device=~"$device", state!~"published|running"})'

NOW: Row = (
    "The fleet now",
    [
        number("Devices", "That Prometheus is set up to read.", "short", f"count({UP})"),
        number(
            "Offline",
            "That can't be read now: the daemon, the device or the way to it is down.",
            "short",
            f"count({UP} == 0) or vector(0)",
            limits=((None, "green"), (1, "red")),
        ),
        number(
            "Without a broker",
            "That run, and are not connected to their MQTT broker.",
            "short",
            f"count(edgewise_mqtt_connected{HERE} == 0) or vector(0)",
            limits=((None, "green"), (1, "red")),
        ),
        number(
            "Alerts firing",
            "By deploy/prometheus/alerts.yml.",
            "short",
            f"count(ALERTS{ALARMS}) or vector(0)",
            limits=((None, "green"), (1, "red")),
        ),
        number(
            "Jobs answered",
            "In the chosen time range.",
            "short",
            total("edgewise_jobs_total", HERE),
            decimals=0,
        ),
        number(
            "Deadlines kept",
            "Share of the jobs in the chosen time range that were not late.",
            "percentunit",
            f"1 - {total('edgewise_deadline_misses_total', HERE)}"
            f" / {total('edgewise_jobs_total', HERE)}",
            limits=((None, "red"), (0.95, "orange"), (0.99, "green")),
            decimals=1,
        ),
        number(
            "Cloud cost",
            "In the chosen time range, in the currency of the endpoints' prices.",
            "short",
            total("edgewise_cloud_cost_total", HERE),
        ),
    ],
)

ATTENTION: Row = (
    "Which devices need a look?",
    [
        grid(
            "Offline devices",
            "That can't be read now, and for how long since they were last read in the chosen time "
            "range.",
            [
                (
                    "Last read",
                    "s",
                    f"time() - {LAST_READ} and on (device) {UP} == 0",
                )
            ],
            by="device",
            link=ONE_DEVICE,
            no_value="none",
        ),
        grid(
            "Alerts firing",
            "docs/runbook.md tells what each means, and what to do.",
            [("Firing", "short", f"sum by (device, alertname, severity) (ALERTS{ALARMS})")],
            by="device",
            link=ONE_DEVICE,
            no_value="none",
        ),
        bars(
            "Most deadlines missed",
            f"The {MANY} devices with the greatest share of late jobs in the chosen time range.",
            "percentunit",
            Query(
                f"topk({MANY}, sum by (device) (increase(edgewise_deadline_misses_total{HERE}"
                f"[$__range])) / sum by (device) (increase(edgewise_jobs_total{HERE}[$__range])))",
                "{{device}}",
            ),
            top=1,
        ),
        bars(
            "Lowest batteries",
            f"Charge of the {MANY} that have least.",
            "percentunit",
            Query(f"bottomk({MANY}, edgewise_battery_charge_ratio{HERE})", "{{device}}"),
            top=1,
        ),
    ],
)

COMPARED: Row = (
    "All devices",
    [
        grid(
            "Devices",
            "A click on a device leads to its own dashboard.",
            [
                ("Online", "bool_yes_no", f"max by (device) ({UP})"),
                ("Jobs", "reqps", rate("edgewise_jobs_total", "device", HERE)),
                ("Late", "percentunit", MISSED),
                ("On the device", "percentunit", LOCAL),
                ("p95", "s", P95),
                ("Backlog", "short", BACKLOG),
                (
                    "Money per hour",
                    "short",
                    f"3600 * {rate('edgewise_cloud_cost_total', 'device', HERE)}",
                ),
                (
                    "Battery",
                    "percentunit",
                    f"max by (device) (edgewise_battery_charge_ratio{HERE})",
                ),
                (
                    "Circuits open",
                    "short",
                    f"sum by (device) (edgewise_endpoint_circuit_open{HERE})",
                ),
            ],
            by="device",
            link=ONE_DEVICE,
        ),
    ],
)

OVER_TIME: Row = (
    "Over time",
    [
        line(
            "Jobs by device",
            f"Jobs answered, of the {MANY} busiest.",
            "reqps",
            [Query(f"topk({MANY}, {rate('edgewise_jobs_total', 'device', HERE)})", "{{device}}")],
            stack=True,
        ),
        line(
            "Jobs by route",
            "Of all chosen devices together.",
            "reqps",
            [Query(rate("edgewise_jobs_total", "route", HERE), "{{route}}")],
            stack=True,
        ),
        line(
            "Jobs that missed their deadline",
            f"Share of all jobs, of the {MANY} worst.",
            "percentunit",
            [Query(f"topk({MANY}, {MISSED})", "{{device}}")],
        ),
        line(
            "p95 latency",
            f"From receipt to answer of jobs that succeeded, of the {MANY} slowest.",
            "s",
            [Query(f"topk({MANY}, {P95})", "{{device}}")],
        ),
        line(
            "Money per hour",
            f"What endpoints are paid at the present rate, for the {MANY} dearest.",
            "short",
            [
                Query(
                    f"topk({MANY}, 3600 * {rate('edgewise_cloud_cost_total', 'device', HERE)})",
                    "{{device}}",
                )
            ],
            stack=True,
        ),
        line(
            "Backlog",
            f"Jobs that wait on a device, or answers for their broker; the {MANY} longest.",
            "short",
            [Query(f"topk({MANY}, {BACKLOG})", "{{device}}")],
        ),
    ],
)

ROWS = (NOW, ATTENTION, COMPARED, OVER_TIME)


def build() -> tuple[model.Dashboard, list[Annotation]]:
    """Make the dashboard."""
    made = (
        dashboard.Dashboard("Edgewise: all devices")
        .uid("edgewise-fleet")
        .description("Which devices need a look, and how they compare.")
        .tags(["edgewise"])
        .time("now-6h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(choice("device", "Device", 'label_values(up{job="edgewise"}, device)'))
    )
    marks = [annotation("Alert", "purple", f"ALERTS{ALARMS}", "{{alertname}} on {{device}}")]
    return laid_out(made, ROWS).build(), marks
