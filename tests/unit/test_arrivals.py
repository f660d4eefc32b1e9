"""When jobs come, and which."""

from __future__ import annotations

import itertools

import pytest

from agent.simulate import arrivals
from agent.simulate.arrivals import ArrivalsError, FileError
from agent.simulate.profile import Model

MODELS = {"small": Model(median_s=0.1, input_bytes=100), "large": Model(median_s=1.0)}


def make(spec, seed=0, lasts_s=100.0):
    return arrivals.make(str(spec), MODELS, seed=seed, lasts_s=lasts_s)


def test_the_same_seed_makes_the_same_jobs():
    assert make("poisson:rate=2", 1) == make("poisson:rate=2", 1) != make("poisson:rate=2", 2)


def test_poisson_arrivals_come_at_the_rate():
    jobs = make("poisson:rate=10")
    assert 900 < len(jobs) < 1100
    assert all(a.received_at < b.received_at for a, b in itertools.pairwise(jobs))


def test_periodic_arrivals_keep_the_beat():
    assert [job.received_at for job in make("periodic:rate=4,count=3")] == [0, 0.25, 0.5]


def test_bursts_come_together():
    jobs = make("bursts:every_s=10,size=3,apart_ms=100,count=6")
    assert jobs[2].received_at - jobs[0].received_at == pytest.approx(0.2)


def test_the_mix_is_as_asked():
    jobs = make(
        "poisson:rate=20,models=small*3+large,private=0.25,priorities=5*9+9,deadline_ms=250,"
        "deferrable=1,placement=prefer_cloud,min_confidence=0.5"
    )

    def share(holds):
        return sum(map(holds, jobs)) / len(jobs)

    assert share(lambda job: job.model == "small") == pytest.approx(0.75, abs=0.05)
    assert share(lambda job: job.private) == pytest.approx(0.25, abs=0.05)
    assert share(lambda job: job.priority == 9) == pytest.approx(0.1, abs=0.05)
    assert all(job.deferrable and job.min_confidence == 0.5 for job in jobs)
    assert all(job.deadline_at - job.received_at == pytest.approx(0.25) for job in jobs)
    assert {job.placement for job in jobs} == {"prefer_cloud"}
    assert len({job.id for job in jobs}) == len(jobs)


def test_sizes_spread_around_the_models():
    sizes = sorted(job.input_bytes for job in make("poisson:rate=5,models=small,size_spread=0.5"))
    assert sizes[len(sizes) // 2] == pytest.approx(100, abs=10)
    assert sizes[0] < 70
    assert sizes[-1] > 140


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("poison:rate=1", "'poison:rate=1' is neither"),
        ("poisson:rates=1", "no 'rates'"),
        ("poisson:rate", "want key=value"),
        ("poisson:rate=-1", "rate"),
        ("poisson:rate=nan", "rate"),
        ("poisson:models=tiny", "no 'tiny'"),
        ("poisson:models=small*x", "NAME"),
        ("poisson:priorities=12", "0 to 9"),
        ("poisson:private=2", "private"),
        ("poisson:placement=moon", "placement"),
        ("periodic:count=0", "count"),
        ("poisson:rate=0.001,duration_s=0.1", "none comes"),
    ],
)
def test_what_is_wrong_is_named(spec, says):
    with pytest.raises(ArrivalsError) as refused:
        make(spec)
    assert says in str(refused.value)


def test_a_file_lists_jobs(tmp_path):
    file = tmp_path / "jobs.csv"
    file.write_text(
        "t_s,model,deadline_ms,input_bytes,priority,privacy\n2,large,500,7,9,device\n1,small,,,,\n"
    )
    first, second = make(file)
    assert (first.received_at, first.model, first.input_bytes, first.private) == (
        1,
        "small",
        100,
        False,
    )
    assert (second.received_at, second.model, second.input_bytes) == (2, "large", 7)
    assert (second.priority, second.private, second.deadline_at) == (9, True, 2.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column t_s"),
        ("t_s\n", "no job"),
        ("t_s\nx\n", "line 2: t_s"),
        ("t_s\n-1\n", "line 2: t_s"),
        ("t_s,model\n1,tiny\n", "no 'tiny'"),
        ("t_s,privacy\n1,secret\n", "privacy"),
        ("t_s,colour\n1,red\n", "no 'colour'"),
        ("t_s\n1,2\n", "more fields"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, says):
    file = tmp_path / "jobs.csv"
    file.write_text(text)
    with pytest.raises(FileError, match=r"jobs\.csv") as refused:
        make(file)
    assert says in str(refused.value)
