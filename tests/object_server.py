"""Servers of objects on loopback: moto's S3 behind a proxy with faults, and one with generations.

The proxy passes each request on, unless the next fault of its list fits it. It counts the requests
and the bytes that it passes on.
"""

import contextlib
import http.client
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from experiments.systems.stores.server import BUCKET, s3_server


class Fault(NamedTuple):
    """What happens to the first request that fits."""

    kind: str  # unsent, unanswered, cut, refused, or stalled until `released` is set
    method: str  # GET, PUT, …
    pattern: str  # of the path


class Proxy(ThreadingHTTPServer):
    """A proxy before a server of objects; `faults` are used up one by one, in any order."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarded)
        self.port, self.faults, self.happened = port, list[Fault](), list[Fault]()
        self.stalled, self.released = threading.Event(), threading.Event()
        self.mutex = threading.Lock()
        self.requests, self.sent = list[str](), 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.mutex:
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path):
                    self.faults.remove(fault)
                    self.happened.append(fault)
                    return fault
        return None

    def handle_error(self, request, client_address) -> None:
        """Say nothing of a client that was killed."""


class _Forwarded(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault_of(self.command, self.path)
        with self.server.mutex:
            self.server.requests.append(f"{self.command} {self.path}")
            self.server.sent += len(body)
        kind = "" if fault is None else fault.kind
        if kind == "unsent":
            return self._hang_up()
        if kind == "stalled":
            self.server.stalled.set()
            self.server.released.wait(600)
        if kind == "refused":
            return self._answer(
                503, [("Retry-After", "0")], b"<Error><Code>SlowDown</Code></Error>"
            )
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(connection):
            if kind == "cut":  # the size is announced, half of the bytes come, the connection ends
                connection.putrequest(self.command, self.path, skip_host=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders()
                connection.send(body[: len(body) // 2])
                return self._hang_up()
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            content, headers = answer.read(), answer.getheaders()
        if kind == "unanswered":
            return self._hang_up()
        return self._answer(answer.status, headers, content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of what a HEAD leaves out
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_) -> None:
        """Print nothing."""

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward


@contextlib.contextmanager
def s3_proxy() -> Iterator[Proxy]:
    """Moto's server with a bucket, behind a proxy."""
    with s3_server() as port, Proxy(port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


# ── Google Cloud Storage, as far as its pages describe the requests that the package sends ────────


class Generations(ThreadingHTTPServer):
    """The XML interface of a bucket in memory: each object has a generation, which a write may ask.

    Source: cloud.google.com/storage/docs/xml-api/reference-headers, `x-goog-if-generation-match`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Generation)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.last, self.mutex = 0, threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Generation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Generations

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        key = unquote(split.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        with self.server.mutex:
            if self.command == "PUT":
                self._put(key, body)
            elif self.command == "DELETE":
                found = self.server.objects.pop(key, None)
                self._answer(204 if found else 404)
            elif key:
                found = self.server.objects.get(key)
                self._answer(*((404,) if found is None else (200, found[1], found[0])))
            else:
                query = parse_qs(split.query)
                self._list(query.get("prefix", [""])[0], query.get("delimiter", [""])[0])

    def _put(self, key: str, body: bytes) -> None:
        asked = self.headers.get("x-goog-if-generation-match")
        there = self.server.objects.get(key, (0, b""))[0]
        if asked is not None and int(asked) != there:
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        self.server.last += 1
        self.server.objects[key] = (self.server.last, body)
        return self._answer(200, b"", self.server.last)

    def _list(self, prefix: str, delimiter: str) -> None:
        keys = [key for key in sorted(self.server.objects) if key.startswith(prefix)]
        folders = set()
        if delimiter:
            inner = [key.removeprefix(prefix) for key in keys]
            folders = {prefix + name.split("/")[0] + "/" for name in inner if "/" in name}
            keys = [key for key in keys if "/" not in key.removeprefix(prefix)]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key][1])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            for key in keys
        )
        more = "".join(
            f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders
        )
        self._answer(200, f"<ListBucketResult>{rows}{more}</ListBucketResult>".encode())

    def _answer(self, status: int, content: bytes = b"", generation: int | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        if generation is not None:
            self.send_header("ETag", f'"{generation}"')
            self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Print nothing."""

    do_GET = do_PUT = do_HEAD = do_DELETE = _handle


@contextlib.contextmanager
def gs_server() -> Iterator[dict[str, str]]:
    """A server of objects with generations; the variables with which the package uses it."""
    with Generations() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"GOOGLE_BASE_URL": server.address, "GOOGLE_BEARER_TOKEN": "any"}
        server.shutdown()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """In this context, these variables are set."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
