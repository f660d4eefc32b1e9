"""The broker away, restarted, or unwilling: what was acknowledged, and when."""

import asyncio
import json

PUBACK = r"Received PUBACK from edgewise-\S+ \(Mid: (\d+)"
HANDED_OVER = r"Sending PUBLISH to edgewise-\S+ \(d\d, q1, r\d, m(\d+), '\S+/jobs/"
STATE = r"Received PUBLISH from edgewise-.*/state'"
PACKETS = ("log_type all",)


async def test_a_broker_that_restarts_is_found_again(
    serve, configure, connect, start_broker, digits
):
    broker = start_broker()
    before = await connect(broker)
    serving = await serve(configure(at=broker), heard_by=before)
    await before.submit("digits", digits.job("before"))
    await before.answer("before")
    broker.stop()
    broker.start()
    after = await connect(broker)
    # Nothing was kept: that the device is online is said anew.
    birth = await after.status("online")
    assert birth == await before.status("online")
    await after.submit("digits", digits.job("after"))
    assert digits.read(await after.answer("after")) == "3"
    assert await serving.metric("edgewise_mqtt_connected") == 1


async def test_without_its_broker_a_daemon_is_healthy_and_not_ready(
    serve, configure, connect, start_broker
):
    broker = start_broker()
    program = await connect(broker)
    serving = await serve(configure(at=broker), heard_by=program)
    assert (await serving.get("/readyz"))[0] == 200
    gone = asyncio.Event()
    serving.daemon.gateway.session._on_change = lambda up: gone.set()
    broker.stop()
    await asyncio.wait_for(gone.wait(), 10)
    status, reason, _ = await serving.get("/readyz")
    assert status == 503
    assert reason.startswith("broker: ")
    assert len(reason) > 15
    assert (await serving.get("/healthz"))[0] == 200
    assert await serving.metric("edgewise_mqtt_connected") == 0


async def test_an_answer_made_while_the_broker_is_away_is_published_when_it_is_back(
    serve, configure, connect, start_broker, digits, cloud
):
    broker = start_broker()
    before = await connect(broker)
    await serve(configure(at=broker, cloud=cloud), heard_by=before)
    cloud.behaviour = "hang"
    await before.submit("digits", digits.job("kept", placement="only_cloud"))
    await cloud.saw("kept")
    broker.stop()
    cloud.release("kept")
    broker.start()
    after = await connect(broker)
    assert digits.read(await after.answer("kept")) == cloud.says


async def test_jobs_are_acknowledged_in_the_order_of_receipt_once_they_are_on_disk(
    serve, configure, connect, start_broker, digits, cloud, commits
):
    broker = start_broker(*PACKETS)
    program = await connect(broker)
    serving = await serve(configure(at=broker, cloud=cloud), heard_by=program)
    cloud.behaviour = "hang"
    with commits.held(serving):
        await program.submit("digits", digits.job("first", placement="only_cloud"))
        await cloud.saw("first")
        for job_id in ("second", "third"):
            await program.submit("digits", digits.job(job_id, placement="only_cloud"))
            await cloud.saw(job_id)
        # They run already, and the broker could still give them to another start of the daemon.
        assert broker.lines(PUBACK) == []
    mids = await broker.logged(HANDED_OVER, 3)
    assert await broker.logged(PUBACK, 3) == mids
    for job_id in ("third", "second", "first"):
        cloud.release(job_id)
        await program.answer(job_id)


async def test_an_answer_is_on_disk_before_it_is_published(
    serve, configure, program, digits, commits
):
    serving = await serve(configure())
    with commits.held(serving):
        await program.submit("digits", digits.job("kept"))
        await program.progress("kept", "started")
        await commits.tried()
        assert program.on("results/kept") == []
    assert digits.read(await program.answer("kept")) == "3"


async def test_the_ack_of_an_older_connection_touches_no_job_of_the_next(
    serve, configure, connect, start_broker, digits, cloud, commits
):
    broker = start_broker(*PACKETS)
    before = await connect(broker)
    config = configure(at=broker, cloud=cloud, device={"state_interval_s": 0.05})
    serving = await serve(config, heard_by=before)
    cloud.behaviour = "hang"
    with commits.held(serving):
        await before.submit("digits", digits.job("old", placement="only_cloud"))
        await commits.tried()
        broker.stop()
        broker.start()
        after = await connect(broker)
        await after.status("online")
        await after.submit("digits", digits.job("new", placement="only_cloud"))
        await cloud.saw("new")
        # The broker began to count again: both deliveries have the same message id.
        old, new = await broker.logged(HANDED_OVER, 2)
        assert old == new
        await commits.let_one()
        published = len(broker.lines(STATE))
        await broker.logged(STATE, published + 2)
        assert broker.lines(PUBACK) == []
    assert (await broker.logged(PUBACK))[0] == new
    for job_id in ("old", "new"):
        cloud.release(job_id)
        await after.answer(job_id)


async def test_a_job_sent_again_after_the_broker_lost_it_is_not_run_again(
    serve, configure, connect, start_broker, digits, cloud
):
    broker = start_broker()
    before = await connect(broker)
    await serve(configure(at=broker, cloud=cloud), heard_by=before)
    cloud.behaviour = "hang"
    job = digits.job("lost", placement="only_cloud")
    await before.submit("digits", job)
    await cloud.saw("lost")
    broker.stop()
    broker.start()
    after = await connect(broker)
    await after.status("online")
    await after.submit("digits", job)
    await after.submit("digits", digits.job("behind"))
    await after.answer("behind")
    cloud.release("lost")
    assert digits.read(await after.answer("lost")) == cloud.says
    assert cloud.seen == ["lost"]


async def test_an_answer_refused_on_its_response_topic_goes_to_its_results_topic(
    serve, configure, connect, start_broker, digits, tmp_path
):
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite edgewise/#\ntopic read replies/#\n")
    broker = start_broker(f"acl_file {rules}")
    program = await connect(broker)
    config = configure(at=broker, mqtt={"reply_topics": ["replies/#"]})
    await serve(config, heard_by=program)
    await program.subscribe("replies/#")
    await program.submit(
        "digits", digits.job("denied"), ResponseTopic="replies/app", CorrelationData=b"x"
    )
    message = await program.message("results/denied")
    assert digits.read(json.loads(message.payload)) == "3"
    assert getattr(message.properties, "CorrelationData", None) is None
    assert program.on("replies/app") == []


async def test_answers_that_the_broker_refuses_make_the_daemon_unready(
    serve, configure, connect, start_broker, digits, device, tmp_path
):
    rules = tmp_path / "acl"
    rules.write_text(
        f"topic deny edgewise/v1/{device}/results/denied\ntopic readwrite edgewise/#\n"
    )
    broker = start_broker(f"acl_file {rules}", *PACKETS)
    program = await connect(broker)
    serving = await serve(configure(at=broker), heard_by=program)
    await program.submit("digits", digits.job("denied"))
    await broker.logged(r"Denied PUBLISH from edgewise-.*/results/denied")
    status, reason = 200, ""
    async with asyncio.timeout(10):
        while status == 200:
            status, reason, _ = await serving.get("/readyz")
    assert status == 503
    assert "answers" in reason
    assert "Not authorized" in reason


async def test_the_broker_is_logged_in_to_with_the_password_of_a_file(
    serve, configure, connect, start_broker, digits, tmp_path
):
    passwords, rules = tmp_path / "passwords", tmp_path / "acl"
    passwords.touch(mode=0o600)
    making = await asyncio.create_subprocess_exec(
        *("mosquitto_passwd", "-b", passwords, "edge", "right")
    )
    assert await making.wait() == 0
    # Who does not log in may ask and listen, but not answer.
    rules.write_text(
        "topic read edgewise/#\ntopic write edgewise/v1/+/jobs/#\n"
        "user edge\ntopic readwrite edgewise/#\n"
    )
    (tmp_path / "password").write_text("right\n")
    broker = start_broker(f"password_file {passwords}", f"acl_file {rules}")
    program = await connect(broker)
    login = {"username": "edge", "password_file": "password"}
    await serve(configure(at=broker, mqtt=login), heard_by=program)
    await program.submit("digits", digits.job("trusted"))
    assert digits.read(await program.answer("trusted")) == "3"
