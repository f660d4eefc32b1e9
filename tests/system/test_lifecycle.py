"""Start, stop, sudden death, and what becomes of the jobs."""

import json
import os
import signal
import socket


async def test_sigterm_drains_says_offline_and_exits_0(
    start_daemon, configure, program, digits, cloud
):
    daemon = await start_daemon(configure(cloud=cloud))
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("last", placement="only_cloud"))
    await cloud.saw("last")
    daemon.signal(signal.SIGTERM)
    await daemon.logged("stopping")
    assert program.on("results/last") == []
    cloud.release("last")
    assert digits.read(await program.answer("last")) == cloud.says
    assert await daemon.ended() == 0
    assert await program.status("offline") == {"status": "offline"}
    topics = [topic for topic, _ in program.heard if topic in {"results/last", "status"}]
    assert topics == ["status", "results/last", "status"]
    assert daemon.log[-1]["event"] == "stopped"


async def test_a_daemon_without_work_ends_at_once_on_sigint(start_daemon, configure, program):
    daemon = await start_daemon(configure())
    daemon.signal(signal.SIGINT)
    assert await daemon.ended() == 0
    await program.status("offline")


async def test_a_second_signal_ends_the_drain_and_the_job_comes_back(
    start_daemon, configure, program, digits, cloud
):
    config = configure(cloud=cloud)
    first = await start_daemon(config)
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("kept", placement="only_cloud"))
    await cloud.saw("kept")
    first.signal(signal.SIGTERM)
    await first.logged("stopping")
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    cloud.behaviour = "serve"
    await start_daemon(config)
    assert digits.read(await program.answer("kept")) == cloud.says


async def test_a_job_published_while_the_daemon_is_down_is_answered_when_it_is_up(
    start_daemon, configure, program, digits
):
    config = configure()
    first = await start_daemon(config)
    first.signal(signal.SIGTERM)
    await first.ended()
    await program.submit("digits", digits.job("patient"))
    program.forget()
    await start_daemon(config)
    assert digits.read(await program.answer("patient")) == "3"


async def test_after_kill_9_the_will_says_offline_and_the_workers_are_gone(
    start_daemon, configure, program
):
    daemon = await start_daemon(configure(local={"workers": 2}))
    workers = daemon.workers
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGSTOP)
    daemon.signal(signal.SIGKILL)
    assert await program.status("offline") == {"status": "offline"}
    # It ends with the last that holds its standard error: with the workers, the stopped one too.
    assert await daemon.ended() == -signal.SIGKILL


async def test_a_job_unanswered_at_kill_9_is_answered_after_the_restart(
    start_daemon, configure, program, digits
):
    config = configure()
    first = await start_daemon(config)
    (worker,) = first.workers
    os.kill(worker, signal.SIGSTOP)
    for number in range(5):
        await program.submit("digits", digits.job(f"kept-{number}"))
    await program.submit("digits", digits.png("4"), User={"id": "kept-png"})
    await program.progress("kept-0", "started")
    await program.progress("kept-png", "accepted")
    first.signal(signal.SIGKILL)
    await first.ended()
    assert program.on("results/+") == []
    program.forget()
    second = await start_daemon(config)
    for number in range(5):
        assert digits.read(await program.answer(f"kept-{number}")) == "3"
    assert digits.read(await program.answer("kept-png")) == "4"
    assert (await second.logged("mqtt_connected"))["resumed"] is True
    # The broker holds nothing back: what comes next is new.
    await program.submit("digits", digits.job("new"))
    await program.answer("new")
    assert len(program.on("results/+")) == 7


async def test_what_was_answered_is_acknowledged_and_does_not_come_back(
    start_daemon, configure, program, digits
):
    config = configure()
    first = await start_daemon(config)
    await program.submit("digits", digits.job("done"))
    await program.submit("digits", b"no job")
    await program.answer("done")
    await program.submit("digits", digits.job("behind"))
    await program.answer("behind")
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    program.forget()
    second = await start_daemon(config)
    await program.submit("digits", digits.job("new"))
    await program.answer("new")
    assert len(program.on("results/+")) == 1
    assert await second.metric("edgewise_bad_messages_total") == 0


async def test_each_start_has_a_boot_id_of_its_own(start_daemon, configure, program):
    config = configure()
    boots = set()
    for _ in range(2):
        program.forget()
        daemon = await start_daemon(config)
        boots.add((await program.status("online"))["boot_id"])
        daemon.signal(signal.SIGTERM)
        await daemon.ended()
    assert len(boots) == 2


async def test_a_port_that_is_taken_ends_the_start_with_one_line(edgewise, configure):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = await edgewise("run", "--config", configure(http={"listen": listen}))
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if not line.startswith("{")]
    assert line.startswith("edgewise: http.listen")
    assert listen in line


async def test_a_daemon_starts_without_its_broker_and_says_why_it_is_not_ready(
    start_daemon, configure
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{closed.getsockname()[1]}"
        daemon = await start_daemon(configure(mqtt={"url": url}), heard_by=None)
        await daemon.logged("mqtt_disconnected")
        status, reason = await daemon.get("/readyz")
    assert status == 503
    assert "broker" in reason
    assert (await daemon.get("/healthz"))[0] == 200


async def test_logs_are_json_with_one_line_for_each_answer(
    start_daemon, configure, program, digits
):
    daemon = await start_daemon(configure())
    await program.submit("digits", digits.job("noted"))
    answer = await program.answer("noted")
    line = await daemon.logged("job_answered")
    assert line["job_id"] == "noted"
    assert line["route"] == answer["parameters"]["route"]
    assert json.dumps(line)


async def test_a_broker_that_hangs_does_not_keep_the_daemon_from_ending(
    start_daemon, configure, start_broker
):
    broker = start_broker()
    daemon = await start_daemon(configure(at=broker), heard_by=None)
    os.kill(broker._process.pid, signal.SIGSTOP)
    try:
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    finally:
        os.kill(broker._process.pid, signal.SIGCONT)
