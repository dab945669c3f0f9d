"""Random images in the place of MNIST and CIFAR-10, and a server of folders."""

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from digits import KEYS, idx_bytes

from swsmix.problems import cifar10, mnist


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Twelve random digits, put in the place of MNIST: sizes and checksums are theirs."""
    rng = np.random.default_rng(0)
    arrays, files = {}, {}
    for key, num in zip(KEYS, (8, 8, 4, 4), strict=True):
        shape = (num, 28, 28) if key.startswith("x") else (num,)
        arrays[key] = rng.integers(0, 256 if key.startswith("x") else 10, shape, dtype=np.uint8)
        payload = idx_bytes(arrays[key])
        files[key] = replace(
            mnist._FILES[key],
            shape=shape,
            sha256=hashlib.sha256(payload).hexdigest(),
            md5_of_gz=hashlib.md5(gzip.compress(payload, mtime=0)).hexdigest(),
        )
    monkeypatch.setattr(mnist, "_FILES", files)
    monkeypatch.delenv("SWSMIX_DATA", raising=False)
    return arrays


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four random images in each of CIFAR-10's files: name -> contents."""
    rng, files = np.random.default_rng(0), {}
    for name in cifar10._MD5_OF_FILES:
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        files[name] = records.tobytes()
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(cifar10, "_MD5_OF_FILES", md5)
    monkeypatch.setattr(cifar10, "_IMAGES", 4)
    monkeypatch.delenv("SWSMIX_DATA", raising=False)
    return files


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serve folders over http; the address of each is a mirror."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()
