"""Ten thousand payloads that are no jobs: each is counted, and the next good job answered."""

import asyncio
import json
import random
import signal

COUNT = 10_000
AT_ONCE = 50  # then a good job, which is answered
SEED = 20_261_123


def make_payloads(digits):
    """Make payloads that are no jobs by construction, and count those whose id can be read."""
    dice = random.Random(SEED)
    job = digits.job("hurt")
    binary, header = digits.binary("hurt")
    named = 0
    payloads = []
    for _ in range(COUNT):
        kind = dice.randrange(6)
        if kind == 0:
            payload = dice.randbytes(dice.randrange(1, 300))
            while payload.startswith((b"\xff\xd8\xff", b"\x89PNG", b"{")):
                payload = dice.randbytes(len(payload))
        elif kind == 1:
            payload = job[: dice.randrange(len(job))]
        elif kind == 2:
            # The header is whole, so that its id can be read.
            payload = binary[: dice.randrange(header, len(binary))]
            named += 1
        elif kind == 3:
            payload = b"[" * dice.randrange(1, 5000)
        elif kind == 4:
            values = [None, True, 7, -1.5, "text", [], {}, [1, 2], {"id": 7}]
            payload = json.dumps(dice.choice(values)).encode()
        else:
            fields = json.loads(job)
            spoiled = dice.choice(["shape", "datatype", "data", "name"])
            fields["inputs"][0][spoiled] = dice.choice([None, {}, "FP33", [[1], 2], [-1], True])
            if spoiled == "name" and fields["inputs"][0]["name"] == "FP33":
                fields["inputs"][0]["name"] = 7
            payload = json.dumps(fields).encode()
            named += 1
        payloads.append(payload)
    return payloads, named


async def test_ten_thousand_random_payloads_leave_no_mark(start_daemon, configure, program, digits):
    daemon = await start_daemon(configure())
    workers = daemon.workers
    payloads, named = make_payloads(digits)
    for start in range(0, COUNT, AT_ONCE):
        chunk = payloads[start : start + AT_ONCE]
        await asyncio.gather(*(program.submit("digits", payload) for payload in chunk))
        await program.submit("digits", digits.job(f"good-{start}"))
        assert digits.read(await program.answer(f"good-{start}")) == "3"
    assert await daemon.metric("edgewise_bad_messages_total") == COUNT
    assert await daemon.metric("edgewise_bad_messages_total", reason="bad_request") == COUNT
    assert await daemon.metric("edgewise_jobs_received_total") == COUNT / AT_ONCE
    answers = await program.messages("results/hurt", named)
    codes = {json.loads(message.payload)["parameters"]["code"] for message in answers}
    assert codes == {"bad_request"}
    assert daemon.workers == workers
    assert await daemon.metric("edgewise_worker_restarts_total") == 0
    assert (await daemon.get("/readyz"))[0] == 200
    # They are told by a few examples, and counted.
    daemon.signal(signal.SIGTERM)
    await daemon.ended()
    assert sum(line["event"] == "bad_message" for line in daemon.log) < COUNT / 100
    assert sum(told(line) for line in daemon.log) == COUNT


def told(line):
    """How many bad messages a line of the log tells of."""
    if line["event"] == "fault_repeated" and line["of"] == "bad_message":
        return line["times"]
    return int(line["event"] == "bad_message")
