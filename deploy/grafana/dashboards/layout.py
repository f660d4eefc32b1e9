"""What a dashboard lets one choose, and where its panels stand."""

from __future__ import annotations

from collections.abc import Iterable

from grafana_foundation_sdk.builders import (
    bargauge,
    dashboard,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import SOURCE, Panel

WIDTH = 24

Row = tuple[str, list[Panel]]


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


def laid_out(made: dashboard.Dashboard, rows: Iterable[Row]) -> dashboard.Dashboard:
    """Add the rows: numbers side by side, two or three graphs in a line, text over all."""
    for title, panels in rows:
        made = made.with_row(dashboard.Row(title))
        numbers = sum(isinstance(panel, stat.Panel) for panel in panels)
        tables = sum(isinstance(panel, table.Panel) for panel in panels)
        states = sum(isinstance(panel, statetimeline.Panel) for panel in panels)
        graphs = sum(isinstance(panel, timeseries.Panel | bargauge.Panel) for panel in panels)
        for panel in panels:
            if isinstance(panel, stat.Panel):
                height, width = 4, WIDTH // max(numbers, 1)
            elif isinstance(panel, text.Panel):
                height, width = 3, WIDTH
            elif isinstance(panel, table.Panel):
                height, width = (9, WIDTH) if tables == 1 else (6, WIDTH // tables)
            elif isinstance(panel, statetimeline.Panel):
                # Of many things, or of one for each endpoint.
                height, width = (9, WIDTH) if states == 1 else (5, WIDTH // states)
            else:
                height, width = 9, WIDTH // (3 if graphs % 3 == 0 else 2)
            made = made.with_panel(panel.height(height).span(width))
    return made
