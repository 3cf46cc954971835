"""The report as a page that keeps itself up to date: read-only, on this machine, for whoever has its address."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pat.report import build, reading
from pat.report.render import html
from pat.report.values import number, sequence

HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Live:
    """The page of some sources, built again when it is requested and older than `every_s`."""

    def __init__(self, paths: Sequence[Path], every_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.paths, self.every_s, self.clock = paths, every_s, clock
        self.lock = threading.Lock()
        self.made: tuple[float, bytes] | None = None

    def page(self) -> bytes:
        """HTML; the previous page while a file is being written. ValueError where there was none."""
        with self.lock:  # one reader builds it, the others wait for it
            if self.made is None or self.clock() - self.made[0] >= self.every_s:
                try:
                    self.made = (self.clock(), self._make())
                except ValueError:
                    if self.made is None:
                        raise
            return self.made[1]

    def _make(self) -> bytes:
        found = reading.read(self.paths)
        members = [one for sweep in found.sweeps for one in sequence(sweep.content, "members")]
        over = all(run.is_over for run in found.runs) and all(number(one, "code") is not None for one in members)
        return html(build.page(found), refresh_s=None if over else self.every_s).encode()


class Server(ThreadingHTTPServer):
    """Serves one page under one address that cannot be guessed."""

    daemon_threads = True

    def __init__(self, live: Live, host: str = "127.0.0.1", port: int = 0) -> None:
        self.live, self.path = live, f"/{secrets.token_urlsafe(24)}/"
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """The URL for a browser."""
        host, port = self.server_address[:2]
        return f"http://{str(host)}:{port}{self.path}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds that a silent client may hold a thread
    server_version, sys_version = "pat", ""

    def do_GET(self) -> None:
        """The page, or nothing."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send only the headers."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        if not hmac.compare_digest(self.path.encode(), self.server.path.encode()):
            status, body = HTTPStatus.NOT_FOUND, b"There is nothing here."
        else:
            try:
                status, body = HTTPStatus.OK, self.server.live.page()
            except ValueError:
                status, body = HTTPStatus.SERVICE_UNAVAILABLE, b"The run cannot be read just now: try again."
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a log of requests would hold the address."""
