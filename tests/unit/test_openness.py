"""What `edgewise check` warns of: what is open to more people than it should be."""

import pytest

from agent.cli import openness
from agent.config import Config, Endpoint, Http, Mqtt, Tracing

KEY = "/nowhere"


def found(**sections):
    return [warning.partition(":")[0] for warning in openness.find(Config(**sections))]


def test_the_defaults_are_open_to_nobody():
    assert found() == []


@pytest.mark.parametrize(
    ("listen", "files", "warned"),
    [
        ("0.0.0.0:9464", {}, True),
        ("0.0.0.0:9464", {"token_file": KEY}, True),
        ("0.0.0.0:9464", {"token_file": KEY, "cert_file": KEY}, False),
        ("[::]:9464", {}, True),
        ("[::1]:9464", {}, False),
        ("localhost:9464", {}, False),
    ],
)
def test_a_port_that_others_reach_needs_a_token_and_tls(listen, files, warned):
    assert found(http=Http(listen=listen, **files)) == ["http.listen"] * warned


@pytest.mark.parametrize(
    ("url", "warned"),
    [("mqtt://broker", True), ("mqtts://broker", False), ("mqtt://127.0.0.2", False)],
)
def test_a_broker_elsewhere_needs_tls(url, warned):
    assert found(mqtt=Mqtt(url=url)) == ["mqtt.url"] * warned


@pytest.mark.parametrize(
    ("url", "token", "warned"),
    [("http://lab", KEY, True), ("http://lab", None, False), ("https://lab", KEY, False)],
)
def test_an_endpoint_with_a_token_needs_tls(url, token, warned):
    lab = Endpoint(url=url, token_file=token)
    assert found(endpoints={"lab": lab}) == ["endpoints.lab.url"] * warned


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://lab:4318", True), ("https://lab", False), ("http://127.0.0.1:4318", False)],
)
def test_a_collector_elsewhere_needs_tls(url, warned):
    assert found(tracing=Tracing(endpoint=url)) == ["tracing.endpoint"] * warned


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_secret_that_others_may_read_is_named(tmp_path, mode, warned):
    secret = tmp_path / "secret"
    secret.touch()
    secret.chmod(mode)
    file = str(secret)
    assert found(http=Http(token_file=file)) == ["http.token_file"] * warned
    mqtt = Mqtt(url="mqtts://broker", username="me", password_file=file, cert_file=file)
    assert found(mqtt=mqtt) == ["mqtt.password_file", "mqtt.cert_file"] * warned
    tracing = Tracing(endpoint="https://lab", headers_file=file, key_file=file, cert_file=KEY)
    assert found(tracing=tracing) == ["tracing.headers_file", "tracing.key_file"] * warned
    apart = Mqtt(url="mqtts://broker", cert_file=file, key_file=KEY)
    assert found(mqtt=apart) == []
