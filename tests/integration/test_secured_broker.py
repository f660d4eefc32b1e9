"""A broker that is secured as deploy/mosquitto does it, and what it refuses, or we refuse of it."""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from pathlib import Path

import aiohttp
import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from agent.config import load
from agent.daemon import Daemon

DEPLOY = Path(__file__).parents[2] / "deploy" / "mosquitto"
WAIT_S = 20.0
PROTOCOLS = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


class Secured:
    """Mosquitto with the configuration that we ship, but for its places."""

    def __init__(self, start_broker, folder, authority, *, expired=False):
        self.authority = authority
        self.server_file = authority.issue("127.0.0.1", expired=expired)
        rules = folder / "acl"
        rules.write_text((DEPLOY / "acl").read_text().replace("camera1", "dev1"))
        places = {
            "cafile": authority.ca_file,
            "certfile": self.server_file,
            "keyfile": self.server_file,
            "acl_file": rules,
        }
        # The test's own: where it listens, and that it keeps nothing.
        left_out = {"listener", "persistence", "persistence_location", "set_tcp_nodelay"}
        settings = [line for line in self._settings() if line.split()[0] not in left_out]
        self.broker = start_broker(
            *(
                f"{key} {places[key]}" if (key := line.split()[0]) in places else line
                for line in settings
            ),
            "log_type all",
        )
        self.port = self.port_311 = self.broker.port

    @staticmethod
    def _settings():
        lines = (DEPLOY / "mosquitto.conf").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def shown(self, name):
        """The TLS context of a client of this name."""
        context = ssl.create_default_context(cafile=self.authority.ca_file)
        context.load_cert_chain(self.authority.issue(name))
        return context


@pytest.fixture
def authority(make_authority):
    return make_authority("own")


@pytest.fixture
def secured(start_broker, tmp_path, authority, request):
    return Secured(start_broker, tmp_path, authority, **getattr(request, "param", {}))


@pytest.fixture
def settings_of(configure, secured, authority):
    """Write the configuration of a device as it should be, but for what the test wants."""

    def write(device="dev1", **mqtt):
        login = {
            "url": f"mqtts://127.0.0.1:{secured.port}",
            "ca_file": authority.ca_file,
            "cert_file": authority.issue("dev1"),
        }
        return configure(device={"id": device}, mqtt={**login, **mqtt})

    return write


@pytest.fixture
async def run():
    """Run a daemon that may not get to the broker; give it and what it logs."""
    running = []
    with capture_logs() as logged:

        async def start(config):
            read = functools.partial(load, config, environ={})
            daemon = Daemon(read(), read)
            running.append(asyncio.create_task(daemon.run()))
            return daemon, logged

        yield start
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def lines(logged, event, count=1):
    """Wait until an event was logged so often."""
    async with asyncio.timeout(WAIT_S):
        while len(found := [line for line in logged if line["event"] == event]) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


async def readiness(daemon, wanted):
    """Wait until /readyz has the wanted status; give its text."""
    url = f"http://{daemon.web.address}/readyz"
    async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as http:
        while True:
            async with http.get(url) as response:
                text = await response.text()
                if response.status == wanted and text != "starting\n":
                    return text
            await asyncio.sleep(0.01)


async def is_refused(run, config, why):
    """Hold that the daemon is not let in, and that log and /readyz say why."""
    daemon, logged = await run(config)
    (line, *_) = await lines(logged, "mqtt_disconnected")
    assert re.search(why, line["reason"]), line
    said = await readiness(daemon, 503)
    assert said.startswith("broker: ")
    assert re.search(why, said)
    assert not daemon.gateway.session.connected
    return daemon, logged


@PROTOCOLS
async def test_a_device_with_its_certificate_serves_jobs(
    serve, settings_of, secured, connect, digits, protocol
):
    program = await connect(secured, protocol, of="dev1", tls_context=secured.shown("app"))
    await serve(settings_of(protocol=protocol), heard_by=program)
    await program.submit("digits", digits.job("one"))
    assert digits.read(await program.answer("one")) == "3"


@PROTOCOLS
async def test_a_broker_of_another_authority_is_refused(run, settings_of, make_authority, protocol):
    other = make_authority("other").ca_file
    await is_refused(
        run,
        settings_of(protocol=protocol, ca_file=other),
        r"certificate is not trusted \(mqtt.ca_file\): .*(self-signed|unable to get local issuer)",
    )


async def test_a_broker_that_only_the_system_could_trust_is_refused(run, settings_of, configure):
    config = settings_of()
    text = re.sub(r'"ca_file" = "[^"]*", ', "", config.read_text())
    config.write_text(text)
    await is_refused(run, config, r"certificate is not trusted \(mqtt.ca_file\)")


@PROTOCOLS
async def test_a_broker_under_another_name_is_refused(run, settings_of, secured, protocol):
    config = settings_of(protocol=protocol, url=f"mqtts://localhost:{secured.port}")
    why = r"for another host \(mqtt.url\): .*not valid for 'localhost'"
    await is_refused(run, config, why)


@pytest.mark.parametrize("secured", [{"expired": True}], indirect=True)
async def test_a_broker_whose_certificate_has_expired_is_refused(run, settings_of, secured):
    why = r"broker's certificate is not trusted \(mqtt.ca_file\): certificate has expired"
    await is_refused(run, settings_of(), why)


OUR_CERTIFICATE = r"refused our certificate \(mqtt.cert_file\): "


@PROTOCOLS
async def test_a_device_whose_certificate_has_expired_is_refused(
    run, settings_of, authority, protocol
):
    config = settings_of(protocol=protocol)
    authority.issue("dev1", expired=True)
    await is_refused(run, config, f"{OUR_CERTIFICATE}certificate expired")


@PROTOCOLS
async def test_a_device_with_a_foreign_certificate_is_refused(
    run, settings_of, make_authority, protocol
):
    config = settings_of(protocol=protocol, cert_file=make_authority("other").issue("dev1"))
    await is_refused(run, config, f"{OUR_CERTIFICATE}(unknown ca|bad certificate)")


@PROTOCOLS
async def test_a_device_without_a_certificate_is_refused(run, settings_of, protocol):
    config = settings_of(protocol=protocol)
    config.write_text(re.sub(r', "cert_file" = "[^"]*"', "", config.read_text()))
    await is_refused(run, config, f"{OUR_CERTIFICATE}certificate required")


@PROTOCOLS
async def test_a_wrong_password_is_refused(run, configure, start_broker, tmp_path, protocol):
    (tmp_path / "passwords").touch(mode=0o600)
    making = await asyncio.create_subprocess_exec(
        *("mosquitto_passwd", "-b", tmp_path / "passwords", "dev1", "right")
    )
    assert await making.wait() == 0
    broker = start_broker(f"password_file {tmp_path / 'passwords'}")
    (tmp_path / "password").write_text("wr0ng-s3cret\n")
    login = {"username": "dev1", "password_file": "password", "protocol": protocol}
    daemon, logged = await is_refused(
        run,
        configure(at=broker, mqtt=login),
        r"refused our login \(mqtt.username, password_file, cert_file\): "
        "(Not authorized|Bad user name or password)",
    )
    assert "wr0ng-s3cret" not in str(logged)
    # Once it is right, nothing has to be told to anyone.
    (tmp_path / "password").write_text("right\n")
    await lines(logged, "mqtt_connected")
    await readiness(daemon, 200)


@PROTOCOLS
async def test_a_device_that_says_it_is_another_is_refused(
    run, settings_of, secured, authority, protocol
):
    config = settings_of(protocol=protocol, cert_file=authority.issue("dev2"))
    why = {
        "5": "refused a message to edgewise/v1/dev1/status: Not authorized",
        "3.1.1": "did not let a message to edgewise/v1/dev1/status through: its access list",
    }
    await is_refused(run, config, why[protocol])


@PROTOCOLS
async def test_a_device_can_neither_read_nor_answer_anothers_jobs(
    serve, settings_of, secured, connect, digits, protocol
):
    app = await connect(secured, protocol, of="dev1", tls_context=secured.shown("app"))
    dev2 = await connect(secured, protocol, of="dev1", tls_context=secured.shown("dev2"))
    await dev2.subscribe("edgewise/v1/dev1/#", "edgewise/v1/+/jobs/+", "$share/g/edgewise/v1/#")
    await serve(settings_of(protocol=protocol), heard_by=app)
    for topic in ("results/forged", "jobs/digits", "status", "cancel/one", "control/pause"):
        # MQTT 5 says that it was denied, and the client raises nothing for it.
        await dev2.publish(topic, b"{}")
    await app.submit("digits", digits.job("one"))
    assert digits.read(await app.answer("one")) == "3"
    denied = await secured.broker.logged(r"Denied PUBLISH from .*'edgewise/v1/dev1/(\S+)'", 5)
    assert set(denied) >= {"results/forged", "jobs/digits", "status", "cancel/one", "control/pause"}
    # What dev2 may hear comes after anything that it would have heard before.
    await dev2.subscribe("edgewise/v1/dev2/status")
    own = await connect(secured, protocol, of="dev2", tls_context=secured.shown("dev2"))
    await own.publish("status", b'{"status": "online"}')
    await dev2.message("edgewise/v1/dev2/status")
    assert {topic for topic, _ in dev2.heard} == {"edgewise/v1/dev2/status"}
    assert app.on("results/forged") == []


async def test_a_device_that_takes_anothers_client_id_gets_none_of_its_jobs(
    secured, connect, digits
):
    app = await connect(secured, of="dev1", tls_context=secured.shown("app"))
    session = {"identifier": "edgewise-dev1", "clean_start": False}
    dev1 = aiomqtt.Client(
        *("127.0.0.1", secured.port),
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=secured.shown("dev1"),
        properties=_kept(),
        **session,
    )
    async with dev1:
        await dev1.subscribe("edgewise/v1/dev1/jobs/+", qos=1)
    await app.submit("digits", digits.job("one"))
    thief = await connect(
        secured, of="dev1", tls_context=secured.shown("dev2"), properties=_kept(), **session
    )
    await thief.subscribe("edgewise/v1/dev2/status")
    own = await connect(secured, of="dev2", tls_context=secured.shown("dev2"))
    await own.publish("status", b"{}")
    await thief.message("edgewise/v1/dev2/status")
    assert [topic for topic, _ in thief.heard] == ["edgewise/v1/dev2/status"]


def _kept():
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    return properties


@PROTOCOLS
async def test_an_answer_that_the_broker_refuses_is_not_taken_as_delivered(
    serve, configure, connect, start_broker, digits, device, tmp_path, protocol
):
    rules = tmp_path / "acl"
    rules.write_text(
        f"topic deny edgewise/v1/{device}/results/denied\ntopic readwrite edgewise/#\n"
    )
    broker = start_broker(f"acl_file {rules}", "log_type all")
    program = await connect(broker)
    config = configure(at=broker, mqtt={"protocol": protocol})
    with capture_logs() as logged:
        serving = await serve(config, heard_by=program)
        await program.submit("digits", digits.job("denied"))
        (line, *_) = await lines(logged, "answer_refused")
    assert line["job_id"] == "denied"
    assert f"edgewise/v1/{device}/results/denied" in line["error"]
    assert (await readiness(serving.daemon, 503)).startswith("answers: the broker ")
    assert await serving.metric("edgewise_store_jobs", state="answered") == 1
    # Another answer is not held up, and once the broker lets it through it gets there.
    await program.submit("digits", digits.job("allowed"))
    assert digits.read(await program.answer("allowed")) == "3"
    rules.write_text("topic readwrite edgewise/#\n")
    broker.reload()
    assert digits.read(await program.answer("denied")) == "3"
    await readiness(serving.daemon, 200)


async def test_an_answer_to_a_job_of_the_pool_that_is_refused_is_kept_until_it_is_taken(
    serve, configure, connect, start_broker, digits, device, tmp_path
):
    rules = tmp_path / "acl"
    rules.write_text(f"topic deny edgewise/v1/{device}/results/+\ntopic readwrite edgewise/#\n")
    broker = start_broker(f"acl_file {rules}")
    program = await connect(broker)
    with capture_logs() as logged:
        config = configure(at=broker, mqtt={"share_group": "gate"})
        serving = await serve(config, heard_by=program)
        await serving.daemon.pool.session.until_connected()
        pool = await connect(broker, of="pool")
        await pool.submit("digits", digits.job("denied"))
        await lines(logged, "answer_refused")
    said = await readiness(serving.daemon, 503)
    assert said.startswith("pool: answers: the broker refused")
    rules.write_text("topic readwrite edgewise/#\n")
    broker.reload()
    assert digits.read(await program.answer("denied")) == "3"
    await readiness(serving.daemon, 200)


async def test_a_certificate_that_is_replaced_is_shown_without_a_restart(
    run, settings_of, authority
):
    config = settings_of()
    authority.issue("dev1", expired=True)
    daemon, logged = await is_refused(run, config, OUR_CERTIFICATE)
    authority.issue("dev1")
    await lines(logged, "mqtt_connected")
    await readiness(daemon, 200)
    # A file that can't be used is told at once, and changes nothing.
    authority.spoil("dev1")
    (line, *_) = await lines(logged, "credentials_kept")
    assert "mqtt.cert_file" in line["error"]
    await readiness(daemon, 200)
