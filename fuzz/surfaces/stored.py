"""Bytes from the state directory: jobs, answers, askers, traces, entries of the decision log."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from agent.history import EntryError, decode
from agent.job import Account, Answer, Asker, ErrorCode, Job, JobError, Tensor, Trace
from agent.wire import stored
from fuzz import mutations
from policies.api import Device, JobTraits
from policies.testing import cloud, local

MUTATION = mutations.packed
KINDS = 5


def target(data: bytes) -> None:
    """Decode by the first byte; what is none of ours is an error that says so."""
    if not data:
        return
    body = data[1:]
    decoders: tuple[Callable[[], object], ...] = (
        lambda: stored.encode_job(_job(body)),
        lambda: stored.encode_answer(stored.decode_answer(body, model="digits")),
        lambda: stored.encode_askers(stored.decode_askers(body)),
        lambda: decode(body).decision.situation,
        lambda: stored.encode_trace(stored.decode_trace(body)),
    )
    try:
        decoders[data[0] % KINDS]()
    except (stored.StoredError, EntryError) as error:
        assert str(error)


def _job(body: bytes) -> Job:
    return stored.decode_job(
        body, job_id="j", model="digits", priority=5, received_at=0.0, deadline_at=1.0
    )


def seeds() -> Iterator[bytes]:
    """Give what the store writes."""
    tensor = Tensor("x", "FP32", (1, 2), b"\0" * 8)
    job = Job("j", "digits", 0.0, 1.0, inputs=(tensor,), outputs=("y",), endpoint="lab")
    yield b"\0" + stored.encode_job(job)
    yield b"\0" + stored.encode_job(Job("j", "digits", 0.0, 1.0, image=b"\xff\xd8\xff"))
    account = Account(route="local", attempts=1, energy_j=0.5)
    yield b"\1" + stored.encode_answer(Answer("j", "digits", (tensor,), account=account))
    error = JobError(ErrorCode.OVERLOADED, "too much", retry_after_s=1.0)
    yield b"\1" + stored.encode_answer(Answer("j", "digits", error=error))
    yield b"\2" + stored.encode_askers([Asker("a/b", b"\1", True), Asker(binary=("y",))])
    decision = {
        "id": "j1",
        "time": 1.7e9,
        "policy": "mine",
        "route": "local",
        "reason": "preferred",
        "job": JobTraits("digits", 500, 1.0),
        "device": Device(battery_charge_ratio=0.2),
        "routes": (local(latency_mean_s=0.01), cloud(cost=0.002)),
        "propensity": 0.05,
    }
    attempt = {"route": "local", "latency_s": 0.1, "cost": 0.5}
    ended = {"decision": decision, "attempts": [attempt], "end": {"as": "answered"}}
    yield b"\3" + msgspec.json.encode(ended)
    yield b"\3" + msgspec.json.encode({"decision": decision, "outcome": attempt})
    yield b"\4" + stored.encode_trace(Trace("a" * 32, "b" * 16, "c" * 16, True, "k=v", "mqtt"))
