"""Why a connection failed or was refused, in words that name what to look at."""

from __future__ import annotations

import ssl

from paho.mqtt.reasoncodes import ReasonCode

from agent.credentials import plain_reason

# X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_MISMATCH and _IP_ADDRESS_MISMATCH of OpenSSL.
WRONG_NAME = frozenset({62, 63, 64})
ALERT = " alert "
# What MQTT 5 and 3.1.1 say to a client that they don't let in.
LOGIN_REFUSED = frozenset({"Not authorized", "Bad user name or password"})


def why_failed(error: OSError | ValueError) -> str:
    """Say why a connection could not be made, or broke."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in WRONG_NAME:
            return f"the broker's certificate is for another host (mqtt.url): {plain_reason(error)}"
        return f"the broker's certificate is not trusted (mqtt.ca_file): {plain_reason(error)}"
    if not isinstance(error, ssl.SSLError):
        return str(error)
    reason = plain_reason(error)
    _, alert, said = reason.partition(ALERT)
    if alert and ("certificate" in said or "ca" in said.split()):
        return f"the broker refused our certificate (mqtt.cert_file): {said}"
    return f"TLS failed: {reason}"


def why_refused(code: ReasonCode) -> str:
    """Say why the broker did not let us in."""
    text = str(code)
    if text in LOGIN_REFUSED:
        return f"the broker refused our login (mqtt.username, password_file, cert_file): {text}"
    return f"the broker refused the connection: {text}"
