"""A fault that repeats is told once, and then counted."""

from __future__ import annotations

import pytest
import structlog

from agent.repeats import MOST_ALIKE, SUMMARY, WINDOW_S, Repeats


@pytest.fixture
def log(clock):
    """A log through the processor, as the lines it comes to."""
    lines = []

    def keep(_logger, _method, event):
        lines.append(event)
        raise structlog.DropEvent

    repeats = Repeats(lambda: clock.now)
    structlog.configure(processors=[repeats, keep], cache_logger_on_first_use=False)
    made = structlog.get_logger()
    made.lines = lines
    made.repeats = repeats
    yield made
    structlog.reset_defaults()


def test_a_fault_that_repeats_is_told_once_and_counted_after_its_time(log, clock):
    for _ in range(1000):
        log.error("store_failed", error="disk full")
    assert log.lines == [{"event": "store_failed", "error": "disk full"}]
    clock.now += WINDOW_S
    log.info("job_answered")
    counted = {"event": SUMMARY, "of": "store_failed", "times": 999, "within_s": WINDOW_S}
    assert log.lines[1:] == [counted, {"event": "job_answered"}]
    log.error("store_failed", error="disk full")
    assert log.lines[-1] == {"event": "store_failed", "error": "disk full"}


def test_what_is_left_out_at_the_end_is_told_then(log):
    for _ in range(3):
        log.warning("mqtt_disconnected", reason="refused", retry_in_s=0.5)
    log.repeats.tell_all()
    assert [(line["event"], line.get("times")) for line in log.lines] == [
        ("mqtt_disconnected", None),
        (SUMMARY, 2),
    ]


def test_a_fault_that_came_once_is_not_counted(log, clock):
    log.warning("worker_hung")
    clock.now += WINDOW_S
    log.repeats.tell_all()
    assert log.lines == [{"event": "worker_hung"}]


def test_faults_with_other_details_are_told_apart_up_to_a_bound(log, clock):
    for number in range(MOST_ALIKE):
        log.warning("bad_message", detail=f"byte {number}")
    assert len(log.lines) == MOST_ALIKE
    for number in range(100):
        log.warning("bad_message", detail=f"another {number}")
    # One more: that there are others.
    assert len(log.lines) == MOST_ALIKE + 1
    clock.now += WINDOW_S
    log.info("any")
    assert log.lines[-2] == {
        "event": SUMMARY,
        "of": "bad_message",
        "times": 99,
        "within_s": WINDOW_S,
    }


def test_the_same_fault_of_other_jobs_is_the_same_fault(log):
    log.error("answer_refused", job_id="a", error="quota exceeded")
    log.error("answer_refused", job_id="b", error="quota exceeded")
    assert len(log.lines) == 1


def test_jobs_are_told_each_whatever_they_have_in_common(log):
    for _ in range(3):
        log.info("job_answered", error="no_route")
    assert len(log.lines) == 3


def test_exceptions_are_told_apart_by_what_they_are(log):
    for error in (ValueError("a"), ValueError("a"), KeyError("a"), ValueError("b")):
        try:
            raise error
        except (ValueError, KeyError):
            log.exception("job_failed_unexpectedly", job_id="a")
        log.error("audit_failed", exc_info=error)
    assert len(log.lines) == 2 * 3
