"""Retry-After: how long an endpoint that is overloaded asks to be left alone."""

import pytest

from agent.routes.retry_after import retry_after_s

NOON = 1_700_000_000.0
AT_NOON = "Tue, 14 Nov 2023 22:13:20 GMT"
AFTER_90_S = "Tue, 14 Nov 2023 22:14:50 GMT"


def read(**headers):
    return retry_after_s(
        {name.replace("_", "-"): value for name, value in headers.items()}, wall=lambda: NOON
    )


def test_it_is_read_in_seconds():
    assert read(Retry_After="120") == 120.0


def test_it_is_read_as_a_date():
    assert read(Retry_After=AFTER_90_S) == 90.0


def test_a_date_counts_from_the_responses_own():
    assert retry_after_s(
        {"Retry-After": AFTER_90_S, "Date": AT_NOON}, wall=lambda: NOON - 1e6
    ) == pytest.approx(90.0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-5", "1.5", "soon", "9" * 40, "٣", AT_NOON, "\x00"),
        "Tue, 99 Nov 2023 22:14:50 GMT",
        "Wed, 21 Oct 20267777777777777777 07:28:00 GMT",
    ],
)
def test_what_is_past_or_no_such_thing_is_none(text):
    assert read(Retry_After=text) is None
    assert read() is None
