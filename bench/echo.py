"""A bare HTTP server on aiohttp that reads each body and gives every request the same answer.

Started as ``python echo.py PORT``.
"""

from __future__ import annotations

import sys

from aiohttp import web

ANSWER = (
    b'{"model_name":"points","outputs":'
    b'[{"name":"scores","shape":[1,2],"datatype":"FP32","data":[0.5,0.5]}]}'
)


async def answer(request: web.Request) -> web.Response:
    """Answer one request."""
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


if __name__ == "__main__":
    application = web.Application()
    application.router.add_post("/v2/models/{model}/infer", answer)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
