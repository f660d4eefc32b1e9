"""The configuration: TOML, and variables of the environment."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from agent import config, plugins
from agent.config.sources import ENV_PREFIX
from fuzz import messages, mutations

MUTATION = mutations.toml
MAX_LEN = 2048
# In memory: on a disk, opening it would take longer than all else.
FILE = Path(tempfile.mkdtemp(prefix="edgewise-fuzz-", dir="/dev/shm")) / "edgewise.toml"
atexit.register(shutil.rmtree, FILE.parent)
# What is installed does not change meanwhile, and looking takes longer than all else.
plugins.metadata.entry_points = functools.cache(metadata.entry_points)  # type: ignore[attr-defined]


def target(data: bytes) -> None:
    """Load a configuration; what is wrong is named by file and key."""
    variables, text = messages.split(data)
    FILE.write_bytes(text)
    environ = {ENV_PREFIX + name.upper(): value for name, value in variables.items()}
    try:
        loaded = config.load(FILE, environ)
        # A path would be a program of the operator's own.
        if loaded.policy.path is None:
            plugins.load(loaded.policy)
            plugins.load_shadows(loaded.policy)
    except config.ConfigError as error:
        assert error.reason
        assert str(error)
        return
    for endpoint in loaded.endpoints.values():
        assert endpoint.cost(1e6, 10, 10) >= 0
    config.split_listen(loaded.http.listen)


def seeds() -> Iterator[bytes]:
    """Give configurations as operators write them."""
    whole = b"""\
[device]
id = "cam"
state_dir = "state"
state_interval_s = 5.0
[mqtt]
url = "mqtts://broker:8883"
protocol = "3.1.1"
username = "cam"
password_file = "password"
ca_file = "ca.pem"
reply_topics = ["replies/#"]
share_group = "lab"
[http]
listen = "[::1]:9464"
[log]
level = "debug"
format = "json"
[limits]
max_payload_bytes = 1000000
default_deadline_ms = 500
[store]
synchronous = "normal"
[local]
workers = 2
run_timeout_s = 1.5
[models.digits]
path = "digits.tflite"
sha256 = "0123456789012345678901234567890123456789012345678901234567890123"
preprocess = { kind = "image", fit = "crop", color = "grey", scale = 1.0, size = [8, 8] }
labels = ["a", "b"]
cloud = [{ endpoint = "lab", name = "large", weight = 2.0, options = { a = [1, { b = 2 }] } }]
[endpoints.lab]
url = "https://lab:8000/v2"
protocol = "oip"
binary = "auto"
price_per_request = 0.1
[endpoints.text]
url = "http://[::1]:8000"
protocol = "openai"
[policy]
name = "adaptive"
shadow = ["threshold"]
[policy.options]
explore = 0.1
[energy]
idle_watts = 2.0
[network]
metered = true
[budget]
cloud_cost_per_day = 1.0
battery_last_until = "18:00"
"""
    for section in whole.replace(b"\n[", b"\n\n[").split(b"\n\n"):
        yield messages.join({}, section + b"\n")
    yield messages.join({}, whole)
    variables = {"mqtt__url": "mqtt://h:1", "models__digits__threads": "2", "http__listen": ":1"}
    yield messages.join(variables, b'[models.digits]\npath = "a"\n')
    rules = b"""\
[policy]
name = "rules"
[[policy.options.rules]]
when = "device.battery < 0.2 && job.priority > 5"
then = "local"
"""
    yield messages.join({"network__metered": "yes", "device__id": "a"}, rules)
    for text in (b'[policy]\nname = "cascade"\n', b"[policy.options]\n", b"a.b.c = [[1], {}]\n"):
        yield messages.join({}, text)
