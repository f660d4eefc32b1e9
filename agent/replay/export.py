"""The decision log as a flat table: CSV or JSON lines, one row for each decision.

Each column has one type throughout, or is null, as Parquet wants it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from agent.history import Entry
from agent.replay.recorded import Step, entries
from policies.api import Device, Estimate, JobTraits

FORMATS = (".csv", ".jsonl")
ATTEMPT = (
    *("latency_s", "queue_s", "run_s", "error", "energy_j", "energy_measured", "cost"),
    *("confidence", "bytes_up", "bytes_down"),
)
ESTIMATE = [each.name for each in fields(Estimate)]
NETWORK = ("rtt_s", "uplink_bytes_per_s", "downlink_bytes_per_s", "waiting")
# Of values that JSON may give as whole numbers.
FLOATS = frozenset(
    each.name
    for kind in (JobTraits, Device, Estimate)
    for each in fields(kind)
    if "float" in str(each.type)
)


def write(
    path: Path, read: Callable[[], Iterable[bytes]], steps: Sequence[Step], policies: Sequence[str]
) -> int:
    """Write the log out.

    Args:
        path: A file ending in one of `FORMATS`.
        read: Reads the entries, as they were when they were replayed; twice.
        steps: What replaying them gave.
        policies: The names of the policies that were replayed.

    Returns:
        The number of rows.

    Raises:
        OSError: The file can't be written.
    """
    routes = sorted(
        {view.name for entry in _sound(read()) for view in entry.decision.routes},
        key=lambda name: (name != "local", name),
    )
    rows = (
        _row(entry, step, routes, policies)
        for entry, step in zip(_sound(read()), steps, strict=True)
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        return _write_csv(file, rows) if path.suffix == ".csv" else _write_lines(file, rows)


def _sound(bodies: Iterable[bytes]) -> Iterator[Entry]:
    return (entry for entry in entries(bodies) if entry is not None)


def _write_csv(file: TextIO, rows: Iterator[dict[str, Any]]) -> int:
    writer: csv.DictWriter[str] | None = None
    count = 0
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})
        count += 1
    return count


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _write_lines(file: TextIO, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        count += 1
    return count


def _row(
    entry: Entry, step: Step, routes: Sequence[str], policies: Sequence[str]
) -> dict[str, Any]:
    decision, end = entry.decision, entry.end
    last = entry.attempts[-1] if entry.attempts else None
    views = {view.name: view for view in decision.routes}
    row: dict[str, Any] = {
        "job": decision.id,
        "time": datetime.fromtimestamp(decision.time, UTC).isoformat(timespec="microseconds"),
        "time_s": decision.time,
        "policy": decision.policy,
        "action": step.action,
        "reason": decision.reason,
        "propensity": decision.propensity,
        "hedge": decision.hedge,
        "hedge_after_s": decision.hedge_after_s,
        "escalate_below": decision.escalate_below,
        "defer_s": decision.defer_s,
        "attempts_made": len(entry.attempts),
        "attempt_route": None if last is None else last.route,
        **{f"attempt_{name}": None if last is None else getattr(last, name) for name in ATTEMPT},
        "end": None if end is None else end.kind,
        "end_error": None if end is None else end.error,
        "total_s": None if end is None else end.total_s,
        "expected_cost": step.direct,
        "job_cost": step.job_cost,
    }
    for prefix, traits in (("job", decision.job), ("device", decision.device)):
        row |= {f"{prefix}_{name}": _typed(name, v) for name, v in asdict(traits).items()}
    for name in routes:
        view, prefix = views.get(name), _column(name)
        row[f"{prefix}_open"] = None if view is None else view.closed is None
        row[f"{prefix}_closed"] = None if view is None else view.closed
        for part in NETWORK:
            row[f"{prefix}_{part}"] = None if view is None else getattr(view, part)
        for part in ESTIMATE:
            value = None if view is None else getattr(view.estimate, part)
            row[f"{prefix}_{part}"] = _typed(part, value)
    for name in policies:
        action, direct = step.choices[name]
        row[f"{_column(name)}_would_take"] = action
        row[f"{_column(name)}_expected_cost"] = direct
    return row


def _typed(name: str, value: Any) -> Any:
    return float(value) if name in FLOATS and value is not None else value


def _column(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")
