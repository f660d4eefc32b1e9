"""The kinds of panels, all alike in their looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from dashboards.queries import Query

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

Words = dict[str, tuple[str, str]]  # by value: the word that stands for it, and its colour
Panel = (
    timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel | text.Panel | bargauge.Panel
)

# The same thing has the same colour in every panel.
COLORS = {
    "{{route}}": {"local": "blue", "cloud": "orange", "none": "#8e8e8e"},
    "{{outcome}}": {
        "succeeded": "green",
        "failed": "red",
        "expired": "dark-orange",
        "timed_out": "dark-orange",
        "rejected": "purple",
        "cancelled": "#8e8e8e",
        "called_off": "#8e8e8e",
    },
}

# Lines of one colour, told apart by how they are drawn.
STYLES = (
    ("p50", {"fill": "dash", "dash": [2, 4]}, 1),
    ("p95", {"fill": "solid"}, 2),
    ("p99", {"fill": "solid"}, 1),
    ("mean", {"fill": "dash", "dash": [10, 6]}, 2),
    ("expected", {"fill": "dash", "dash": [10, 6]}, 2),
)


def targets(
    queries: Iterable[Query], *, instant: bool = False, exemplars: bool = False
) -> list[prometheus.Dataquery]:
    """Give the queries as a panel takes them."""
    made = []
    for letter, (expression, legend) in zip(ascii_uppercase, queries, strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend)
        query = query.instant() if instant else query.range()
        made.append(query.exemplar(True) if exemplars else query)
    return made


def line(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    stack: bool = False,
    top: float = 0,
    log: bool = False,
    exemplars: bool = False,
) -> timeseries.Panel:
    """Make a panel of lines over time.

    Args:
        title: The title.
        description: What the lines are, and what to make of them.
        unit: Grafana's name of the unit.
        queries: One or several lines each.
        stack: Lay the lines on top of each other.
        top: The scale's fixed end; 0 for none.
        log: Show what is small beside what is large: a logarithmic scale.
        exemplars: Show single jobs as dots.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(targets(queries, exemplars=exemplars))
        .unit(unit)
        .line_width(1)
        .fill_opacity(30 if stack else 5)
        .show_points(look.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(look.LegendDisplayMode.TABLE)
            .placement(look.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(look.TooltipDisplayMode.MULTI)
            .sort(look.SortOrder.DESCENDING)
        )
    )
    legends = " ".join(query.legend for query in queries)
    # Where there are reasons, it is these that have to be told apart.
    for label, colors in () if "{{reason}}" in legends else COLORS.items():
        for name, color in colors.items() if label in legends else ():
            # Of `local p95` and `running local` too. What succeeded keeps its route's colour.
            if name != "succeeded" or "{{route}}" not in legends:
                panel = panel.override_by_regexp(
                    # A policy may be called prefer-cloud.
                    rf"/(?<![\w-]){name}(?![\w-])/",
                    [fixed_color(color)],
                )
    for ending, style, width in STYLES:
        if any(query.legend.endswith(ending) for query in queries):
            panel = panel.override_by_regexp(
                rf"/{ending}$/",
                [
                    model.DynamicConfigValue("custom.lineStyle", style),
                    model.DynamicConfigValue("custom.lineWidth", width),
                ],
            )
    if log:
        scale = common.ScaleDistributionConfig().type(look.ScaleDistribution.LOG).log(10)
        return panel.scale_distribution(scale)
    panel = panel.min(0)
    if stack:
        panel = panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    return panel.max(top) if top else panel


def fixed_color(color: str) -> model.DynamicConfigValue:
    """Give a series' colour as an override takes it."""
    return model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})


def number(
    title: str,
    description: str,
    unit: str,
    expression: str,
    *,
    legend: str = "",
    reading: Words | None = None,
    limits: Sequence[tuple[float | None, str]] = (),
    decimals: int | None = None,
) -> stat.Panel:
    """Make a panel of one value for the time range.

    Args:
        title: The title.
        description: What is counted.
        unit: Grafana's name of the unit.
        expression: PromQL.
        legend: Where set, the names of the series are shown, with their values.
        reading: Words in place of values.
        limits: From which value on it has which colour.
        decimals: Digits behind the point.
    """
    mode = look.BigValueTextMode.VALUE_AND_NAME if legend else look.BigValueTextMode.VALUE
    plain = dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color("text")
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(targets([Query(expression, legend)], instant=True))
        .unit(unit)
        .color_mode(look.BigValueColorMode.VALUE)
        .graph_mode(look.BigValueGraphMode.NONE)
        .text_mode(mode)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if reading:
        return panel.mappings([words(reading)])
    if not limits:
        return panel.color_scheme(plain)
    steps = [model.Threshold(value=value, color=color) for value, color in limits]
    return panel.thresholds(
        dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
    ).color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))


def named(title: str, description: str, expression: str, legend: str) -> stat.Panel:
    """Make a panel that shows what the series are called, and not their value."""
    return number(title, description, "short", expression, legend=legend).text_mode(
        look.BigValueTextMode.NAME
    )


def state(
    title: str, description: str, queries: Sequence[Query], reading: Words
) -> statetimeline.Panel:
    """Make a panel that shows when something was so, and when not."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(targets(queries))
        .mappings([words(reading)])
        .merge_values(True)
        .show_value(look.VisibilityMode.NEVER)
        .row_height(0.8)
    )


def bars(
    title: str, description: str, unit: str, query: Query, *, top: float = 0
) -> bargauge.Panel:
    """Make a panel of horizontal bars, one for each series, of their present values."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(targets([query], instant=True))
        .unit(unit)
        .min(0)
        .orientation(look.VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return panel.max(top) if top else panel


def grid(
    title: str,
    description: str,
    columns: Sequence[tuple[str, str, str]],
    *,
    by: str,
    link: str = "",
    no_value: str = "",
) -> table.Panel:
    """Make a table with a line for each value of a label.

    Args:
        title: The title.
        description: What the table tells.
        columns: Each one's heading, unit and PromQL.
        by: The label.
        link: Where a click on the label's value leads.
        no_value: Shown where there is nothing to show.
    """
    queries = [
        query.format(PromQueryFormat.TABLE)
        for query in targets([Query(expression, "") for _, _, expression in columns], instant=True)
    ]
    headings = {
        f"Value #{letter}" if len(columns) > 1 else "Value": heading
        for letter, (heading, _, _) in zip(ascii_uppercase, columns, strict=False)
    }
    hidden: dict[str, Any] = {"Time": True}
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(queries)
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            model.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": hidden, "renameByName": headings},
            )
        )
    )
    for heading, unit, _ in columns:
        panel = panel.override_by_name(heading, [model.DynamicConfigValue("unit", unit)])
    if link:
        links = [{"title": "Open this device", "url": link}]
        panel = panel.override_by_name(by, [model.DynamicConfigValue("links", links)])
    return panel.no_value(no_value) if no_value else panel


def words(reading: Words) -> model.ValueMap:
    """Give the words as a panel takes them."""
    return model.ValueMap(
        {
            value: model.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(reading.items())
        }
    )


def note(markdown: str) -> text.Panel:
    """Make a panel of text."""
    return text.Panel().mode(TextMode.MARKDOWN).content(markdown).transparent(True)
