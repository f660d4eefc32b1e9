"""OpenAI's API: what a stream may look like, and what is no completion."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import CloudModel
from agent.job import ErrorCode, JobError
from agent.routes.protocols import Response, Tokens
from agent.routes.protocols.openai import OpenAi
from agent.routes.protocols.sse import EventStream
from agent.wire import tensors


def event(body, end="\n\n"):
    return f"data: {json.dumps(body)}{end}".encode()


def read(output):
    return json.loads(bytes(tensors.to_json(output)))


def chunk(text, reason=None, **more):
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}], **more}


STREAM = [
    b": hello\n\n",
    event(chunk("Hé")),
    event(chunk("llo", usage=None), "\r\n\r\n"),
    event(chunk(None, "stop")),
    event({"choices": None, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
    b"data: [DONE]\n\n",
]


@pytest.fixture
def ask(make_job):
    """Ask a model, and have it answered so."""

    def make(body, *, stream=True, task="chat", texts=("hi",)):
        job = make_job(inputs=(tensors.strings("text", texts),))
        protocol = OpenAi("http://h:1", {job.model: CloudModel("llm", task=task)})
        request = protocol.encode(job, job.inputs)
        kind = "text/event-stream; charset=utf-8" if stream else "application/json"
        return protocol.decode(job, request, Response(200, {"Content-Type": kind}, body))

    return make


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://api.example.com", "/v1/chat/completions"),
        ("https://api.example.com/", "/v1/chat/completions"),
        ("https://example.com/openai/v1", "/chat/completions"),
    ],
)
def test_an_url_without_a_path_is_taken_to_end_in_v1(make_job, url, path):
    job = make_job()
    assert OpenAi(url, {job.model: CloudModel("llm")}).encode(job, job.inputs).path == path


def test_a_stream_is_put_together_to_the_text_its_end_and_its_usage(ask):
    result = ask(b"".join(STREAM))
    text, reason = (read(output) for output in result.outputs)
    assert (text, reason, result.tokens) == (["Héllo"], ["stop"], Tokens(3, 2))


@given(st.lists(st.integers(1, 30)))
def test_a_stream_says_the_same_however_it_is_cut(make_job_at_once, cuts):
    job = make_job_at_once
    request = OpenAi("http://h", {job.model: CloudModel("llm")}).encode(job, job.inputs)
    whole = b"".join(STREAM)
    said = []
    for cut in [*cuts, len(whole)]:
        piece, whole = whole[:cut], whole[cut:]
        said.append(request.listen(piece))
    assert "".join(said) == "Héllo"


@pytest.fixture
def make_job_at_once(make_job):
    return make_job()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"".join(STREAM[:3]), "not finished"),
        (b"", "not finished"),
        (b"data: {\n\n", "no completion"),
        (b"data: [1]\n\n", "no completion"),
        (event({"choices": [{"delta": {"content": 5}}]}), "no completion"),
    ],
)
def test_a_stream_that_is_none_is_an_error(ask, body, says):
    with pytest.raises(JobError, match=says):
        ask(body)


@pytest.mark.parametrize("error", ["the model is gone", {"message": "the model is gone"}])
def test_an_error_in_the_middle_of_a_stream_is_the_answer(ask, error):
    with pytest.raises(JobError, match="the model is gone") as caught:
        ask(STREAM[1] + event({"error": error}))
    assert caught.value.code is ErrorCode.ENDPOINT_ERROR


def test_a_server_that_streams_unasked_or_not_at_all_is_understood(ask):
    body = {"choices": [{"message": {"content": "yo"}, "finish_reason": "length"}]}
    text, reason = ask(json.dumps(body).encode(), stream=False).outputs
    assert (
        json.loads(bytes(tensors.to_json(text))),
        json.loads(bytes(tensors.to_json(reason))),
    ) == (
        ["yo"],
        ["length"],
    )


@pytest.mark.parametrize("count", [-1_000_000, 10**400])
def test_a_count_of_tokens_that_is_none_is_not_believed(ask, count):
    body = {
        "choices": [{"message": {"content": "yo"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": count, "completion_tokens": 1},
    }
    assert 0 < ask(json.dumps(body).encode(), stream=False).tokens.input < 1000


def test_tokens_that_are_not_counted_are_estimated_high(ask):
    tokens = ask(b"".join([*STREAM[:4], STREAM[5]])).tokens
    assert tokens.input > 2
    assert tokens.output == 2


def embeddings(*rows):
    data = [{"index": index, "embedding": row} for index, row in enumerate(rows)]
    return json.dumps({"data": data}).encode()


@pytest.mark.parametrize(
    "body",
    [
        embeddings([1.0], [2.0]),
        embeddings(),
        embeddings("not base64"),
        embeddings("AAA="),
        embeddings("AADAfw=="),
        b"<html>",
        b'{"data": {}}',
    ],
)
def test_embeddings_that_are_none_are_an_error(ask, body):
    with pytest.raises(JobError):
        ask(body, stream=False, task="embeddings")


def test_embeddings_of_unlike_sizes_are_an_error(ask):
    with pytest.raises(JobError, match="unlike"):
        ask(embeddings([1.0], [1.0, 2.0]), stream=False, task="embeddings", texts=("a", "b"))


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=9), max_size=5
    )
)
def test_any_events_are_read_however_they_are_cut(texts):
    stream = EventStream()
    sent = "".join(f"id: 1\ndata: {text}\n\n" for text in texts).encode()
    read = [data for position in range(len(sent)) for data in stream.feed(sent[position:][:1])]
    assert read == texts


def test_an_event_of_several_lines_is_one():
    assert EventStream().feed(b"data: a\ndata:b\n\n") == ["a\nb"]
