"""Takes up what the broker holds for an agent that has gone.

mosquitto leaves what it has queued for a shared subscriber with that subscriber's session, and a
session is its client id's. So whoever connects by that id has the jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

import structlog

from agent.mqtt.link import Broker, Delivery, Link, LinkError, PublishRefusedError
from agent.mqtt.pool.names import Names

log = structlog.get_logger(__name__)

LOOK_S = 0.1


async def take_up(
    broker: Broker,
    names: Names,
    gone: str,
    models: Iterable[str],
    on_delivery: Callable[[Delivery], None],
) -> None:
    """Take up an agent's jobs until the last is let go of, then have the broker forget the agent.

    Should the agent come back meanwhile, the broker ends this connection, and hands what is not
    answered to the agent itself.

    Args:
        broker: Where to connect.
        names: The pool's.
        gone: The agent.
        models: What it may have served.
        on_delivery: Called with each of its jobs, on the event loop.
    """
    link = Link(replace(broker, client_id=names.client_id(gone)), None, on_delivery)
    alive: asyncio.Task[str] | None = None
    shares = names.shares(models)
    try:
        present = await link.open()
        alive = asyncio.create_task(link.run())
        log.info("pool_agent_gone", agent=gone, session=present)
        while True:
            # The first ends its subscriptions. Each is a fence too: what there was came before.
            await link.unsubscribe(shares)
            if not link.holds:
                break
            while link.holds:  # noqa: ASYNC110 - nobody is in a hurry
                await asyncio.sleep(LOOK_S)
        # Not earlier: should we go as well, somebody else has to see that it has gone.
        await link.publish(names.notice(gone), b"", retain=True)
        await link.close(forget=True)
    except (LinkError, PublishRefusedError, TimeoutError) as error:
        log.info("pool_agent_not_taken_up", agent=gone, reason=str(error))
    finally:
        await link.close()
        if alive is not None:
            await asyncio.gather(alive, return_exceptions=True)
