"""An allowance: extra work is a share of the jobs, however many would have it."""

from hypothesis import given
from hypothesis import strategies as st

from agent.routes.allowance import Allowance


@given(
    st.lists(st.booleans(), max_size=300),
    st.floats(0.0, 1.0),
    st.floats(1.0, 20.0),
)
def test_no_more_is_spent_than_what_jobs_have_earned_and_what_there_was(wanted, share, most):
    allowance = Allowance(share, most)
    spent = 0
    for asks in wanted:
        allowance.earn()
        if asks and allowance.has_one:
            allowance.spend()
            spent += 1
    assert spent <= most / 2 + share * len(wanted) + 1e-6


def test_a_calm_hour_saves_up_no_more_than_its_most():
    allowance = Allowance(0.1, 3.0)
    for _ in range(1000):
        allowance.earn()
    spent = 0
    while allowance.has_one:
        allowance.spend()
        spent += 1
    assert spent == 3
