"""A server of objects on loopback: that of moto, which keeps the conditions of writes."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec

BUCKET = "bucket"
_PATIENCE = 60  # seconds


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """A server with one empty bucket, in a process of its own; its port.

    Raises:
        ValueError: if moto is not installed.
    """
    if find_spec("moto") is None:
        rule = "A server of objects needs the package `moto`, which is not installed"
        raise ValueError(f"{rule}: `make install`.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *words], stdout=quiet, stderr=quiet) as process:
        try:
            _make_bucket(f"http://127.0.0.1:{port}/{BUCKET}")
            yield port
        finally:
            process.kill()


def _make_bucket(address: str) -> None:
    """Make a bucket as soon as the server answers."""
    request, end = urllib.request.Request(address, method="PUT"), time.monotonic() + _PATIENCE
    while True:
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def s3_environment(address: str) -> dict[str, str]:
    """The variables with which the package uses a server at an address."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }
