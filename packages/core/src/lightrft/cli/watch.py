"""`lightrft watch`: the page of a run, made anew for each request, on loopback."""

from __future__ import annotations

import time
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lightrft.errors import RunFolderError, UserError
from lightrft.run.pulse import pulse
from lightrft.run.run_data import read_run
from lightrft.run.watch_page import watch_page

LOOPBACK = "127.0.0.1"


def server(run: str, *, port: int, every_s: float) -> ThreadingHTTPServer:
    """Bound and not yet serving; `port` 0 takes a free one. Nothing but this page is served, and nothing is written.

    Raises:
        RunFolderError: there is no run.
        UserError: the port cannot be had, or `every_s` is less than a second.
    """
    if every_s < 1:
        raise UserError(f"--every {every_s:g}: give at least 1 second")
    folder = Path(run).expanduser()
    read_run(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in (LOOPBACK, "localhost"):  # a name that someone points at loopback
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                self._send(*_page(folder, every_s=every_s))

        def _send(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: one line for each reload tells nobody anything."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port {port} on {LOOPBACK} cannot be had: {reason}; give another, or 0 for a free one") from error


def _page(folder: Path, *, every_s: float) -> tuple[int, str]:
    try:
        run = read_run(folder)
    except RunFolderError as error:  # taken away since
        return 404, f"<!doctype html><meta charset='utf-8'><p>{escape(str(error))}</p>\n"
    return 200, watch_page(run, pulse(run, now=time.time()), every_s=every_s)
