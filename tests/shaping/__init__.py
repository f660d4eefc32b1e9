"""A network as a trace has it: a TCP proxy that lets bytes through no faster than that.

It runs in user space on loopback, so it needs no root and no sch_netem. Both directions go through
the arithmetic of `agent.simulate.link`, the same that `edgewise simulate` reckons with: one link
for each direction, shared by all connections.

    async with ShapingProxy(server_port, Trace.steps({0: GOOD, 5: BAD})) as proxy:
        await session.post(f"http://127.0.0.1:{proxy.port}/", data=body)

Bytes are never delivered before the link could have carried them. They come later by what timers
and a busy machine add: a millisecond or two for a request.

What it leaves out, beside what the link does: a client's own kernel takes bytes ahead of the link,
as it does before a real one. Where a test minds, it sets SO_SNDBUF on the client's socket.
"""

from shaping.faults import Fault, FaultProxy
from shaping.proxy import ShapingProxy

__all__ = ["Fault", "FaultProxy", "ShapingProxy"]
