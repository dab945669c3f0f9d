"""Twelve random digits in the place of MNIST, as files of every kind."""

import gzip
from pathlib import Path

import numpy as np

from swsmix.problems import mnist

KEYS = ("x_train", "y_train", "x_test", "y_test")


def idx_bytes(array: np.ndarray) -> bytes:
    """Slow twin of the idx format: 0, 0, type 8 (uint8), the number of axes, their lengths."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_folder(folder: Path, arrays: dict[str, np.ndarray], kind: str) -> None:
    """Write arrays as "npz", "idx" or "gz" files."""
    if kind == "npz":
        np.savez(folder / "mnist.npz", allow_pickle=False, **arrays)
        return
    for key, array in arrays.items():
        name = mnist._FILES[key].name
        if kind == "idx":
            (folder / name).write_bytes(idx_bytes(array))
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), mtime=0))


def same(digits: mnist.MNIST, arrays: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(getattr(digits, key).numpy(), arrays[key]) for key in KEYS)
