"""PromQL that panels have in common."""

from __future__ import annotations

from typing import NamedTuple

# What the template variables choose. Metrics that tell models apart are narrowed by model as well.
HERE = '{device=~"$device", instance=~"$instance"}'
JOBS = '{device=~"$device", instance=~"$instance", model=~"$model"}'


class Query(NamedTuple):
    """PromQL, and how its series are called."""

    expression: str
    legend: str


def narrowed(of: str, **labels: str) -> str:
    """Give a selector that asks for these label values besides."""
    more = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f"{of[:-1]}{more}}}"


def rate(metric: str, by: str, of: str = HERE) -> str:
    """Give a counter's rate, summed over all labels but `by`."""
    return f"sum by ({by}) (rate({metric}{of}[$__rate_interval]))"


def total(metric: str, of: str = HERE) -> str:
    """Give how much a counter grew in the chosen time range; 0 where it does not exist yet."""
    return f"(sum(increase({metric}{of}[$__range])) or vector(0))"


def mean(metric: str, by: str, of: str = HERE) -> str:
    """Give the mean of a summary's or histogram's observations."""
    return f"{rate(f'{metric}_sum', by, of)} / {rate(f'{metric}_count', by, of)}"


def quantiles(metric: str, by: str, of: str) -> list[Query]:
    """Give a histogram's p50, p95 and p99, for each value of the label `by`."""
    buckets = rate(f"{metric}_bucket", f"le, {by}", of)
    return [
        Query(f"histogram_quantile({q / 100}, {buckets})", f"{{{{{by}}}}} p{q}")
        for q in (50, 95, 99)
    ]


def share(part: str, whole: str, by: str, of_part: str, of_whole: str) -> str:
    """Give the share of one counter's rate in another's; 0 where the first has not counted yet."""
    return f"({rate(part, by, of_part)} or 0 * {rate(whole, by, of_whole)}) / " + rate(
        whole, by, of_whole
    )
