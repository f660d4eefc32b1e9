"""What the store is for: jobs that wait, come again, or find no room, and a disk that fails."""

import asyncio
import json
import sqlite3

import pytest

from agent.mqtt.link import Delivery

ONLY_CLOUD = {"placement": "only_cloud", "deferrable": True, "deadline_ms": 600_000}


def code(answer):
    return answer["parameters"]["code"]


async def ready(serving):
    """Wait until the daemon is ready."""
    async with asyncio.timeout(20):
        while (await serving.get("/readyz"))[0] != 200:
            pass


async def test_a_deferrable_job_without_a_route_waits_and_is_answered_when_one_opens(
    serve, configure, program, digits, cloud
):
    await cloud.refuse()
    serving = await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("late", **ONLY_CLOUD))
    told = await program.progress("late", "deferred")
    assert "endpoint 'lab'" in told["reason"]
    assert await serving.metric("edgewise_jobs_deferred") == 1
    assert await serving.metric("edgewise_store_jobs", state="deferred") == 1
    assert program.on("results/late") == []
    await cloud.start()
    answer = await program.answer("late")
    assert digits.read(answer) == cloud.says
    assert answer["parameters"]["attempts"] >= 2
    assert await serving.metric("edgewise_jobs_deferred") == 0


async def test_a_deferred_job_is_answered_where_its_requester_asked_across_restarts(
    serve, configure, program, digits, cloud
):
    await cloud.refuse()
    config = configure(cloud=cloud, mqtt={"reply_topics": ["replies/#"]})
    first = await serve(config)
    await program.subscribe("replies/#")
    await program.submit(
        "digits",
        digits.job("late", **ONLY_CLOUD),
        ResponseTopic="replies/mine",
        CorrelationData=b"7",
    )
    await program.progress("late", "deferred")
    await first.stop()
    await cloud.start()
    program.forget()
    await serve(config)
    message = await program.message("replies/mine")
    assert message.properties.CorrelationData == b"7"
    assert digits.read(json.loads(message.payload)) == cloud.says


async def test_a_private_job_does_not_wait_for_the_cloud(serve, configure, program, digits, cloud):
    await cloud.refuse()
    await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("secret", **ONLY_CLOUD, privacy="device"))
    assert code(await program.answer("secret")) == "no_route"


async def test_a_deferred_job_past_its_deadline_is_answered_so_and_not_run(
    serve, configure, program, digits, cloud
):
    await cloud.refuse()
    await serve(configure(cloud=cloud))
    terms = {**ONLY_CLOUD, "deadline_ms": 300}
    await program.submit("digits", digits.job("late", **terms))
    assert code(await program.answer("late")) == "deadline_exceeded"
    assert cloud.seen == []


async def test_a_deferred_job_is_cancelled_once(serve, configure, program, digits, cloud):
    await cloud.refuse()
    serving = await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("unwanted", **ONLY_CLOUD))
    await program.progress("unwanted", "deferred")
    await program.publish("cancel/unwanted")
    assert code(await program.answer("unwanted")) == "cancelled"
    assert await serving.metric("edgewise_jobs_deferred") == 0


async def test_a_deferred_id_sent_again_joins_the_job(serve, configure, program, digits, cloud):
    await cloud.refuse()
    serving = await serve(configure(cloud=cloud))
    for count in (1, 2):
        await program.submit("digits", digits.job("late", **ONLY_CLOUD))
        await program.progress("late", "deferred")
        assert await serving.metric("edgewise_jobs_received_total") == 1, count
    await cloud.start()
    await program.answer("late")
    assert cloud.seen == ["late"]


async def test_the_backlog_goes_on_urgent_jobs_first(serve, configure, program, digits, cloud):
    await cloud.refuse()
    await serve(configure(cloud=cloud))
    for number in range(40):
        terms = {**ONLY_CLOUD, "priority": 9 if number == 39 else 5}
        await program.submit("digits", digits.job(f"job-{number}", **terms))
    for number in range(40):
        await program.progress(f"job-{number}", "deferred")
    await cloud.start()
    await program.messages("results/+", 40)
    assert len(set(cloud.seen)) == len(cloud.seen) == 40
    # A few may have been on their way when the most urgent came.
    assert cloud.seen.index("job-39") < 5


async def test_the_same_id_for_another_payload_is_a_bad_request_and_the_job_goes_on(
    serve, configure, program, digits, cloud
):
    await serve(configure(cloud=cloud))
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("mine", "3", placement="only_cloud"))
    await cloud.saw("mine")
    await program.submit("digits", digits.job("mine", "4", placement="only_cloud"))
    refused = await program.answer("mine")
    assert code(refused) == "bad_request"
    assert "different job" in refused["error"]
    cloud.release("mine")
    assert digits.read(await program.answer("mine", 2)) == cloud.says
    await program.submit("digits", digits.job("mine", "4", placement="only_cloud"))
    assert code(await program.answer("mine", 3)) == "bad_request"
    assert cloud.seen == ["mine"]


async def test_the_same_request_on_other_terms_is_the_same_job(serve, configure, program, digits):
    await serve(configure())
    await program.submit("digits", digits.job("mine", deadline_ms=5000))
    first = await program.message("results/mine")
    await program.submit("digits", digits.job("mine", deadline_ms=4000, priority=9))
    assert (await program.message("results/mine", 2)).payload == first.payload


async def test_an_answer_is_given_again_after_a_restart(serve, configure, program, digits):
    config = configure()
    first = await serve(config)
    await program.submit("digits", digits.job("mine"))
    before = await program.message("results/mine")
    await first.stop()
    second = await serve(config)
    await program.submit("digits", digits.job("mine"))
    assert (await program.message("results/mine", 2)).payload == before.payload
    assert await second.metric("edgewise_jobs_received_total") == 0


@pytest.mark.parametrize("after", ["a broken connection", "a restart"])
async def test_a_job_without_an_id_that_is_handed_over_again_is_the_same_job(
    serve, configure, program, digits, monkeypatch, after
):
    config = configure()
    serving = await serve(config)
    with monkeypatch.context() as patch:
        # The acknowledgement never gets to the broker.
        patch.setattr(Delivery, "done", lambda delivery: None)
        await program.submit("digits", digits.png("4"))
        (first,) = await program.messages("results/+", 1)
        if after == "a restart":
            await serving.stop()
        else:
            serving.daemon.gateway.session._link._end("cut by the test")
    if after == "a restart":
        serving = await serve(config)
    again = await program.messages("results/+", 2)
    assert (again[1].topic.value, again[1].payload) == (first.topic.value, first.payload)
    received = await serving.metric("edgewise_jobs_received_total")
    assert received == (0 if after == "a restart" else 1)


async def test_a_request_that_was_refused_does_not_use_up_its_id(serve, configure, program, digits):
    await serve(configure())
    await program.submit("digits", b'{"id": "mine", "inputs": 7}')
    assert code(await program.answer("mine")) == "bad_request"
    await program.submit("digits", digits.job("mine"))
    assert digits.read(await program.answer("mine", 2)) == "3"


async def test_beyond_the_limit_the_lowest_priority_gives_way(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(limits={"max_waiting_jobs": 6}))
    # A worker is sent up to four; they have begun and give way to nobody.
    with frozen(serving.workers):
        for number in range(6):
            await program.submit("digits", digits.job(f"job-{number}", priority=3))
            await program.progress(f"job-{number}", "accepted")
        await program.submit("digits", digits.job("equal", priority=3))
        refused = await program.answer("equal")
        assert code(refused) == "overloaded"
        assert "max_waiting_jobs is 6" in refused["error"]
        assert refused["parameters"]["retry_after_ms"] > 0
        await program.submit("digits", digits.job("urgent", priority=8))
        displaced = await program.answer("job-5")
        assert code(displaced) == "overloaded"
        assert displaced["parameters"]["retry_after_ms"] > 0
    assert digits.read(await program.answer("urgent")) == "3"
    for number in range(5):
        assert digits.read(await program.answer(f"job-{number}")) == "3"


async def test_beyond_the_limit_a_deferrable_job_waits_on_disk(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(limits={"max_waiting_jobs": 1}))
    with frozen(serving.workers):
        await program.submit("digits", digits.job("first"))
        await program.progress("first", "accepted")
        await program.submit("digits", digits.job("second", deferrable=True))
        await program.progress("second", "deferred")
    assert digits.read(await program.answer("second")) == "3"


async def test_beyond_the_limit_of_bytes_jobs_are_refused(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(limits={"max_waiting_bytes": 300}))
    with frozen(serving.workers):
        await program.submit("digits", digits.job("first"))
        await program.progress("first", "accepted")
        await program.submit("digits", digits.job("second"))
        refused = await program.answer("second")
        assert code(refused) == "overloaded"
        assert "max_waiting_bytes is 300" in refused["error"]
    await program.answer("first")


async def test_an_overloaded_id_is_free_again_after_its_time(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(limits={"max_waiting_jobs": 1}))
    with frozen(serving.workers):
        await program.submit("digits", digits.job("first"))
        await program.progress("first", "accepted")
        await program.submit("digits", digits.job("again"))
        refused = await program.answer("again")
    await program.answer("first")
    await asyncio.sleep(0)
    again_at = serving.daemon.store.now() + refused["parameters"]["retry_after_ms"] / 1000
    timeline = serving.daemon.store._timeline
    serving.daemon.store._timeline = type(timeline)(
        timeline.boot_id, timeline.offset_s + again_at - timeline.now() + 0.1
    )
    await program.submit("digits", digits.job("again"))
    assert digits.read(await program.answer("again", 2)) == "3"


async def test_a_full_store_refuses_jobs_and_says_so(serve, configure, program, digits, cloud):
    await cloud.refuse()
    await serve(configure(cloud=cloud, store={"max_jobs": 2}))
    for number in range(2):
        await program.submit("digits", digits.job(f"job-{number}", **ONLY_CLOUD))
        await program.progress(f"job-{number}", "deferred")
    await program.submit("digits", digits.job("third"))
    refused = await program.answer("third")
    assert code(refused) == "overloaded"
    assert "store.max_jobs is 2" in refused["error"]


async def test_while_the_disk_fails_jobs_stay_with_the_broker_and_it_heals(
    serve, configure, program, digits, commits
):
    serving = await serve(configure())
    await program.submit("digits", digits.job("before"))
    await program.answer("before")
    with commits.failing(serving, sqlite3.OperationalError("database or disk is full")):
        await program.submit("digits", digits.job("caught"))
        await program.progress("caught", "started")
        status, reason = 200, ""
        async with asyncio.timeout(20):
            while status == 200:
                status, reason, _ = await serving.get("/readyz")
        assert reason == "store: database or disk is full\n"
        await program.submit("digits", digits.job("held"))
        assert (await serving.get("/healthz"))[0] == 200
        assert program.on("results/caught") == []
    assert digits.read(await program.answer("caught")) == "3"
    assert digits.read(await program.answer("held")) == "3"
    await ready(serving)


async def test_a_store_that_breaks_while_in_use_is_set_aside_and_nothing_in_memory_is_lost(
    serve, configure, program, digits, cloud, tmp_path
):
    serving = await serve(configure(cloud=cloud))
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("under-way", placement="only_cloud"))
    await cloud.saw("under-way")
    broken = sqlite3.DatabaseError("database disk image is malformed")
    broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    database = serving.daemon.store._database
    apply = database._apply

    def fail_once(batch):
        database._apply = apply
        raise broken

    database._apply = fail_once
    await program.submit("digits", digits.job("next"))
    assert digits.read(await program.answer("next")) == "3"
    cloud.release("under-way")
    assert digits.read(await program.answer("under-way")) == cloud.says
    assert list((tmp_path / "state").glob("edgewise.db.corrupt-*"))
    await ready(serving)


async def test_paused_jobs_are_taken_in_and_wait(serve, configure, program, digits):
    serving = await serve(configure())
    await program.subscribe(f"{program.root}/control/+/reply")
    await program.publish("control/pause")
    assert json.loads((await program.message("control/pause/reply")).payload) == {"ok": True}
    await program.submit("digits", digits.job("patient"))
    await program.progress("patient", "accepted")
    assert await serving.metric("edgewise_store_jobs", state="waiting") == 1
    assert program.on("results/patient") == []
    await program.publish("control/resume")
    assert digits.read(await program.answer("patient")) == "3"


async def test_a_job_that_can_not_be_done_is_told_so_after_the_pause_and_not_at_its_deadline(
    serve, configure, program, digits
):
    await serve(configure())
    await program.subscribe(f"{program.root}/control/+/reply")
    await program.publish("control/pause")
    await program.message("control/pause/reply")
    await program.submit("unheard-of", digits.job("odd", deferrable=True, deadline_ms=3_600_000))
    await program.progress("odd", "accepted")
    await program.publish("control/resume")
    assert (await program.answer("odd"))["parameters"]["code"] == "unknown_model"


async def test_an_unknown_command_is_refused(serve, configure, program):
    await serve(configure())
    await program.subscribe(f"{program.root}/control/+/reply")
    await program.publish("control/dance")
    reply = json.loads((await program.message("control/dance/reply")).payload)
    assert reply["ok"] is False
    assert "unknown command 'dance'" in reply["error"]


@pytest.mark.parametrize("of", ["policy", "models", "limits"])
async def test_a_reload_goes_by_the_new_configuration(serve, configure, program, digits, cloud, of):
    serving = await serve(configure(cloud=cloud))
    await program.subscribe(f"{program.root}/control/+/reply")
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("under-way", placement="only_cloud"))
    await cloud.saw("under-way")
    changed = {
        "policy": {"policy": {"name": "prefer-cloud"}},
        "models": {"local": {"workers": 2}},
        "limits": {"limits": {"max_payload_bytes": 10}},
    }[of]
    configure(cloud=cloud, **changed)
    await program.publish("control/reload")
    assert json.loads((await program.message("control/reload/reply")).payload) == {"ok": True}
    cloud.behaviour = "serve"
    await program.submit("digits", digits.job("next"))
    answer = await program.answer("next")
    if of == "policy":
        assert answer["parameters"]["route"] == "cloud"
    elif of == "models":
        assert digits.read(answer) == "3"
        assert len(serving.workers) == 2
    else:
        assert code(answer) == "too_large"
    cloud.release("under-way")
    assert digits.read(await program.answer("under-way")) == cloud.says


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"policy": {"name": "nonsense"}}, "nonsense"),
        ({"limits": {"max_waiting_jobs": 0}}, "limits.max_waiting_jobs"),
        ({"models": {"points": {"path": "/nowhere.tflite"}}}, "models.points"),
    ],
)
async def test_a_reload_of_a_bad_configuration_changes_nothing(
    serve, configure, program, digits, changed, why
):
    await serve(configure())
    await program.subscribe(f"{program.root}/control/+/reply")
    configure(**changed)
    await program.publish("control/reload")
    reply = json.loads((await program.message("control/reload/reply")).payload)
    assert reply["ok"] is False
    assert why in reply["error"]
    await program.submit("digits", digits.job("next"))
    assert digits.read(await program.answer("next")) == "3"


async def test_a_reload_names_what_takes_a_restart(serve, configure, program):
    await serve(configure())
    await program.subscribe(f"{program.root}/control/+/reply")
    configure(store={"max_jobs": 7})
    await program.publish("control/reload")
    reply = json.loads((await program.message("control/reload/reply")).payload)
    assert reply == {"ok": True, "restart_needed_for": ["store"]}
