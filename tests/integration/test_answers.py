"""One job, one answer: where it goes, sent again, cancelled, and what is told on the way."""

import json

import pytest


async def test_an_answer_goes_to_an_allowed_response_topic_with_its_correlation_data(
    serve, configure, program, digits, device
):
    await serve(configure(mqtt={"reply_topics": [f"replies/{device}/+"]}))
    await program.subscribe(f"replies/{device}/#")
    topic = f"replies/{device}/app"
    await program.submit(
        "digits", digits.job("there"), ResponseTopic=topic, CorrelationData=b"\x00mine"
    )
    message = await program.message(topic)
    assert digits.read(json.loads(message.payload)) == "3"
    assert message.properties.CorrelationData == b"\x00mine"
    assert program.on("results/there") == []


@pytest.mark.parametrize("topic", ["replies/{}/app/below", "other/{}", "edgewise/v1/{}/jobs/x"])
async def test_an_answer_to_another_response_topic_goes_to_its_results_topic(
    serve, configure, program, digits, device, topic
):
    await serve(configure(mqtt={"reply_topics": [f"replies/{device}/+"]}))
    elsewhere = topic.format(device)
    await program.subscribe(elsewhere)
    await program.submit("digits", digits.job("here"), ResponseTopic=elsewhere)
    assert digits.read(await program.answer("here")) == "3"
    # Another answer behind it: had the first gone elsewhere too, it would be here by now.
    await program.submit("digits", digits.job("next"))
    await program.answer("next")
    assert program.on(elsewhere) == []


async def test_an_id_sent_again_while_it_runs_joins_the_job(
    serve, configure, program, connect, digits, cloud, device
):
    serving = await serve(configure(cloud=cloud, mqtt={"reply_topics": [f"replies/{device}"]}))
    await program.subscribe(f"replies/{device}")
    cloud.behaviour = "hang"
    job = digits.job("once", placement="only_cloud")
    await program.submit("digits", job)
    await cloud.saw("once")
    await program.submit("digits", job)
    await program.submit("digits", job, ResponseTopic=f"replies/{device}")
    # Behind them in the daemon's order: when this is answered, they have been taken in.
    await program.submit("digits", digits.job("behind"))
    await program.answer("behind")
    cloud.release("once")
    assert digits.read(await program.answer("once")) == cloud.says
    assert json.loads((await program.message(f"replies/{device}")).payload)["id"] == "once"
    assert cloud.seen == ["once"]
    assert len(program.on("results/once")) == 1
    assert await serving.metric("edgewise_jobs_received_total") == 2


async def test_an_id_sent_again_after_its_answer_is_answered_again_and_not_run(
    serve, configure, program, digits, cloud
):
    serving = await serve(configure(cloud=cloud))
    job = digits.job("again", placement="only_cloud")
    await program.submit("digits", job)
    first = await program.answer("again")
    await program.submit("digits", job)
    assert await program.answer("again", count=2) == first
    assert cloud.seen == ["again"]
    assert await serving.metric("edgewise_jobs_total", outcome="succeeded") == 1


async def test_a_running_job_is_cancelled_once(serve, configure, program, digits, cloud):
    serving = await serve(configure(cloud=cloud))
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("stop", placement="only_cloud"))
    await cloud.saw("stop")
    await program.publish("cancel/stop")
    await program.publish("cancel/stop")
    assert (await program.answer("stop"))["parameters"]["code"] == "cancelled"
    await program.submit("digits", digits.job("next"))
    assert digits.read(await program.answer("next")) == "3"
    assert len(program.on("results/stop")) == 1
    assert await serving.metric("edgewise_jobs_total", outcome="cancelled") == 1
    assert await serving.metric("edgewise_jobs_running") == 0


async def test_a_waiting_job_is_cancelled_and_never_runs(serve, configure, program, digits, frozen):
    serving = await serve(configure())
    with frozen(serving.workers):
        await program.submit("digits", digits.job("ahead"))
        await program.progress("ahead", "started")
        await program.submit("digits", digits.job("waits"))
        await program.progress("waits", "accepted")
        await program.publish("cancel/waits")
        assert (await program.answer("waits"))["parameters"]["code"] == "cancelled"
    assert digits.read(await program.answer("ahead")) == "3"
    await program.submit("digits", digits.job("behind"))
    await program.answer("behind")
    assert program.states("waits") == ["accepted"]
    assert await serving.metric("edgewise_jobs_waiting") == 0


async def test_a_cancelled_id_sent_again_stays_cancelled(serve, configure, program, digits, cloud):
    await serve(configure(cloud=cloud))
    cloud.behaviour = "hang"
    job = digits.job("stop", placement="only_cloud")
    await program.submit("digits", job)
    await cloud.saw("stop")
    await program.publish("cancel/stop")
    await program.answer("stop")
    await program.submit("digits", job)
    assert (await program.answer("stop", 2))["parameters"]["code"] == "cancelled"
    assert cloud.seen == ["stop"]


async def test_a_cancel_after_the_answer_changes_nothing(serve, configure, program, digits):
    serving = await serve(configure())
    await program.submit("digits", digits.job("done"))
    await program.answer("done")
    await program.publish("cancel/done")
    await program.submit("digits", digits.job("done"))
    assert digits.read(await program.answer("done", 2)) == "3"
    assert await serving.metric("edgewise_bad_messages_total") == 0


async def test_a_cancel_of_no_job_is_counted(serve, configure, program, digits):
    serving = await serve(configure())
    await program.publish("cancel/nonesuch")
    await program.submit("digits", digits.job("next"))
    await program.answer("next")
    assert await serving.metric("edgewise_bad_messages_total", reason="bad_request") == 1


async def test_progress_tells_each_step(serve, configure, program, digits):
    await serve(configure())
    await program.submit("digits", digits.job("steps"))
    await program.answer("steps")
    assert program.states("steps") == ["accepted", "started"]
    assert json.loads(program.on("progress/steps")[0].payload)["id"] == "steps"


async def test_each_decision_is_published_with_its_reasons(
    serve, configure, program, digits, cloud
):
    await serve(configure(cloud=cloud, policy={"name": "threshold"}))
    await program.submit("digits", digits.job("told", privacy="device", priority=7))
    answer = await program.answer("told")
    decision = json.loads((await program.message("decisions")).payload)
    assert decision["id"] == "told"
    assert decision["model"] == "digits"
    assert decision["policy"] == "threshold"
    assert decision["route"] == answer["parameters"]["route"] == "local"
    assert decision["reason"] == answer["parameters"]["reason"]
    assert decision["job"]["priority"] == 7
    assert {"cpu_utilization_ratio", "battery_charge_ratio"} <= {
        term["name"] for term in decision["reasons"]
    }
    local, lab = decision["routes"]
    assert local["name"] == "local"
    assert local["estimate"]["latency_mean_s"] > 0
    assert lab["name"] == "cloud:lab"
    assert "private" in lab["closed"]


async def test_a_job_tried_twice_has_a_decision_for_each(serve, configure, program, digits, cloud):
    await serve(configure(cloud=cloud))
    cloud.behaviour = "fail"
    await program.submit("digits", digits.job("twice", placement="prefer_cloud"))
    await program.answer("twice")
    decisions = [json.loads(m.payload) for m in await program.messages("decisions", 2)]
    assert [decision["route"] for decision in decisions] == ["cloud", "local"]
    assert decisions[0]["endpoint"] == "lab"
    assert decisions[1]["reason"] == "retry"
