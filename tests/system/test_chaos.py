"""A bounded part of `make chaos`, and that its verdict would notice what it looks for."""

import json
import sys
import time
from pathlib import Path

import pytest

from tests.system.conftest import run_to_end

CHAOS = Path(__file__).parents[2] / "chaos"
ENDS_WITHIN_S = 110
KILLS, JOBS, SECONDS = 5, 600, 8


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(("--seed", 1, "--broker", "mixed", "--resend"), id="a-broker-that-forgets"),
        pytest.param(("--seed", 2, "--no-resend"), id="a-broker-that-keeps-and-no-resend"),
    ],
)
async def test_each_job_gets_exactly_one_true_answer_whatever_fails(mosquitto, given):
    bounds = ("--jobs", JOBS, "--kills", KILLS, "--seconds", SECONDS)
    command = (sys.executable, CHAOS / "run.py", "--json", *bounds, *given)
    ended = await run_to_end(*command, within_s=ENDS_WITHIN_S)
    assert ended.out, ended.err
    told = ended.json
    failing = json.dumps(told["failing"][:3], indent=1)
    wrong = {k: told[k] for k in ("lost", "contradicting", "leaked", "unrepeated") if told[k]}
    assert not wrong, f"{told['replay']}: {wrong}; the logs are in {told['logs']}\n{failing}"
    assert ended.code == 0
    assert told["answered"] == JOBS
    assert told["kills"] >= KILLS
    assert set(told["left_out"]) <= {"disk", "clock"}
    assert told["not_ready"] is None
    assert told["ended_on_sigterm"] == 0


@pytest.fixture
def harness(modules_of):
    """The harness's own modules."""
    return modules_of("chaos")


def test_the_seed_and_the_options_determine_the_plan_and_the_jobs(harness):
    plan, jobs, run = (harness(name) for name in ("plan", "jobs", "run"))
    first, again, other = (run.options_of(["--seed", seed])[0] for seed in "778")
    made = plan.make(first)
    assert made == plan.make(again) != plan.make(other)
    assert plan.load(first, made) == plan.load(again, made)
    payloads = [[job.payload for job in jobs.make(seed, 50)] for seed in (7, 7, 8)]
    assert payloads[0] == payloads[1] != payloads[2]
    # By default it is what the project promises to hold under.
    kills = [fault for fault in made if fault.kind == "kill"]
    assert sum(2 if fault.how == "again" else 1 for fault in kills) >= 20
    assert len(plan.load(first, made)) >= 5000


def test_a_replay_is_the_same_run(harness):
    options, _ = harness("run").options_of(["--seed", "3", "--no-resend", "--faults", "disk,kill"])
    assert harness("run").options_of(options.replay().split())[0] == options


@pytest.mark.parametrize(
    "given", ["--faults kill,flood", "--kills 0", "--no-resend --broker volatile"]
)
def test_what_can_not_be_run_is_refused(harness, capsys, given):
    with pytest.raises(SystemExit) as refused:
        harness("run").options_of(given.split())
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.fixture
def judge(harness):
    """Give a true answer to each of some jobs, changed for the first one, and judge them."""
    jobs, client, verdict = (harness(name) for name in ("jobs", "client", "verdict"))
    truth = jobs.Truth()

    def run(change, wanted=lambda _job: True, *, seen=False, route=None):
        made = list(jobs.make(1, 200))
        first = next(job for job in made if wanted(job))
        records = []
        for job in made:
            where = "cloud" if job.placement == "only_cloud" and not job.private else "local"
            true = _answer(jobs, truth, job, where)
            if job is first and route is not None:
                true = _answer(jobs, truth, job, route)
            record = client.Record(job, sent=[time.monotonic()])
            answers = change(true) if job is first else [true]
            record.answers.update(json.dumps(answer).encode() for answer in answers)
            records.append(record)
        cloud = {first.id} if seen else set()
        return verdict.judge(records, seen_by_cloud=cloud, unrepeated=[], began=0.0)

    return run


def _answer(jobs, truth, job, route):
    scores = truth.scores(job, route)
    if job.placement == "only_cloud" and job.private:
        return {"id": job.id, "error": "it may not", "parameters": {"code": "no_route"}}
    name = "probability" if job.model == "points" else "scores"
    outputs = [{"name": name, "data": scores.tolist()}]
    if job.model == "digits":
        outputs.append({"name": "label", "data": [jobs.LABELS[int(scores.argmax())]]})
        outputs.append({"name": "confidence", "data": [float(scores.max())]})
    return {"id": job.id, "parameters": {"route": route}, "outputs": outputs}


def _error(answer, code):
    return {"id": answer["id"], "error": "a sentence", "parameters": {"code": code}}


def _label(answer):
    label = answer["outputs"][1]["data"][0]
    other = "0" if label != "0" else "1"
    return {**answer, "outputs": [answer["outputs"][0], {"name": "label", "data": [other]}]}


def of_digits(job):
    return job.model == "digits" and job.placement in {"auto", "only_local"}


def test_true_answers_are_sound(judge):
    verdict = judge(lambda true: [true, true], of_digits)
    assert verdict.sound
    assert (verdict.answered, verdict.duplicates, verdict.failing) == (200, 1, [])


def test_a_job_without_an_answer_is_lost(judge):
    verdict = judge(lambda _: [])
    assert (verdict.lost, verdict.answered) == (1, 199)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda true: [true, {**true, "x": 1}], id="two-answers"),
        pytest.param(lambda true: [true, _error(true, "model_error")], id="answer-and-error"),
        pytest.param(lambda true: [{**true, "id": "another"}], id="another-job's-id"),
        pytest.param(lambda true: [_label(true)], id="another-label"),
        pytest.param(lambda true: [{**true, "outputs": true["outputs"][:1]}], id="no-label"),
        pytest.param(lambda true: [{**true, "parameters": {"route": "cloud"}}], id="another-route"),
        pytest.param(lambda true: [_error(true, "bad_request")], id="an-error-that-is-not-so"),
        pytest.param(lambda _: ["nonsense"], id="nonsense"),
    ],
)
def test_an_answer_that_is_not_the_true_one_contradicts(judge, change):
    verdict = judge(change, of_digits)
    assert (verdict.lost, verdict.contradicting, len(verdict.failing)) == (0, 1, 1)


def test_a_terminal_error_is_an_answer(judge):
    verdict = judge(lambda true: [_error(true, "model_error")], of_digits)
    assert verdict.sound
    assert verdict.by_code_runnable == {"model_error": 1}


def test_a_private_job_that_the_cloud_has_seen_is_a_leak(judge):
    verdict = judge(lambda true: [true], lambda job: job.private, seen=True)
    assert verdict.leaked == 1
    assert not verdict.sound


def test_a_route_that_the_job_forbids_contradicts(judge):
    def is_bound(job):
        return job.model == "digits" and job.placement == "only_local"

    assert judge(lambda true: [true], is_bound, route="cloud").contradicting == 1
