"""What Edgewise is compared with: inference over MQTT in one script, written the plainest way.

It takes the same jobs and gives the same numbers. It routes nothing, checks nothing, and loses
what it holds when it stops.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import aiomqtt
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HEADER_LENGTH_PROPERTY = "inference-header-content-length"


def infer(interpreter: Interpreter, request: dict[str, Any], raw: bytes) -> list[Any]:
    """Run one request; give the model's outputs."""
    [wanted] = interpreter.get_input_details()
    [given] = request["inputs"]
    values = np.frombuffer(raw, np.float32) if raw else np.array(given["data"], np.float32)
    interpreter.set_tensor(wanted["index"], values.reshape(given["shape"]))
    interpreter.invoke()
    return [
        (output["name"], interpreter.get_tensor(output["index"]))
        for output in interpreter.get_output_details()
    ]


def answer(request: dict[str, Any], outputs: list[Any]) -> tuple[bytes, Properties | None]:
    """Encode the outputs as JSON, or as binary behind a JSON header where that is asked for."""
    binary = request.get("parameters", {}).get("binary_data_output", False)
    described = []
    for name, values in outputs:
        entry = {"name": name, "shape": values.shape, "datatype": "FP32"}
        if binary:
            entry["parameters"] = {"binary_data_size": values.nbytes}
        else:
            entry["data"] = values.ravel().tolist()
        described.append(entry)
    header = json.dumps({"id": request["id"], "outputs": described}).encode()
    if not binary:
        return header, None
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = (HEADER_LENGTH_PROPERTY, str(len(header)))
    return b"".join([header, *(values.tobytes() for _, values in outputs)]), properties


async def main(port: int, device: str, models: dict[str, str]) -> None:
    """Serve."""
    interpreters = {name: Interpreter(model_path=path) for name, path in models.items()}
    for interpreter in interpreters.values():
        interpreter.allocate_tensors()
    async with aiomqtt.Client(
        "127.0.0.1",
        port,
        protocol=aiomqtt.ProtocolVersion.V5,
        max_queued_outgoing_messages=0,
        # Without it each answer may wait 40 ms for an acknowledgement (Nagle's algorithm).
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    ) as client:
        await client.subscribe(f"edgewise/v1/{device}/jobs/+", qos=1)
        async for message in client.messages:
            payload = message.payload
            told = dict(getattr(message.properties, "UserProperty", []))
            length = int(told.get(HEADER_LENGTH_PROPERTY, len(payload)))
            request = json.loads(payload[:length])
            interpreter = interpreters[message.topic.value.rpartition("/")[2]]
            body, properties = answer(request, infer(interpreter, request, payload[length:]))
            topic = f"edgewise/v1/{device}/results/{request['id']}"
            await client.publish(topic, body, qos=1, properties=properties)


if __name__ == "__main__":
    arguments = dict(pair.split("=", 1) for pair in sys.argv[3:])
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], arguments))
