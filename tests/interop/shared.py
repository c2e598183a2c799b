"""A token, and lines of JSON on standard output."""

import base64
import hashlib
import hmac
import json
import time


def token(key: str, secret: str, identity: str, grants: dict, attributes: dict | None = None) -> str:
    """A LiveKit access token (HS256), good for an hour."""
    now = int(time.time())
    claims = {
        "iss": key,
        "sub": identity,
        "nbf": now - 10,
        "exp": now + 3600,
        "attributes": attributes or {},
        "video": grants,
    }
    signed = f"{base64url({'alg': 'HS256', 'typ': 'JWT'})}.{base64url(claims)}"
    signature = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def base64url(value: dict) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def emit(event: str, **fields: object) -> None:
    """Prints one event with the monotonic clock (which all processes of a machine share) and the wall clock."""
    line = {"event": event, "monotonic_ns": time.monotonic_ns(), "wall": time.time(), **fields}
    print(json.dumps(line), flush=True)
