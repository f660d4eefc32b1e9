"""The router: each job gets one answer, by a route that its terms allow."""

from __future__ import annotations

import asyncio
import gc

import pytest

from agent.config import CloudModel, Model
from agent.events import Attempted, Decided, Retrying, Started
from agent.job import Answer, ErrorCode, Job, JobError, Outcome, Placement
from agent.wire import tensors
from policies.api import Plan, Why
from policies.fixed import Cloud, Local, PreferCloud

MODEL = Model(path="x")
OUTPUTS = (tensors.strings("y", ["local"]), tensors.strings("z", ["more"]))


def code(answer):
    return None if answer.error is None else answer.error.code


async def test_a_job_is_answered_by_the_route_the_policy_takes(build_router, make_job):
    built = build_router()
    built.local.answers(outputs=OUTPUTS, queue_s=0.01, run_s=0.02, confidence=0.9)
    answer = await built.run(make_job())
    account = answer.account
    assert (answer.id, answer.model, answer.outputs) == ("j1", "digits", OUTPUTS)
    assert (account.route, account.endpoint, account.policy) == ("local", None, "mine")
    assert (account.reason, account.attempts, account.confidence) == ("preferred", 1, 0.9)
    assert (account.queue_s, account.run_s) == (0.01, 0.02)
    kinds = [type(event) for event in built.events.all]
    assert kinds == [Decided, Started, Attempted]
    assert built.cloud.seen == []


async def test_only_the_outputs_asked_for_are_given(build_router, make_job):
    built = build_router()
    built.local.answers(outputs=OUTPUTS)
    answer = await built.run(make_job(outputs=("z",)))
    assert [output.name for output in answer.outputs] == ["z"]


async def test_after_a_failure_the_policy_is_asked_again_without_that_route(build_router, make_job):
    built = build_router(PreferCloud(), endpoints=("lab", "far"))
    for cloud in built.clouds:
        cloud.fails("endpoint_error")
        cloud.takes_s = 0.1
    answer = await built.run(make_job())
    account = answer.account
    assert (account.route, account.attempts, account.reason) == ("local", 3, "retry")
    assert account.total_s == pytest.approx(0.2)
    decided = built.events.of(Decided)
    assert [event.plan.route for event in decided] == ["cloud:lab", "cloud:far", "local"]
    assert [event.situation.job.attempts for event in decided] == [0, 1, 2]
    assert decided[1].situation.job.deadline_s == pytest.approx(0.9)
    assert decided[1].situation.routes[1].closed == "cloud:lab failed"
    retrying = [(event.route, event.reason) for event in built.events.of(Retrying)]
    assert retrying == [("cloud:lab", "endpoint_error"), ("cloud:far", "endpoint_error")]


async def test_when_every_route_has_failed_the_answer_is_a_failure_that_was_seen(
    build_router, make_job
):
    built = build_router()
    built.local.fails("model_error")
    built.cloud.fails("endpoint_error")
    answer = await built.run(make_job())
    assert code(answer) is ErrorCode.MODEL_ERROR
    assert (answer.account.route, answer.account.attempts) == ("cloud", 2)


async def test_an_error_that_another_route_would_not_mend_is_answered_at_once(
    build_router, make_job
):
    built = build_router()
    built.local.fails("bad_request", retriable=False)
    assert code(await built.run(make_job())) is ErrorCode.BAD_REQUEST
    assert built.cloud.seen == []
    assert built.events.of(Retrying) == []


async def test_a_doubtful_local_answer_is_escalated(build_router, make_job):
    built = build_router()
    built.local.answers(outputs=OUTPUTS, confidence=0.4)
    built.cloud.answers(confidence=0.95)
    answer = await built.run(make_job(min_confidence=0.5))
    account = answer.account
    assert (account.route, account.reason, account.attempts) == ("cloud", "escalated", 2)
    assert account.confidence == 0.95
    assert [event.reason for event in built.events.of(Retrying)] == ["escalated"]


async def test_a_plan_may_ask_for_escalation(build_router, make_job):
    class Cascade:
        def decide(self, situation):
            return Plan(situation.open_routes[0].name, escalate_below=0.9)

    built = build_router(Cascade())
    built.local.answers(confidence=0.8)
    assert (await built.run(make_job())).account.route == "cloud"


@pytest.mark.parametrize("confidence", [0.5, 0.6, None])
async def test_an_answer_that_is_sure_enough_or_knows_no_confidence_is_kept(
    build_router, make_job, confidence
):
    built = build_router()
    built.local.answers(confidence=confidence)
    assert (await built.run(make_job(min_confidence=0.5))).account.route == "local"


async def test_a_private_doubtful_answer_is_not_escalated(build_router, make_job):
    built = build_router()
    built.local.answers(outputs=OUTPUTS, confidence=0.1)
    answer = await built.run(make_job(min_confidence=0.9, private=True))
    assert (answer.outputs, answer.account.route) == (OUTPUTS, "local")
    assert built.cloud.seen == []


@pytest.mark.parametrize("retriable", [True, False])
async def test_a_doubtful_answer_is_kept_where_the_cloud_fails(build_router, make_job, retriable):
    built = build_router()
    built.local.answers(outputs=OUTPUTS, confidence=0.4)
    built.cloud.fails("endpoint_error", retriable=retriable)
    answer = await built.run(make_job(min_confidence=0.5))
    account = answer.account
    assert (answer.outputs, account.route, account.attempts) == (OUTPUTS, "local", 2)
    assert (account.reason, account.confidence) == ("preferred", 0.4)


async def test_a_doubtful_answer_is_kept_where_the_policy_takes_no_other_route(
    build_router, make_job
):
    built = build_router(Local())
    built.local.answers(outputs=OUTPUTS, confidence=0.4)
    answer = await built.run(make_job(min_confidence=0.5))
    assert (answer.outputs, answer.account.route) == (OUTPUTS, "local")


async def test_a_doubtful_answer_is_kept_where_the_deadline_passes(build_router, make_job):
    built = build_router()
    built.local.answers(outputs=OUTPUTS, confidence=0.4)
    built.local.takes_s = 2.0
    answer = await built.run(make_job(min_confidence=0.5))
    assert (answer.outputs, answer.account.route) == (OUTPUTS, "local")


async def test_a_doubtful_cloud_answer_is_the_answer(build_router, make_job):
    built = build_router(Cloud())
    built.cloud.answers(outputs=OUTPUTS, confidence=0.1)
    assert (await built.run(make_job(min_confidence=0.5))).outputs == OUTPUTS


async def test_an_unknown_model_is_answered_with_the_known_ones(build_router, make_job):
    answer = await build_router().run(make_job(model="moon"))
    assert code(answer) is ErrorCode.UNKNOWN_MODEL
    assert answer.error.message == "no model 'moon', known: digits"


async def test_a_decision_knows_only_routes_that_serve_the_model(build_router, make_job):
    built = build_router(endpoints=("lab", "far"))
    built.clouds[1].models = ("words",)
    built.router.use_routes(tuple(built.routes.values()), {"digits": MODEL, "words": MODEL})
    built.local.answers(outputs=OUTPUTS)
    await built.run(make_job())
    (decided,) = built.events.of(Decided)
    assert [view.name for view in decided.situation.routes] == ["local", "cloud:lab"]


async def test_a_job_whose_model_goes_while_it_runs_is_told_so(build_router, make_job):
    built = build_router()

    def fails():
        built.router.use_routes(tuple(built.routes.values()), {"words": MODEL})
        for route in built.routes.values():
            route.closed = JobError(ErrorCode.NO_ROUTE, "gone")
        return Outcome(error=JobError(ErrorCode.MODEL_ERROR, "crashed"))

    built.local.does = fails
    answer = await built.run(make_job(placement=Placement.PREFER_LOCAL))
    assert code(answer) is ErrorCode.MODEL_ERROR


async def test_a_job_for_an_endpoint_that_does_not_serve_its_model_is_told_so(
    build_router, make_job
):
    built = build_router(endpoints=("lab", "far"))
    built.clouds[1].models = ()
    built.router.use_routes(tuple(built.routes.values()), {"digits": MODEL})
    built.clouds[1].closed = JobError(ErrorCode.NO_ROUTE, "endpoint 'far' does not serve 'digits'")
    answer = await built.run(make_job(endpoint="far"))
    assert code(answer) is ErrorCode.NO_ROUTE
    assert "cloud:far: endpoint 'far' does not serve 'digits'" in answer.error.message


async def test_an_unexpected_exception_is_answered_internal_and_kept_to_the_log(
    build_router, make_job
):
    built = build_router()

    def explode():
        raise ZeroDivisionError("secret detail")

    built.local.does = explode
    answer = await built.run(make_job())
    assert code(answer) is ErrorCode.INTERNAL
    assert "secret" not in answer.error.message


async def test_a_job_that_the_policy_rejects_has_no_route(build_router, make_job):
    built = build_router(Cloud(), endpoints=())
    answer = await built.run(make_job())
    assert code(answer) is ErrorCode.NO_ROUTE
    assert answer.error.message == "policy 'mine' rejected the job"
    assert [event.plan.why for event in built.events.of(Decided)] == [Why.REJECTED]


async def test_a_policy_that_gives_up_after_a_failure_leaves_that_failure_as_the_answer(
    build_router, make_job
):
    built = build_router(Local())
    built.local.fails("model_error")
    assert code(await built.run(make_job())) is ErrorCode.MODEL_ERROR


async def test_no_answer_tells_of_the_tried_route_before_one_that_was_closed(
    build_router, make_job
):
    built = build_router()
    built.local.fails("model_error")
    built.local.closed = JobError(ErrorCode.MODEL_ERROR, "refused at start")
    built.cloud.fails("endpoint_error")
    assert code(await built.run(make_job())) is ErrorCode.ENDPOINT_ERROR


async def test_the_state_holds_what_is_known_and_nothing_made_up(build_router, make_job):
    built = build_router()
    built.local.takes_s = 0.25
    await built.run(make_job())
    state = built.router.state()
    assert state["device"] == {}
    assert state["endpoints"] == {"lab": {}}
    assert state["models"]["digits"]["routes"]["local"]["latency_mean_s"] == pytest.approx(0.25)
    assert "latency_mean_s" not in state["models"]["digits"]["routes"]["cloud:lab"]


async def test_a_price_that_is_known_closes_a_route_before_anything_was_learned(
    build_router, make_job
):
    built = build_router()
    built.routes["cloud:lab"].costs = 0.5
    answer = await built.router.run(make_job(max_cost=0.1, placement=Placement.ONLY_CLOUD))
    assert answer.error.code is ErrorCode.NO_ROUTE
    assert "max_cost" in answer.error.message
    assert built.routes["cloud:lab"].seen == []


async def test_a_policy_sees_the_weight_that_an_endpoint_has_for_the_model(build_router, make_job):
    served = (CloudModel("lab", weight=3.0), CloudModel("far"))
    built = build_router(endpoints=("lab", "far"), models={"digits": Model(cloud=served)})
    await built.run(make_job())
    [decided] = built.events.of(Decided)
    weights = {view.name: view.weight for view in decided.situation.routes}
    assert weights == {"local": 1.0, "cloud:lab": 3.0, "cloud:far": 1.0}


async def test_a_job_that_fails_leaves_nothing_to_the_garbage_collector(build_router, make_job):
    def slow():
        try:
            raise TimeoutError
        except TimeoutError:
            raise JobError(ErrorCode.ENDPOINT_ERROR, "it took too long") from None

    async def gives_up():
        try:
            slow()
        except JobError as error:
            return Outcome(error=error)

    built = build_router(PreferCloud())
    built.cloud.does = gives_up
    built.local.fails("model_error")
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for terms in ({}, {"model": "unheard-of"}, {"endpoint": "gone"}):
            answer = await asyncio.create_task(built.run(make_job(**terms)))
            assert answer.error is not None
        del answer
        gc.collect()
        left = {type(one) for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left & {Job, Answer, Outcome, JobError}
