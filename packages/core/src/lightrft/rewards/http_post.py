"""One request, sent so that it ends: a time limit over all of it, a bound on the reply, no redirects, no proxies."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit


class HttpFault(Exception):
    """No usable reply. `final`: asking again is no use; `wait_s`: the server asks for so many seconds."""

    def __init__(self, reason: str, *, final: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.final = final
        self.wait_s = wait_s


@dataclass(frozen=True)
class Reply:
    """Whatever came, of any status."""

    status: int
    body: bytes
    retry_after_s: float


def post(url: str, content: bytes, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int) -> Reply:
    """Sends a POST and reads its reply.

    Raises:
        HttpFault: no connection, too slow, too long, or no HTTP.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    late = threading.Event()
    open_sockets: list[socket.socket] = []

    def end() -> None:
        # A socket's own limit starts anew with every byte; a server that sends one a second would hold us for ever.
        late.set()
        for sock in open_sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.connect()
        open_sockets.append(connection.sock)  # the connection lets go of it before the reply was read
        connection.request("POST", target, body=content, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(max_bytes + 1)
        if late.is_set():  # a connection that was closed may look like a reply that ended
            raise TimeoutError
        if len(body) > max_bytes:
            raise HttpFault(f"its reply is longer than {max_bytes} bytes")
        if response.length:  # http.client returns what came before the end, silently, where a limit is given
            raise HttpFault("the connection broke within its reply")
        return Reply(response.status, body, _seconds(response.getheader("Retry-After")))
    except ssl.SSLCertVerificationError as error:
        raise HttpFault(f"its certificate is not trusted: {error.verify_message}", final=True) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise HttpFault(f"no whole reply within {timeout_s:g} s (reward_timeout_s)") from error
        reason = " ".join(str(error).split()) or "the connection broke"
        raise HttpFault(f"{type(error).__name__}: {reason:.120}") from error
    finally:
        timer.cancel()
        connection.close()
        for sock in open_sockets:
            sock.close()


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 7 else 0.0
