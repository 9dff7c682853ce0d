"""The latest metrics in the text format of Prometheus: a file, and on request a port on loopback."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lightrft.errors import UserError
from lightrft.run.loggers.base import LoggerSetup, run_name

FILE_NAME = "metrics.prom"
PORT = "LIGHTRFT_PROMETHEUS_PORT"
LOOPBACK = "127.0.0.1"


class PrometheusLogger:
    """Writes `metrics.prom` of the log folder anew at each step, for the textfile collector of a node exporter. With
    `LIGHTRFT_PROMETHEUS_PORT` set, `http://127.0.0.1:PORT/metrics` serves the same while the run lasts; no other address is bound.
    """

    def __init__(self, setup: LoggerSetup) -> None:
        self._path = setup.log_dir / FILE_NAME
        self._run = run_name(setup)
        self._latest: dict[str, float] = {}
        self._text = ""
        self._server = _server(self, os.environ[PORT]) if os.environ.get(PORT) else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._latest |= {"step": step, **metrics}
        self._text = exposition(self._latest, run=self._run)
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(self._text, encoding="utf-8")
        temporary.replace(self._path)  # a collector never reads half a file

    @property
    def text(self) -> str:
        """What was written last."""
        return self._text

    @property
    def port(self) -> int | None:
        """That of the server; None without one."""
        return self._server.server_port if self._server else None

    def rewind(self, step: int) -> None:
        """Nothing to do: only the latest values are there."""

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def exposition(values: Mapping[str, float], *, run: str) -> str:
    """One gauge for each metric, `lightrft_` and its name in the letters that Prometheus allows; labels say the run and the name itself.

    Example:
        >>> print(exposition({"rollout/reward": 0.5, "train/kl": float("nan")}, run="a"), end="")
        # TYPE lightrft_rollout_reward gauge
        lightrft_rollout_reward{run="a",metric="rollout/reward"} 0.5
        # TYPE lightrft_train_kl gauge
        lightrft_train_kl{run="a",metric="train/kl"} NaN
    """
    families: dict[str, list[str]] = {}
    for name, value in sorted(values.items()):
        gauge = "lightrft_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        labels = f'run="{_escaped(run)}",metric="{_escaped(name)}"'
        families.setdefault(gauge, []).append(f"{gauge}{{{labels}}} {_number(value)}\n")
    return "".join(f"# TYPE {gauge} gauge\n{''.join(lines)}" for gauge, lines in families.items())


def _number(value: float) -> str:
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(repr(float(value)), repr(float(value)))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _server(logger: PrometheusLogger, port: str) -> ThreadingHTTPServer:
    """Serving already, in a thread that ends with the process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = logger.text.encode()
            if self.path != "/metrics":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line for each scrape tells nobody anything."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, int(port)), Handler)
    except (ValueError, OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{PORT}={port!r}: this port of {LOOPBACK} cannot be had: {reason}; give another, 0 for a free one, or unset it"
        ) from error
    threading.Thread(target=server.serve_forever, name="prometheus", daemon=True).start()
    return server
