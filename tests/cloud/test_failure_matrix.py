"""An endpoint that fails, in whatever way, costs the jobs that prefer it neither answer nor time.

A whole daemon, a real broker, a real server with a real model behind a proxy that fails. What is
counted is asserted here, with a deadline that a busy machine keeps too; times are
`bench/failures.py`'s, with 500 ms, which prints the same for a plain script. The policy has no mind
of its own, so that only what the router does is tested.
"""

from concurrent.futures import ThreadPoolExecutor

import failures
import pytest
from failures import IN_TIME, MOST_EXTRA, RECOVERS_WITHIN_S, ROWS, Scale

pytestmark = [pytest.mark.cloud, pytest.mark.usefixtures("mosquitto")]

SCALE = Scale(well_s=1.5, failing_s=4.0, again_s=RECOVERS_WITHIN_S + 1.0, deadline_s=2.0)
# Rows measured at a time, each with a broker, servers and a daemon of its own: they mostly wait.
AT_A_TIME = 2


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Begin with all rows; give each one's figures to come."""

    def measure(row):
        folder = tmp_path_factory.mktemp("row")
        [found] = failures.measure([row], SCALE, folder, naive=False, policy="prefer-cloud")
        return found

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {row.name: pool.submit(measure, row) for row in ROWS}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-"))
def test_jobs_are_answered_in_time_while_an_endpoint_fails(measured, row):
    found = measured[row.name].result()
    assert found.lost == 0
    assert found.in_time >= IN_TIME
    assert found.extra < MOST_EXTRA
    assert found.recovered_s <= RECOVERS_WITHIN_S
    if row.is_total:
        assert found.delayed == 0
