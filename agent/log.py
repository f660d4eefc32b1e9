"""Logging: one event a line, JSON for machines, coloured text for a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import msgspec
import structlog

from agent.events import Answered, BadMessage, Events, PolicyFailed
from agent.repeats import Repeats

log = structlog.get_logger(__name__)

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


# One for the whole process, as structlog's own configuration is.
_repeats = Repeats()


def configure(level: str, form: Literal["auto", "json", "console"]) -> None:
    """Set up logging to standard error, the libraries' own logs included."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json" or (form == "auto" and not sys.stderr.isatty()):
        render: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
        encode: list[Any] = []
    else:
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
        encode = [_to_bytes]
    structlog.configure(
        processors=[_repeats, *shared, *render, *encode],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *render,
                *([] if encode else [_to_text]),
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def tell_repeats() -> None:
    """Tell of faults that were only counted until now; for the end."""
    _repeats.tell_all()


def observe(events: Events) -> None:
    """Log what happens to jobs: one line for each answer."""
    events.report(Answered, _on_answered)
    events.subscribe(BadMessage, _on_bad_message)
    events.subscribe(PolicyFailed, _on_policy_failed)


def _on_answered(event: Answered) -> None:
    account = event.answer.account
    error = event.answer.error
    trace = event.job.trace
    log.info(
        "job_answered",
        job_id=event.job.id,
        model=event.job.model[:64],
        route=account.route,
        endpoint=account.endpoint,
        policy=account.policy,
        reason=account.reason,
        attempts=account.attempts,
        queue_ms=round(account.queue_s * 1000, 3),
        run_ms=round(account.run_s * 1000, 3),
        total_ms=round(account.total_s * 1000, 3),
        error=None if error is None else error.code.value,
        detail=None if error is None else error.message[:300],
        **({} if trace is None else {"trace_id": trace.trace_id}),
    )


def _on_bad_message(event: BadMessage) -> None:
    log.warning(
        "bad_message", reason=event.reason, detail=event.detail[:300], topic=event.topic[:200]
    )


def _on_policy_failed(event: PolicyFailed) -> None:
    log.error("policy_failed", policy=event.policy, detail=event.detail)


def _to_json(event: dict[str, Any], **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)


def _to_bytes(_logger: Any, _method: str, line: Any) -> bytes:
    text: str = line
    return text.encode("utf-8", "backslashreplace")


def _to_text(_logger: Any, _method: str, line: Any) -> str:
    text: str = line.decode()
    return text
