"""Text models behind OpenAI's API: tokens as they come, the whole as the answer, usage as cost."""

import base64
import json

import numpy as np
import pytest
from standins import serving
from standins.openai import OpenAi


@pytest.fixture
async def texts(serve, configure, program):
    """A daemon with text models at a stand-in endpoint, and that endpoint."""
    server = OpenAi()
    async with serving(server.application()) as url:
        server.serving = await serve(
            configure(
                models={
                    "talk": {
                        "cloud": [
                            {
                                "endpoint": "llm",
                                "name": "gpt-tiny",
                                "prompt": "Be brief.",
                                "options": {"max_completion_tokens": 50},
                            }
                        ]
                    },
                    "whole": {"cloud": [{"endpoint": "llm", "options": {"stream": False}}]},
                    "embed": {"cloud": [{"endpoint": "llm", "task": "embeddings"}]},
                    "see": {
                        "preprocess": "image",
                        "cloud": [
                            {"endpoint": "llm", "image": "original", "prompt": "What is it?"}
                        ],
                    },
                },
                endpoints={
                    "llm": {
                        "url": url,
                        "protocol": "openai",
                        "price_per_million_input_tokens": 1_000_000.0,
                        "price_per_million_output_tokens": 10_000_000.0,
                    }
                },
            )
        )
        yield server


def job(job_id, *elements, name="text", **parameters):
    tensor = {
        "name": name,
        "shape": [len(elements)],
        "datatype": "BYTES",
        "data": list(elements),
    }
    return json.dumps({"id": job_id, "inputs": [tensor], "parameters": parameters}).encode()


def outputs(answer):
    return {output["name"]: output["data"] for output in answer["outputs"]}


def told(program, job_id):
    """The pieces of text that a job's progress told."""
    said = [json.loads(message.payload) for message in program.on(f"progress/{job_id}")]
    return [each["text"] for each in said if each["state"] == "streaming"]


async def test_a_text_is_told_as_it_comes_and_answered_as_a_whole(texts, program):
    texts.behaviour = "hold"
    await program.submit("talk", job("chat", "one two three"))
    first = await program.progress("chat", "streaming")
    assert (first["text"], first["route"]) == ("three", "cloud:llm")
    assert program.on("results/chat") == []
    texts.go_on.set()
    answer = await program.answer("chat")
    assert outputs(answer) == {"text_output": ["three two one"], "finish_reason": ["stop"]}
    assert "".join(told(program, "chat")) == "three two one"


async def test_a_chat_is_asked_as_configured(texts, program):
    await program.submit("talk", job("chat", "hello"))
    await program.answer("chat")
    assert texts.bodies == [
        {
            "model": "gpt-tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hello"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 50,
        }
    ]


async def test_what_the_endpoint_counts_is_what_a_text_costs(texts, program):
    await program.submit("talk", job("chat", "one two three"))
    answer = await program.answer("chat")
    assert answer["parameters"]["cost"] == pytest.approx(7 + 3 * 10)
    assert await texts.serving.metric("edgewise_cloud_cost_total", endpoint="llm") == 37


async def test_what_an_endpoint_does_not_count_still_costs(texts, program):
    texts.behaviour = "count_nothing"
    await program.submit("talk", job("chat", "one two three"))
    assert (await program.answer("chat"))["parameters"]["cost"] > 37


async def test_a_text_too_dear_for_its_job_is_not_asked_for(texts, program):
    await program.submit("talk", job("chat", "x" * 400, max_cost=99.0))
    answer = await program.answer("chat")
    assert answer["parameters"]["code"] == "no_route"
    assert texts.bodies == []


async def test_what_texts_cost_is_learned(texts, program):
    for number in range(3):
        await program.submit("talk", job(f"chat-{number}", "one two three"))
        await program.answer(f"chat-{number}")
    await program.submit("talk", job("limited", "one two three", max_cost=30.0))
    assert (await program.answer("limited"))["parameters"]["code"] == "no_route"


async def test_messages_go_as_they_are(texts, program):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "say more"},
    ]
    await program.submit("talk", job("chat", json.dumps(messages), name="messages"))
    assert outputs(await program.answer("chat"))["text_output"] == ["more say"]
    assert texts.bodies[0]["messages"][1:] == messages


async def test_an_image_goes_into_the_message_as_it_came(texts, program, digits):
    await program.submit("see", digits.png("3"), User={"id": "picture"})
    answer = await program.answer("picture")
    assert outputs(answer)["text_output"] == ["text image_url data:image/png;base64"]
    text, picture = texts.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert base64.b64decode(picture["image_url"]["url"].partition(",")[2]) == digits.png("3")


async def test_a_text_may_come_in_one_piece(texts, program):
    await program.submit("whole", job("chat", "one two"))
    answer = await program.answer("chat")
    assert outputs(answer)["text_output"] == ["two one"]
    assert answer["parameters"]["cost"] == pytest.approx(7 + 2 * 10)
    assert "stream_options" not in texts.bodies[0]
    assert told(program, "chat") == []


async def test_texts_are_embedded_row_by_row(texts, program):
    await program.submit("embed", job("rows", "a", "banana"))
    answer = await program.answer("rows")
    (tensor,) = answer["outputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("embedding", "FP32", [2, 3])
    assert np.float32(tensor["data"]).tolist() == np.float32([1, 1, 0.1, 6, 3, 0.1]).tolist()
    assert texts.bodies[0]["encoding_format"] == "base64"
    assert answer["parameters"]["cost"] == pytest.approx(11)


@pytest.mark.parametrize(("model", "requests"), [("talk", 3), ("embed", 3)])
async def test_an_older_server_loses_no_job_to_what_it_does_not_know(
    texts, program, model, requests
):
    texts.behaviour = "old"
    for job_id in ("first", "second"):
        await program.submit(model, job(job_id, "hello"))
        assert "outputs" in await program.answer(job_id)
    assert len(texts.bodies) == requests


async def test_a_text_that_breaks_off_is_an_error_and_no_answer(texts, program):
    texts.behaviour = "break_off"
    await program.submit("talk", job("chat", "one two"))
    answer = await program.answer("chat")
    assert answer["parameters"]["code"] == "endpoint_error"
    assert "not finished" in answer["error"]


async def test_what_the_endpoint_says_against_a_text_is_told(texts, program):
    texts.behaviour = "complain"
    await program.submit("talk", job("chat", "one two"))
    answer = await program.answer("chat")
    assert answer["parameters"]["code"] == "bad_request"
    assert "maximum context length" in answer["error"]


@pytest.mark.parametrize(
    ("elements", "name", "says"),
    [
        (("a", "b"), "text", "takes one text"),
        (("[1]",), "messages", "no list of messages"),
    ],
)
async def test_what_is_no_text_is_refused_here(texts, program, elements, name, says):
    await program.submit("talk", job("bad", *elements, name=name))
    answer = await program.answer("bad")
    assert (answer["parameters"]["code"], says in answer["error"]) == ("bad_request", True)
    assert texts.bodies == []


async def test_numbers_are_no_text(texts, program):
    tensor = {"name": "text", "shape": [1], "datatype": "FP32", "data": [1]}
    await program.submit("talk", json.dumps({"id": "bad", "inputs": [tensor]}).encode())
    assert (await program.answer("bad"))["parameters"]["code"] == "bad_request"


async def test_a_private_text_stays_here_and_tells_nothing(texts, program):
    await program.submit("talk", job("secret", "one two", privacy="device"))
    assert (await program.answer("secret"))["parameters"]["code"] == "no_route"
    assert (texts.bodies, told(program, "secret")) == ([], [])
