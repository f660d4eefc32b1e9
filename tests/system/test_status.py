"""`edgewise status`: what the device says of itself, once or as it changes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys

import pytest

from tests.system.conftest import ENVIRONMENT, WAIT_S

# The cursor is back, and so is what was on the screen before.
LEFT_THE_SCREEN = r"\x1b\[\?25h\x1b\[\?1049l$"

SOON = {"device": {"state_interval_s": 0.1}}


class Watching:
    """`edgewise status --watch`, on a terminal or not."""

    def __init__(self) -> None:
        self.text = ""
        self._process: asyncio.subprocess.Process | None = None
        self._master: int | None = None
        self._more = asyncio.Event()

    async def start(self, *arguments, terminal):
        out = asyncio.subprocess.PIPE
        if terminal:
            self._master, out = pty.openpty()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "status", "--watch"),
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        )
        if terminal:
            os.close(out)
            asyncio.get_running_loop().add_reader(self._master, self._read_terminal)
        else:
            self._reading = asyncio.create_task(self._read_pipe())

    async def shows(self, pattern, after=0):
        """Wait until the pattern has been shown; give where it ends."""
        async with asyncio.timeout(WAIT_S):
            while not (found := re.compile(pattern).search(self.text, after)):
                self._more.clear()
                await self._more.wait()
        return found.end()

    async def interrupt(self):
        """Press Ctrl-C; give the exit code."""
        self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S):
            return await self._process.wait()

    async def stop(self):
        if self._master is not None:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def _read_terminal(self):
        try:
            self._take(os.read(self._master, 65536))
        except OSError:
            asyncio.get_running_loop().remove_reader(self._master)

    async def _read_pipe(self):
        while data := await self._process.stdout.read(65536):
            self._take(data)

    def _take(self, data):
        self.text += data.decode(errors="replace")
        self._more.set()


@pytest.fixture
async def watching():
    watch = Watching()
    yield watch
    await watch.stop()


async def run_job(program, digits, job_id):
    await program.submit("digits", digits.job(job_id))
    await program.answer(job_id)


async def test_the_readings_and_each_routes_estimate_are_shown(
    start_daemon, edgewise, configure, program, digits, cloud
):
    config = configure(cloud=cloud, **SOON)
    await start_daemon(config)
    await run_job(program, digits, "one")
    count = len(program.on("state"))
    await program.message("state", count + 1)
    ended = await edgewise("status", "--config", config, COLUMNS="140")
    assert ended.code == 0
    assert re.search(r"cpu busy +\d+%", ended.out)
    assert re.search(r"memory available +\d+ MiB", ended.out)
    assert re.search(r"local +0 +0 +- +- ", ended.out)
    assert re.search(r"cloud:lab +0 +0 +closed +yes +[\d.]+", ended.out)
    assert re.search(r"digits +local( +[\d.]+){3} +\d+% +[\d.e-]+ +0 +1 ", ended.out)


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_watch_shows_each_change_until_it_is_interrupted(
    start_daemon, configure, program, digits, watching, terminal
):
    config = configure(**SOON)
    await start_daemon(config)
    await watching.start("--config", config, terminal=terminal)
    place = await watching.shows(r"digits +local[^\n]* 0 +- ")
    await run_job(program, digits, "one")
    await watching.shows(r"digits +local[^\n]* 1 +\d+%", place)
    assert await watching.interrupt() == 0


async def test_a_watch_on_a_terminal_shows_each_decision_and_goes_on_after_a_restart(
    start_daemon, configure, program, digits, watching
):
    config = configure(**SOON)
    daemon = await start_daemon(config)
    await watching.start("--config", config, terminal=True)
    place = await watching.shows(r"digits +local")
    await run_job(program, digits, "before")
    place = await watching.shows(r"before +digits +local +only route", place)
    daemon.signal(signal.SIGTERM)
    place = await watching.shows(r": offline", place)
    assert await daemon.ended() == 0
    program.forget()
    await start_daemon(config)
    place = await watching.shows(r": online", place)
    await run_job(program, digits, "after")
    await watching.shows(r"after +digits +local +only route", place)
    assert await watching.interrupt() == 0
    await watching.shows(LEFT_THE_SCREEN, place)


async def test_a_watch_sees_the_device_go_and_come(start_daemon, configure, program, watching):
    config = configure(**SOON)
    daemon = await start_daemon(config)
    await watching.start("--config", config, "--json", terminal=False)
    place = await watching.shows(r'"status": "online"')
    daemon.signal(signal.SIGTERM)
    place = await watching.shows(r'"status": "offline"', place)
    program.forget()
    await start_daemon(config)
    await watching.shows(r'"status": "online"', place)
    assert await watching.interrupt() == 0
    lines = watching.text.splitlines()
    assert all("state" in json.loads(line) for line in lines)


async def test_a_watch_outlives_the_broker(
    configure, start_broker, connect, start_daemon, watching
):
    broker = start_broker()
    config = configure(at=broker, **SOON)
    await start_daemon(config, heard_by=await connect(broker))
    await watching.start("--config", config, "--json", terminal=False)
    place = await watching.shows(r'"status": "online"')
    broker.stop()
    place = await watching.shows(r'"trouble": "broker mqtt://', place)
    broker.start()
    await watching.shows(r'"status": "online"(?!.*trouble)', place)
    assert await watching.interrupt() == 0
