"""Is the daemon of this container alive? Exit 0 if /healthz answers at EDGEWISE_HTTP__LISTEN."""

import http.client
import os
import ssl
import sys

TIMEOUT_S = 2.0
ANY = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104 - asked for, not bound


def is_alive(listen: str) -> bool:
    """Ask by HTTP, and by HTTPS where that is not what is spoken there."""
    host, _, port = listen.rpartition(":")
    address = (ANY.get(host, host.strip("[]")), int(port))
    # Not by urllib, which would ask a proxy that the environment names.
    try:
        return _ask(http.client.HTTPConnection(*address, timeout=TIMEOUT_S))
    except ConnectionRefusedError:
        return False
    except (http.client.HTTPException, ConnectionError):
        # Alive is what is asked, not who it is: its name is not that of the address.
        unchecked = ssl.create_default_context()
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        return _ask(http.client.HTTPSConnection(*address, timeout=TIMEOUT_S, context=unchecked))


def _ask(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/healthz")
    return connection.getresponse().status == http.client.OK


if __name__ == "__main__":
    try:
        alive = is_alive(os.environ.get("EDGEWISE_HTTP__LISTEN", "127.0.0.1:9464"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"healthcheck: {error}")
        alive = False
    sys.exit(not alive)
