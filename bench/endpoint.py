"""A cloud endpoint that costs next to nothing: it gives every job the same answer.

Started as ``python endpoint.py PORT``.
"""

from __future__ import annotations

import asyncio
import re
import sys

ANSWER = (
    b'{"model_name":"elsewhere","outputs":'
    b'[{"name":"output","shape":[1],"datatype":"FP32","data":[0.5]}]}'
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
) + ANSWER
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            found = LENGTH.search(head)
            if found is not None:
                await reader.readexactly(int(found[1]))
            writer.write(RESPONSE)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
