"""An example of a reward server. Rewards over HTTP, with the standard library alone: `python examples/reward_server.py --port 8000`.

A run asks it with `--reward length=http://127.0.0.1:8000/score`. The protocol is in docs/rewards.md. With `--auth_env NAME` a request must
carry the value of that environment variable as its Authorization header; a run is given the same variable by `--reward_auth_env NAME`.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/score"
MAX_BYTES = 64 << 20


def reward(sample: dict[str, Any]) -> float:
    """Put yours here: 1 for an answer of at most 50 words."""
    return 1.0 if len(sample["completion"].split()) <= 50 else 0.0


class Handler(BaseHTTPRequestHandler):
    """One request: a batch of samples in, a number for each out."""

    secret = ""

    def do_POST(self) -> None:
        if self.path.partition("?")[0] != PATH:
            return self.reply(404, {"error": f"no {self.path!r} here; post to {PATH}"})
        if self.secret and not hmac.compare_digest(self.headers.get("Authorization", ""), self.secret):
            return self.reply(401, {"error": "wrong or no Authorization header"})
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MAX_BYTES:
            return self.reply(413, {"error": f"a body of {length} bytes; from 1 to {MAX_BYTES} are read"})
        try:
            request = json.loads(self.rfile.read(length))
            rewards = [reward(sample) for sample in request["samples"]]
        except (ValueError, KeyError, TypeError) as error:
            return self.reply(400, {"error": f"{type(error).__name__}: {error}"})
        return self.reply(200, {"rewards": rewards})

    def reply(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one, which is printed")
    parser.add_argument("--auth_env", default="", help="environment variable with the Authorization header to ask for")
    given = parser.parse_args()
    Handler.secret = os.environ[given.auth_env] if given.auth_env else ""
    server = ThreadingHTTPServer((given.host, given.port), Handler)
    print(f"rewards at http://{given.host}:{server.server_address[1]}{PATH}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
