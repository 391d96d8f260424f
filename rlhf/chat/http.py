"""What the endpoint and the page share: the packages they need, who may ask, and listening."""

import contextlib
import hmac
import importlib.util
import ipaddress
import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf.config.errors import ConfigError

PACKAGES = ("fastapi", "uvicorn")
LONGEST_NAME = 80


class Unjudgeable(Exception):
    """What cannot be done now, in words for the person at the page."""


def check_name(annotator: str) -> str:
    """Return the name of who judges. Raises Unjudgeable for one that is none."""
    name = annotator.strip()
    if not name or len(name) > LONGEST_NAME:
        raise Unjudgeable(f"say who you are, in 1 to {LONGEST_NAME} characters")
    return name


def now() -> str:
    """Return the time as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def check_packages(verb: str) -> None:
    """Raise ConfigError where the extra packages are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(verb, "", f"it needs {' and '.join(missing)}", "pip install 'rlhf[web]'")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_same(given: str | None, secret: str) -> bool:
    """Whether a secret was given, compared in a time that does not tell how much of it is right."""
    return hmac.compare_digest((given or "").encode(), secret.encode())


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one. Raises ConfigError where it cannot."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        problem, fix = f"it cannot be listened on ({error})", "give another --host or --port"
        raise ConfigError("argument", f"--host {host} --port {port}", problem, fix) from error


def serve(app: Any, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    import uvicorn

    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises once it has closed everything
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listening])


def write_lines(items: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    """Yield objects as JSON Lines."""
    return (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
