"""MNIST: every kind of file is read alike, and no damage goes unnoticed."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from digits import KEYS, idx_bytes, same, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swsmix.problems import mnist


@pytest.mark.parametrize("kind", ["npz", "idx", "gz"])
def test_mnist_reads_every_kind_of_file_from_the_folder(
    tiny: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_folder(tmp_path, tiny, kind)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    digits = mnist.mnist(mirrors=())
    assert same(digits, tiny)
    assert digits.x_train.dtype == digits.x_test.dtype == torch.uint8
    assert digits.y_train.dtype == digits.y_test.dtype == torch.int64
    digits.x_train.zero_()  # writable memory of its own
    assert same(mnist.mnist(mirrors=()), tiny)


def test_an_npz_of_wider_integers_is_as_good(
    tiny: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {key: np.asfortranarray(array.astype(">i8")) for key, array in tiny.items()}
    write_folder(tmp_path, wide, "npz")
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    assert same(mnist.mnist(mirrors=()), tiny)


@pytest.mark.parametrize("kind", ["npz", "idx", "gz"])
@pytest.mark.parametrize("key", KEYS)
def test_one_wrong_byte_is_noticed(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    key: str,
) -> None:
    tiny[key].flat[1] ^= 1
    write_folder(tmp_path, tiny, kind)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    name = mnist._FILES[key].name
    with pytest.raises(ValueError, match=rf"does not hold MNIST: needs {name} of SHA-256 .* got"):
        mnist.mnist(mirrors=())


@pytest.mark.parametrize("extra", [-1, 1])
@pytest.mark.parametrize("kind", ["idx", "gz"])
def test_a_longer_or_shorter_idx_file_is_noticed(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    extra: int,
) -> None:
    write_folder(tmp_path, tiny, kind)
    payload = idx_bytes(tiny["y_test"])
    payload = payload + b"\0" if extra > 0 else payload[:extra]
    path = next(tmp_path.glob(f"{mnist._FILES['y_test'].name}*"))
    path.write_bytes(gzip.compress(payload) if kind == "gz" else payload)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="does not hold MNIST"):
        mnist.mnist(mirrors=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, r"lacks \['y_test'\]"),
        ({"y_test": np.zeros(4)}, r"needs y_test of integers \(4,\), got float64 \(4,\)"),
        ({"x_test": np.zeros((4, 784), np.uint8)}, r"needs x_test .* got uint8 \(4, 784\)"),
        ({"y_test": np.array([None] * 4)}, "needs a numpy npz file.*allow_pickle"),
    ],
)
def test_an_npz_of_other_arrays_is_refused(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, np.ndarray | None],
    message: str,
) -> None:
    arrays = {k: a for k, a in (tiny | change).items() if a is not None}
    np.savez(tmp_path / "mnist.npz", allow_pickle=True, **arrays)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        mnist.mnist(mirrors=())


@given(draw=st.data())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("kind", ["npz", "gz"])
def test_a_damaged_file_never_gives_wrong_digits_nor_an_obscure_error(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    draw: st.DataObject,
) -> None:
    write_folder(tmp_path, tiny, kind)
    if kind == "npz":
        np.savez_compressed(tmp_path / "mnist.npz", allow_pickle=False, **tiny)
    path = draw.draw(st.sampled_from(sorted(tmp_path.iterdir())))
    raw = bytearray(path.read_bytes())
    if draw.draw(st.booleans()):
        del raw[draw.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(draw.draw(st.integers(1, 4))):
            raw[draw.draw(st.integers(0, len(raw) - 1))] = draw.draw(st.integers(0, 255))
    path.write_bytes(raw)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    try:
        digits = mnist.mnist(mirrors=())
    except ValueError as error:
        assert "does not hold MNIST" in str(error)
        assert path.name in str(error)
    else:
        assert same(digits, tiny)  # the damage was outside the digits


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["mnist.npz", "train-images-idx3-ubyte.gz"])
def test_a_foreign_file_is_named_in_the_error(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
) -> None:
    write_folder(tmp_path, tiny, "gz")
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{name} does not hold MNIST.*replace it"):
        mnist.mnist(mirrors=())


def test_an_archive_with_an_unknown_compression_is_a_clear_error(
    tiny: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in KEYS:
            archive.writestr(f"{key}.npy", b"")
    raw = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        raw[raw.index(signature) + offset] = 99
    (tmp_path / "mnist.npz").write_bytes(raw)
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="does not hold MNIST: needs a numpy npz file"):
        mnist.mnist(mirrors=())


@pytest.mark.mnist
def test_mnist_has_its_published_sizes_and_class_counts() -> None:
    digits = mnist.mnist(mirrors=())
    assert digits.x_train.shape == (60_000, 28, 28)
    assert digits.x_test.shape == (10_000, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert digits.y_train.bincount().tolist() == counts
    assert digits.y_test.shape == (10_000,)


@pytest.mark.mnist
def test_mnist_as_idx_files_is_mnist_as_npz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = mnist.mnist(mirrors=())
    arrays = {key: getattr(digits, key).to(torch.uint8).numpy() for key in KEYS}
    write_folder(tmp_path, arrays, "idx")
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path))
    assert same(mnist.mnist(mirrors=()), arrays)
