"""Writes edgewise.json, the Grafana dashboard: `python dashboard.py`, with the package below.

The dashboard is kept as this program because a change to it can be read here, and can't there.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["grafana-foundation-sdk==1769699379!11.6.0"]
# ///

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model

OUT = Path(__file__).with_name("edgewise.json")
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24

# What the template variables choose. Metrics that tell models apart are narrowed by model as well.
HERE = '{device=~"$device", instance=~"$instance"}'
JOBS = '{device=~"$device", instance=~"$instance", model=~"$model"}'

Query = tuple[str, str]  # PromQL, legend
Words = dict[str, tuple[str, str]]  # by value: the word that stands for it, and its colour

CONNECTED: Words = {"1": ("yes", "green"), "0": ("no", "red")}


def rate(metric: str, by: str, of: str = HERE) -> str:
    """Give the PromQL for a counter's rate, summed over all labels but `by`."""
    return f"sum by ({by}) (rate({metric}{of}[$__rate_interval]))"


def quantiles(metric: str, by: str, of: str) -> list[Query]:
    """Give the queries for a histogram's p50, p95 and p99, for each value of the label `by`."""
    buckets = rate(f"{metric}_bucket", f"le, {by}", of)
    return [
        (f"histogram_quantile({q / 100}, {buckets})", f"{{{{{by}}}}} p{q}") for q in (50, 95, 99)
    ]


def targets(queries: list[Query], *, instant: bool = False) -> list[prometheus.Dataquery]:
    """Give the queries as a panel takes them."""
    made = []
    for letter, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend)
        made.append(query.instant() if instant else query.range())
    return made


def line(
    title: str, text: str, unit: str, queries: list[Query], *, stack: bool = False, top: float = 0
) -> timeseries.Panel:
    """Make a panel of lines over time. `top` is the scale's fixed end, 0 for none."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .targets(targets(queries))
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stack else 5)
        .show_points(look.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(look.LegendDisplayMode.LIST)
            .placement(look.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(look.TooltipDisplayMode.MULTI)
            .sort(look.SortOrder.DESCENDING)
        )
    )
    if stack:
        panel = panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    return panel.max(top) if top else panel


def number(
    title: str,
    text: str,
    unit: str,
    expression: str,
    *,
    legend: str = "",
    reading: Words | None = None,
) -> stat.Panel:
    """Make a panel of the present value; with a `legend`, of one value for each series."""
    mode = look.BigValueTextMode.VALUE_AND_NAME if legend else look.BigValueTextMode.VALUE
    panel = (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .targets(targets([(expression, legend)], instant=True))
        .unit(unit)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color("text"))
        .color_mode(look.BigValueColorMode.VALUE)
        .graph_mode(look.BigValueGraphMode.NONE)
        .text_mode(mode)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return panel.mappings([words(reading)]) if reading else panel


def state(title: str, text: str, queries: list[Query], reading: Words) -> statetimeline.Panel:
    """Make a panel that shows when something was so, and when not."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .targets(targets(queries))
        .mappings([words(reading)])
        .merge_values(True)
        .show_value(look.VisibilityMode.NEVER)
        .row_height(0.8)
    )


def words(reading: Words) -> model.ValueMap:
    """Give the words as a panel takes them."""
    return model.ValueMap(
        {
            value: model.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(reading.items())
        }
    )


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Make a template variable. All of its values is `.*`: targets without that label count too."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": f"variable-{name}"})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


SUCCEEDED = JOBS.replace("}", ', outcome="succeeded"}')
LOCAL = JOBS.replace("}", ', route="local"}')

ROWS: dict[str, tuple[int, list[timeseries.Panel | stat.Panel | statetimeline.Panel]]] = {
    "Now": (
        4,
        [
            number(
                "Jobs answered",
                "In the chosen time range.",
                "short",
                f"sum(increase(edgewise_jobs_total{JOBS}[$__range]))",
            ),
            number(
                "Succeeded",
                "Share of the jobs in the chosen time range that were answered with a result.",
                "percentunit",
                f"sum(increase(edgewise_jobs_total{SUCCEEDED}[$__range]))"
                f" / sum(increase(edgewise_jobs_total{JOBS}[$__range]))",
            ),
            number(
                "Answered on the device",
                "Share of the jobs in the chosen time range that the local route answered.",
                "percentunit",
                f"sum(increase(edgewise_jobs_total{LOCAL}[$__range]))"
                f" / sum(increase(edgewise_jobs_total{JOBS}[$__range]))",
            ),
            number(
                "Cloud cost",
                "In the chosen time range, in the currency of the endpoints' prices.",
                "short",
                f"sum(increase(edgewise_cloud_cost_total{HERE}[$__range]))",
            ),
            number(
                "Connected to the broker",
                "No when any of the chosen daemons is not.",
                "short",
                f"min(edgewise_mqtt_connected{HERE})",
                reading=CONNECTED,
            ),
            number(
                "Daemons by version",
                "How many of the chosen run each version.",
                "short",
                f"count by (version) (edgewise_build_info{HERE})",
                legend="{{version}}",
            ),
        ],
    ),
    "Jobs": (
        8,
        [
            line(
                "Jobs by route",
                "Jobs answered, by the route of the answer; none: answered without a route.",
                "reqps",
                [(rate("edgewise_jobs_total", "route", JOBS), "{{route}}")],
                stack=True,
            ),
            line(
                "Outcomes",
                "Jobs answered, by how they ended.",
                "reqps",
                [(rate("edgewise_jobs_total", "outcome", JOBS), "{{outcome}}")],
                stack=True,
            ),
            line(
                "Job latency",
                "From receipt to answer, by the route of the answer.",
                "s",
                quantiles("edgewise_job_duration_seconds", "route", JOBS),
            ),
            line(
                "Time on the route",
                "How long attempts ran, without waiting; failed attempts count.",
                "s",
                quantiles("edgewise_route_duration_seconds", "route", JOBS),
            ),
            line(
                "Deadline misses",
                "Jobs not answered with a result by their deadline.",
                "reqps",
                [
                    (
                        rate("edgewise_deadline_misses_total", "model, route", JOBS),
                        "{{model}} {{route}}",
                    )
                ],
                stack=True,
            ),
            line(
                "Waiting and running",
                "Jobs that wait for a route, and jobs on each route.",
                "short",
                [
                    (f"sum(edgewise_jobs_waiting{HERE})", "waiting"),
                    (f"sum by (route) (edgewise_jobs_running{HERE})", "running {{route}}"),
                ],
            ),
        ],
    ),
    "Decisions": (
        8,
        [
            line(
                "Decisions by reason",
                "Each attempt is a decision, so a job that was tried twice counts twice.",
                "reqps",
                [
                    (
                        rate("edgewise_decisions_total", "route, reason"),
                        "{{route}}: {{reason}}",
                    )
                ],
                stack=True,
            ),
            line(
                "Estimate error",
                "Mean absolute difference between expected and actual latency of attempts.",
                "s",
                [
                    (
                        rate("edgewise_estimate_error_seconds_sum", "model, route", JOBS)
                        + " / "
                        + rate("edgewise_estimate_error_seconds_count", "model, route", JOBS),
                        "{{model}} {{route}}",
                    )
                ],
            ),
            line(
                "Time to decide",
                "How long the policy took.",
                "s",
                quantiles("edgewise_decision_duration_seconds", "instance", HERE),
            ),
            line(
                "Policy failures",
                "Decisions that the static rule took because the policy failed.",
                "reqps",
                [(rate("edgewise_policy_failures_total", "policy"), "{{policy}}")],
            ),
        ],
    ),
    "Device": (
        8,
        [
            line(
                "Battery",
                "Charge; a device without a battery has no line.",
                "percentunit",
                [(f"edgewise_battery_charge_ratio{HERE}", "{{instance}}")],
                top=1,
            ),
            state(
                "On battery",
                "While discharging.",
                [(f"edgewise_battery_discharging{HERE}", "{{instance}}")],
                {"1": ("on battery", "orange"), "0": ("charging or full", "green")},
            ),
            line(
                "CPU",
                "Busy share of all cores.",
                "percentunit",
                [(f"edgewise_cpu_utilization_ratio{HERE}", "{{instance}}")],
                top=1,
            ),
            line(
                "Power jobs take",
                "Energy that jobs took in each second, estimated, by route.",
                "watt",
                [(rate("edgewise_energy_joules_total", "route"), "{{route}}")],
                stack=True,
            ),
        ],
    ),
    "Network and cloud": (
        8,
        [
            line(
                "Round trip",
                "To each endpoint, by a TCP handshake; a gap while it can't be reached.",
                "s",
                [(f"edgewise_network_rtt_seconds{HERE}", "{{instance}} {{endpoint}}")],
            ),
            state(
                "Network",
                "Whether any endpoint can be reached.",
                [(f"edgewise_network_up{HERE}", "{{instance}}")],
                {"1": ("up", "green"), "0": ("down", "red")},
            ),
            state(
                "Circuits",
                "Open while an endpoint is left alone after repeated failures.",
                [(f"edgewise_endpoint_circuit_open{HERE}", "{{instance}} {{endpoint}}")],
                {"1": ("open", "red"), "0": ("closed", "green")},
            ),
            line(
                "Cloud cost per hour",
                "In the currency of the endpoints' prices.",
                "short",
                [
                    (
                        f"3600 * {rate('edgewise_cloud_cost_total', 'endpoint')}",
                        "{{endpoint}}",
                    )
                ],
                stack=True,
            ),
        ],
    ),
    "Service": (
        8,
        [
            state(
                "Connected to the broker",
                "Connected and subscribed.",
                [(f"edgewise_mqtt_connected{HERE}", "{{instance}}")],
                CONNECTED,
            ),
            line(
                "Jobs taken in",
                "By the way they came.",
                "reqps",
                [(rate("edgewise_jobs_received_total", "intake", JOBS), "{{intake}}")],
                stack=True,
            ),
            line(
                "Messages that are no job",
                "By what is wrong with them.",
                "reqps",
                [(rate("edgewise_bad_messages_total", "reason"), "{{reason}}")],
                stack=True,
            ),
            line(
                "Worker restarts",
                "Worker processes started again, in the last five minutes.",
                "short",
                [
                    (
                        f"sum by (instance) (increase(edgewise_worker_restarts_total{HERE}[5m]))",
                        "{{instance}}",
                    )
                ],
            ),
        ],
    ),
}


def build() -> model.Dashboard:
    """Make the dashboard."""
    made = (
        dashboard.Dashboard("Edgewise")
        .uid("edgewise")
        .description("Where inference jobs run, why, and how that goes.")
        .tags(["edgewise"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
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
    for title, (height, panels) in ROWS.items():
        made = made.with_row(dashboard.Row(title))
        # Rows of up to six numbers, and of two graphs.
        width = WIDTH // len(panels) if isinstance(panels[0], stat.Panel) else WIDTH // 2
        for panel in panels:
            made = made.with_panel(panel.height(height).span(width))
    return made.build()


def encode(made: model.Dashboard) -> str:
    """Give the dashboard's JSON, with the numbers of its panels, which Grafana wants."""
    content = json.loads(json.dumps(made, cls=JSONEncoder))
    for number, panel in enumerate(content["panels"], start=1):
        panel["id"] = number
    return json.dumps(content, indent=2) + "\n"


if __name__ == "__main__":
    OUT.write_text(encode(build()), encoding="utf-8")
