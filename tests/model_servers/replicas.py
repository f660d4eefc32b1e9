"""Prints how many replicas of `Models` run, now and whenever that changes.

Started in Ray's virtual environment as ``python replicas.py``, beside a node at $RAY_ADDRESS.
"""

from __future__ import annotations

import time

import ray
from ray import serve

ASK_EVERY_S = 0.1


def main() -> None:
    ray.init(log_to_driver=False, namespace="serve")
    said = None
    while True:
        states = serve.status().applications["oip"].deployments["Models"].replica_states
        # One that starts or stops is on neither side.
        running = states.get("RUNNING", 0) if states.keys() == {"RUNNING"} else None
        if running is not None and running != said:
            said = running
            print(said, flush=True)  # noqa: T201 - what it is for
        time.sleep(ASK_EVERY_S)


if __name__ == "__main__":
    main()
