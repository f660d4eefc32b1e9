"""`edgewise explain`: what was decided for a job, why, and what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import Json, app, console, fail, load_config

if TYPE_CHECKING:
    from agent.history import Entry
    from agent.store.decisions import Row


@app.command()
def explain(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(help="As in the job's answer.")],
    as_json: Json = False,
) -> None:
    """Tell why JOB_ID went where it went, from the decision log on this device."""
    from agent.explain import absent
    from agent.history import EntryError, decode
    from agent.store import StoreError
    from agent.store.decisions import open_decisions

    config = load_config(ctx)
    folder = Path(config.device.state_dir)
    try:
        with open_decisions(folder) as decisions:
            rows = decisions.of(job_id)
            state = None if rows else decisions.state_of(job_id)
    except StoreError as error:
        raise fail(str(error)) from None
    if not rows:
        raise fail(absent(job_id, state))
    if as_json:
        print(json.dumps([_raw(row) for row in rows]))
        return
    entries = []
    for row in rows:
        try:
            entries.append(decode(row.body))
        except EntryError as error:
            print(f"warning: an entry can't be read: {error}", file=sys.stderr)
    if not entries:
        raise fail(f"none of the decisions of job '{job_id}' can be read")
    _print(job_id, entries)


def _raw(row: Row) -> Any:
    try:
        return json.loads(row.body)
    except ValueError as error:
        return {"job": row.job, "decided": row.decided, "malformed": str(error)}


def _print(job_id: str, entries: list[Entry]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from agent.explain import CANDIDATES, TERMS, candidates, tell, terms

    out = console()
    for count, entry in enumerate(entries, start=1):
        decision = entry.decision
        when = datetime.fromtimestamp(decision.time, UTC).astimezone()
        out.print(
            f"Job {job_id}, decision {count} of {len(entries)}, "
            f"{when.isoformat(sep=' ', timespec='milliseconds')}, model {decision.job.model}",
            style="bold",
        )
        for sentence in tell(entry):
            out.print(sentence)
        tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
            (CANDIDATES, candidates(decision))
        ]
        if decision.reasons:
            tables.append((TERMS, terms(decision)))
        for titles, rows in tables:
            table = Table(box=SIMPLE_HEAD)
            for title in titles:
                worded = title in {"route", "term", "closed because"}
                table.add_column(title, justify="left" if worded else "right", overflow="fold")
            for cells in rows:
                table.add_row(*map(Text, cells))
            out.print(table)
