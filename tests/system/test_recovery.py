"""Kills, full disks and second daemons: what was promised is kept."""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing

import pytest

LATER = {"placement": "only_cloud", "deferrable": True, "deadline_ms": 600_000}


def rows(tmp_path, what):
    """Read the store beside the daemon."""
    with closing(sqlite3.connect(tmp_path / "state" / "edgewise.db")) as store:
        return store.execute(f"SELECT {what} FROM jobs").fetchall()


async def until(read, wanted):
    async with asyncio.timeout(20):
        while read() != wanted:  # noqa: ASYNC110 - another process's file tells of no events
            await asyncio.sleep(0.01)


class SmallDisk:
    """A disk of 8 MB that holds the state directory."""

    def __init__(self, folder):
        self._folder = folder
        self._filling = folder / "filling"

    def fill(self):
        """Leave no byte free."""
        with self._filling.open("wb", buffering=0) as filling, contextlib.suppress(OSError):
            while filling.write(bytes(4096)):
                pass

    def free(self):
        self._filling.unlink()

    def remount(self, how):
        """Make it read-only (ro) or writable (rw)."""
        subprocess.run(["mount", "-o", f"remount,{how}", self._folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root")
    state = tmp_path / "state"
    state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", state], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode()}")
    yield SmallDisk(state)
    subprocess.run(["umount", "--lazy", state], check=True)


async def test_jobs_that_were_acknowledged_survive_kill_9(
    start_daemon, configure, program, digits, cloud, tmp_path
):
    config = configure(cloud=cloud)
    first = await start_daemon(config)
    cloud.behaviour = "hang"
    for number in range(20):
        await program.submit("digits", digits.job(f"job-{number}", placement="only_cloud"))
    # Committed and acknowledged; neither the broker nor the program sends them again.
    await until(lambda: len(rows(tmp_path, "n")), 20)
    first.signal(signal.SIGKILL)
    await first.ended()
    cloud.behaviour = "serve"
    await start_daemon(config)
    for number in range(20):
        assert digits.read(await program.answer(f"job-{number}")) == cloud.says


async def test_an_answer_that_could_not_be_published_is_published_by_the_next_start(
    start_daemon, configure, connect, start_broker, digits, cloud, tmp_path
):
    broker = start_broker()
    before = await connect(broker)
    config = configure(at=broker, cloud=cloud)
    first = await start_daemon(config, heard_by=before)
    cloud.behaviour = "hang"
    await before.submit("digits", digits.job("kept", placement="only_cloud"))
    await cloud.saw("kept")
    broker.stop()
    cloud.release("kept")
    await until(lambda: rows(tmp_path, "id, state"), [("kept", "answered")])
    first.signal(signal.SIGKILL)
    await first.ended()
    cloud.behaviour = "serve"
    broker.start()
    after = await connect(broker)
    await start_daemon(config, heard_by=after)
    assert digits.read(await after.answer("kept")) == cloud.says
    assert cloud.seen == ["kept"]


async def test_all_answers_of_an_earlier_start_get_out_however_many(
    start_daemon, configure, connect, start_broker, digits, tmp_path
):
    broker = start_broker()
    before = await connect(broker)
    config = configure(at=broker)
    first = await start_daemon(config, heard_by=before)
    (worker,) = first.workers
    os.kill(worker, signal.SIGSTOP)
    for number in range(200):
        await before.submit("digits", digits.job(f"job-{number}"))
    await until(lambda: len(rows(tmp_path, "n")), 200)
    broker.stop()
    os.kill(worker, signal.SIGCONT)
    await until(lambda: set(rows(tmp_path, "state")), {("answered",)})
    first.signal(signal.SIGKILL)
    await first.ended()
    broker.start()
    after = await connect(broker)
    await start_daemon(config, heard_by=after)
    for number in range(200):
        assert digits.read(await after.answer(f"job-{number}")) == "3"
    await until(lambda: set(rows(tmp_path, "state, parked")), {("published", 0)})


async def test_a_job_that_was_running_at_three_crashes_is_answered_model_error(
    start_daemon, configure, program, digits, cloud, tmp_path
):
    config = configure(cloud=cloud)
    cloud.behaviour = "hang"
    daemon = await start_daemon(config)
    await program.submit("digits", digits.job("poison", placement="only_cloud"))
    for crash in range(3):
        await until(lambda: rows(tmp_path, "state, crashes"), [("running", crash)])
        await until(lambda: len(cloud.seen), crash + 1)
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        daemon = await start_daemon(config)
    answer = await program.answer("poison")
    assert answer["parameters"]["code"] == "model_error"
    assert "3 times" in answer["error"]
    await program.submit("digits", digits.job("sound"))
    assert digits.read(await program.answer("sound")) == "3"


async def test_a_graceful_stop_is_no_crash(
    start_daemon, configure, program, digits, cloud, tmp_path
):
    config = configure(cloud=cloud, limits={"shutdown_grace_s": 0.2})
    cloud.behaviour = "hang"
    for stop in range(4):
        daemon = await start_daemon(config)
        if stop == 0:
            await program.submit("digits", digits.job("slow", placement="only_cloud"))
        await until(lambda: len(cloud.seen), stop + 1)
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        assert rows(tmp_path, "state, crashes") == [("waiting", 0)]
    cloud.behaviour = "serve"
    await start_daemon(config)
    assert digits.read(await program.answer("slow")) == cloud.says


async def test_a_second_daemon_on_the_same_state_directory_refuses_to_start(
    start_daemon, configure, edgewise, program, digits
):
    config = configure()
    await start_daemon(config)
    second = await edgewise("run", "--config", config)
    assert second.code == 1
    (line,) = second.err.splitlines()
    assert line.startswith("edgewise: device.state_dir: ")
    assert "in use by another edgewise" in line
    await program.submit("digits", digits.job("unharmed"))
    await program.answer("unharmed")


async def test_a_state_directory_that_can_not_be_made_ends_the_start_with_one_line(
    edgewise, configure, tmp_path
):
    (tmp_path / "file").touch()
    config = configure(device={"state_dir": str(tmp_path / "file" / "state")})
    ended = await edgewise("run", "--config", config)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("edgewise: device.state_dir = ")


async def test_a_corrupt_store_is_set_aside_at_the_start_and_said_loudly(
    start_daemon, configure, program, digits, tmp_path
):
    state = tmp_path / "state"
    state.mkdir()
    (state / "edgewise.db").write_bytes(b"no database" * 1000)
    daemon = await start_daemon(configure())
    told = await daemon.logged("store_corrupt")
    assert told["level"] == "error"
    (aside,) = state.glob("edgewise.db.corrupt-*")
    assert told["set_aside"] == str(aside)
    await program.submit("digits", digits.job("next"))
    assert digits.read(await program.answer("next")) == "3"


async def test_the_store_is_its_owners_alone(start_daemon, configure, tmp_path):
    await start_daemon(configure())
    for path in (tmp_path / "state").glob("edgewise.db*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_a_full_disk_is_survived_and_healed_with_nothing_lost(
    start_daemon, configure, program, digits, small_disk
):
    daemon = await start_daemon(configure())
    await program.submit("digits", digits.job("before"))
    await program.answer("before")
    small_disk.fill()
    for number in range(20):
        await program.submit("digits", digits.job(f"job-{number}"))
    told = await daemon.logged("store_failed")
    assert "full" in told["error"]
    status, reason = await daemon.get("/readyz")
    assert (status, reason.startswith("store: ")) == (503, True)
    assert (await daemon.get("/healthz"))[0] == 200
    small_disk.free()
    for number in range(20):
        assert digits.read(await program.answer(f"job-{number}")) == "3"
    async with asyncio.timeout(20):
        while (await daemon.get("/readyz"))[0] != 200:
            pass


async def test_a_read_only_disk_at_the_start_is_waited_for(
    start_daemon, configure, program, digits, small_disk
):
    small_disk.remount("ro")
    daemon = await start_daemon(configure())
    await daemon.logged("store_failed")
    assert (await daemon.get("/readyz"))[0] == 503
    await program.submit("digits", digits.job("patient"))
    small_disk.remount("rw")
    assert digits.read(await program.answer("patient")) == "3"


async def test_deferred_jobs_wait_across_kills_and_are_answered_when_a_route_opens(
    start_daemon, configure, program, digits, cloud
):
    await cloud.refuse()
    config = configure(cloud=cloud)
    daemon = await start_daemon(config)
    for number in range(10):
        await program.submit("digits", digits.job(f"late-{number}", **LATER))
        await program.progress(f"late-{number}", "deferred")
    for _ in range(2):
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        daemon = await start_daemon(config)
    await cloud.start()
    for number in range(10):
        assert digits.read(await program.answer(f"late-{number}")) == cloud.says
    assert len(set(cloud.seen)) == 10


async def test_sighup_goes_by_the_new_configuration_and_drops_nothing(
    start_daemon, configure, program, digits, cloud
):
    daemon = await start_daemon(configure(cloud=cloud))
    configure(cloud=cloud, policy={"name": "prefer-cloud"})
    daemon.signal(signal.SIGHUP)
    assert (await daemon.logged("reloaded"))["policy"] == "prefer-cloud"
    await program.submit("digits", digits.job("next"))
    assert (await program.answer("next"))["parameters"]["route"] == "cloud"


async def test_sighup_with_a_bad_configuration_changes_nothing(
    start_daemon, configure, program, digits
):
    daemon = await start_daemon(configure())
    configure(policy={"nonsense": 1})
    daemon.signal(signal.SIGHUP)
    assert "policy.nonsense" in (await daemon.logged("reload_refused"))["error"]
    await program.submit("digits", digits.job("next"))
    assert digits.read(await program.answer("next")) == "3"
