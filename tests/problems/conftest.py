"""Twelve random digits in the place of MNIST."""

import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from digits import KEYS, idx_bytes

from swsmix.problems import mnist


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
