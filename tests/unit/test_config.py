"""Configuration: what is right is taken, what is wrong is named by file, key and reason."""

from __future__ import annotations

import json
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Config, ConfigError, ImageInput, load, read_secret, split_listen

CLOUD_MODEL = '[models.a]\ncloud = [{endpoint = "lab"}]\n'
LAB = '[endpoints.lab]\nurl = "http://h:1"\n'
LLM = f"{LAB}protocol = 'openai'"
WRONG = [
    ("x = 1", "x", "unknown section"),
    ("mqtt = 1", "mqtt", "must be a table"),
    ("[mqtt]\nurk = 1", "mqtt.urk", "unknown key"),
    ("[models.a]\npaht = 'x'", "models.a.paht", "unknown key"),
    ("[models.a]\ncloud = [{endpoint = 'lab', nam = 'x'}]", "models.a.cloud.0.nam", "unknown key"),
    ("models = 1", "models", "must be a table"),
    ("[models]\na = 1", "models.a", "expected `object`"),
    ("[models.'a b']\npath = 'x'", "models.a b", "a name must be"),
    ("[models.a]", "models.a", "needs a path"),
    ("[models.a]\npath = 'x'\nsha256 = 'abc'", "models.a.sha256", "regex"),
    ("[models.a]\npath = 'x'\nthreads = 0", "models.a.threads", ">= 1"),
    ("[models.a]\npath = 'x'\npreprocess = 'audio'", "models.a.preprocess", "invalid enum"),
    (
        "[models.a]\npath = 'x'\npreprocess = {kind = 'image', fit = 'x'}",
        "models.a.preprocess.fit",
        "invalid enum",
    ),
    (CLOUD_MODEL, "models.a.cloud", "unknown endpoint 'lab'"),
    (
        f"[models.a]\ncloud = [{{endpoint = 'lab', image = 'original'}}]\n{LAB}",
        "models.a.cloud",
        "models with an image preprocess",
    ),
    (f"{LAB}binary = 'maybe'", "endpoints.lab.binary", "invalid enum value 'maybe'"),
    (f"{LAB}protocol = 'tfserving'\nbinary = true", "endpoints.lab.binary", 'for protocol "oip"'),
    (f"{LAB}tensor_format = 'row'", "endpoints.lab.tensor_format", 'for protocol "tfserving"'),
    (
        f"{LAB}price_per_million_input_tokens = 1.0",
        "endpoints.lab.price_per_million_input_tokens",
        'for protocol "openai"',
    ),
    (
        f"[models.a]\ncloud = [{{endpoint = 'lab', prompt = 'hi'}}]\n{LAB}",
        "models.a.cloud",
        'prompt is for protocol "openai"',
    ),
    (f"{CLOUD_MODEL}preprocess = 'image'\n{LLM}", "models.a.cloud", 'set image = "original"'),
    (
        f"[models.a]\ncloud = [{{endpoint = 'lab', options = {{model = 'x'}}}}]\n{LLM}",
        "models.a.cloud",
        "options.model is filled by the job",
    ),
    (f"{LAB}key_file = 'key.pem'", "endpoints.lab.key_file", "a key needs its cert_file"),
    (
        f"[models.a]\ncloud = [{{endpoint = 'lab', weight = 0}}]\n{LAB}",
        "models.a.cloud.0.weight",
        "expected `float` > 0",
    ),
    ("[endpoints.lab]", "endpoints.lab", "missing required field `url`"),
    ("[endpoints.lab]\nurl = 'ftp://h'", "endpoints.lab.url", "want http://host:port"),
    ("[endpoints.lab]\nurl = 'http://u:p@h'", "endpoints.lab.url", "no credentials"),
    ("[endpoints.lab]\nurl = 'http://['", "endpoints.lab.url", "want http://host:port"),
    ("[mqtt]\nurl = 'h:1883'", "mqtt.url", "want mqtt://host:port"),
    ("[mqtt]\nurl = 'mqtt://h:99999'", "mqtt.url", "want mqtt://host:port"),
    ("[mqtt]\nprotocol = '4'", "mqtt.protocol", "invalid enum value '4'"),
    ("[mqtt]\npassword = 'x'", "mqtt.password", "unknown key"),
    ("[mqtt]\nca_file = 'a\\u0000b'".replace("'", '"'), "mqtt.ca_file", "null character"),
    ("[mqtt]\nca_file = 'ca.pem'", "mqtt.ca_file", "has no effect without mqtts://"),
    ("[mqtt]\nurl = 'mqtt://h'\ncert_file = 'c.pem'", "mqtt.cert_file", "without mqtts://"),
    ("[mqtt]\nurl = 'mqtts://h'\nkey_file = 'k'", "mqtt.key_file", "a key needs its cert_file"),
    ("[mqtt]\npassword_file = 'p'", "mqtt.password_file", "a password needs its username"),
    ("[tracing]\nendpoint = 'lab:4318'", "tracing.endpoint", "want http://host:port"),
    ("[tracing]\nendpoint = 'http://u:p@h'", "tracing.endpoint", "no credentials"),
    ("[tracing]\nsample_ratio = 1.5", "tracing.sample_ratio", "<= 1"),
    ("[tracing]\nca_file = 'ca.pem'", "tracing.ca_file", "has no effect without https://"),
    ("[tracing]\nkey_file = 'k'", "tracing.key_file", "a key needs its cert_file"),
    ("[http]\nkey_file = 'k'", "http.key_file", "a key needs its cert_file"),
    ("[http]\nlisten = '9464'", "http.listen", "want host:port"),
    ("[http]\nlisten = '[zz]:1'", "http.listen", ""),
    ("[device]\nid = 'a/b'", "device.id", "a topic level"),
    ("[limits]\nmax_payload_bytes = 1.5", "limits.max_payload_bytes", "expected `int`"),
    ("[limits]\nresult_ttl_s = 0", "limits.result_ttl_s", "> 0"),
    ("[local]\nrun_timeout_s = nan", "local.run_timeout_s", "expected `float`"),
    ("[policy]\ntimeout_ms = inf", "policy.timeout_ms", "expected `float`"),
    ("[local]\nworkers = 1979-05-27", "local.workers", "expected `int`"),
]


@pytest.fixture
def loaded(tmp_path):
    """Write a main file, and others beside it, and load them."""

    def write_and_load(text="", environ=None, **beside):
        path = tmp_path / "edgewise.toml"
        path.write_text(text)
        (tmp_path / "edgewise.d").mkdir(exist_ok=True)
        for name, content in beside.items():
            (tmp_path / "edgewise.d" / f"{name}.toml").write_text(content)
        return load(path, environ or {})

    return write_and_load


def test_an_empty_file_gives_the_defaults_of_the_contract(loaded):
    config = loaded()
    assert config.device.id == socket.gethostname()
    assert config.mqtt.url == "mqtt://127.0.0.1:1883"
    assert (config.mqtt.protocol, config.http.listen) == ("5", "127.0.0.1:9464")
    assert (config.device.sysfs_root, config.device.procfs_root) == ("/sys", "/proc")
    assert (config.models, config.endpoints) == ({}, {})


@pytest.mark.parametrize(("text", "key", "reason"), WRONG)
def test_an_error_names_the_file_the_key_and_the_reason(loaded, tmp_path, text, key, reason):
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    error = caught.value
    assert (error.where, error.key) == (str(tmp_path / "edgewise.toml"), key)
    assert reason in error.reason
    assert str(error) == f"{error.where}: {key}: {error.reason}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x =", "is not TOML"),
        (b"\xff", "is not UTF-8 text"),
        (b"x = " + b"[" * 5000, "is not TOML"),
        (b"a." * 3000 + b"b = 1", "nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path, content, reason):
    path = tmp_path / "edgewise.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load(path, {})
    assert caught.value.where == str(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: can't read: No such file"):
        load(tmp_path / "none.toml", {})


def test_files_beside_it_are_merged_over_it_in_order_of_name(loaded):
    config = loaded(
        "[limits]\nmax_waiting_jobs = 1\nmax_payload_bytes = 1\nresult_ttl_s = 1",
        b="[limits]\nmax_waiting_jobs = 3\n[endpoints.lab]\nurl = 'http://h'",
        a="[limits]\nmax_waiting_jobs = 2\nmax_payload_bytes = 2",
    )
    limits = config.limits
    assert (limits.max_waiting_jobs, limits.max_payload_bytes, limits.result_ttl_s) == (3, 2, 1)
    assert list(config.endpoints) == ["lab"]


def test_an_error_names_the_file_that_said_it(loaded, tmp_path):
    with pytest.raises(ConfigError) as caught:
        loaded("[limits]\nmax_waiting_jobs = 1", a="[limits]\nmax_waiting_jobs = 'x'")
    assert caught.value.where == str(tmp_path / "edgewise.d/a.toml")


def test_any_key_can_be_set_by_the_environment(loaded):
    config = loaded(
        f"{LAB}[models.Digits]\npath = 'x'",
        {
            "EDGEWISE_MQTT__URL": "mqtts://h:8883",
            "EDGEWISE_MQTT__REPLY_TOPICS": '["a/#"]',
            "EDGEWISE_MQTT__USERNAME": "123",
            "EDGEWISE_LOCAL__WORKERS": "4",
            "EDGEWISE_ENDPOINTS__LAB__BINARY": "true",
            "EDGEWISE_ENDPOINTS__FAR__URL": "http://h:2",
            "EDGEWISE_ENDPOINTS__FAR__BINARY": "auto",
            "EDGEWISE_MODELS__DIGITS__PREPROCESS": "image",
            "EDGEWISE_POLICY__OPTIONS__CPU_ABOVE": "0.5",
            "EDGEWISE_POLICY__OPTIONS__NAME": "plain words",
            "EDGEWISE_CONFIG": "not a key",
            "OTHER__KEY": "not ours",
        },
        a="[mqtt]\nurl = 'mqtt://from-file'",
    )
    assert config.mqtt.url == "mqtts://h:8883"
    assert (config.mqtt.reply_topics, config.mqtt.username) == (("a/#",), "123")
    assert (config.local.workers, config.endpoints["lab"].binary) == (4, True)
    assert config.endpoints["far"].binary == "auto"
    assert config.models["Digits"].image_input == ImageInput()
    assert config.policy.options == {"cpu_above": 0.5, "name": "plain words"}


@pytest.mark.parametrize(
    ("variable", "text", "key"),
    [
        ("EDGEWISE_LOCAL__WORKERS", "many", "local.workers"),
        ("EDGEWISE_LOCAL__WORKERS", "1.5", "local.workers"),
        ("EDGEWISE_LOCAL__WORKERS", "[" * 5000, "local.workers"),
        ("EDGEWISE_LOCAL__WORKERS__X", "1", "local.workers"),
        ("EDGEWISE_ENERGY__IDLE_WATTS", "nan", "energy.idle_watts"),
        ("EDGEWISE_MQTT__PROTOCOL", "3", "mqtt.protocol"),
        ("EDGEWISE_NO__SUCH", "1", "no"),
        ("EDGEWISE_LOCAL__NO", "1", "local.no"),
        ("EDGEWISE_MODELS__A__THREADS", "x", "models.a.threads"),
    ],
)
def test_an_error_in_the_environment_names_the_variable(loaded, variable, text, key):
    with pytest.raises(ConfigError) as caught:
        loaded(environ={variable: text})
    assert caught.value.where == f"environment variable {variable}"
    assert caught.value.key == key


def test_relative_paths_are_relative_to_the_main_files_folder(loaded, tmp_path):
    config = loaded(
        "[device]\nstate_dir = 'state'\n[mqtt]\nurl = 'mqtts://h'\nusername = 'me'\n"
        "password_file = 'pw'\nca_file = '/abs/ca'\n"
        "[http]\ntoken_file = 't'\n[policy]\npath = 'mine.py:Mine'\n"
        "[models.a]\npath = 'a.tflite'\nlabels = 'a.txt'\n[models.b]\npath = 'b'\nlabels = ['x']\n"
        "[tracing]\nendpoint = 'https://h'\nheaders_file = 'otlp'\n"
        f"{LAB}token_file = 'lab'"
    )
    assert config.device.state_dir == str(tmp_path / "state")
    assert (config.mqtt.password_file, config.mqtt.ca_file) == (str(tmp_path / "pw"), "/abs/ca")
    assert config.http.token_file == str(tmp_path / "t")
    assert config.policy.path == str(tmp_path / "mine.py:Mine")
    assert config.models["a"].path == str(tmp_path / "a.tflite")
    assert config.models["a"].labels == str(tmp_path / "a.txt")
    assert config.models["b"].labels == ("x",)
    assert config.endpoints["lab"].token_file == str(tmp_path / "lab")
    assert config.tracing.headers_file == str(tmp_path / "otlp")


def test_a_secret_is_the_files_text_without_white_space_around(tmp_path):
    (tmp_path / "s").write_text("  hush\n")
    assert read_secret(str(tmp_path / "s"), "mqtt.password_file") == "hush"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_secret_that_can_not_be_read_names_its_file(tmp_path, content):
    path = tmp_path / "s"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_secret(str(path), "mqtt.password_file")


def test_listen_addresses_are_split():
    assert split_listen("0.0.0.0:80") == ("0.0.0.0", 80)
    assert split_listen("[::1]:80") == ("::1", 80)


SECTIONS = "device mqtt http models endpoints policy local"
INNER = "url path id a cloud preprocess labels options workers listen size kind"
KEYS = st.sampled_from([*SECTIONS.split(), *INNER.split(), "", "a b"])
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-5, 2**63 - 1),
    st.floats().map(lambda number: f"@{number!r}"),
    st.sampled_from(["image", "mqtt://[", "http://h", "a:1", "h", "\0", "x" * 99, "../x"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4),
    st.dates().map(lambda date: f"@{date.isoformat()}"),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def toml(value):
    # A text that begins with @ stands for itself, unquoted.
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str) and value.startswith("@"):
        return value[1:]
    return json.dumps(value)


@given(st.dictionaries(KEYS, TREES, max_size=4), st.dictionaries(KEYS, SCALARS.map(str)))
def test_load_raises_nothing_but_a_config_error(tmp_path, tree, variables):
    path = tmp_path / "edgewise.toml"
    path.write_text("".join(f"{toml(k)} = {toml(v)}\n" for k, v in tree.items()))
    environ = {f"EDGEWISE_{key.upper()}__URL": text for key, text in variables.items()}
    try:
        taken = load(path, environ)
    except ConfigError as error:
        taken = error
    assert isinstance(taken, Config) or (taken.where and taken.reason)
