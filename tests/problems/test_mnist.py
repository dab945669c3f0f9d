"""MNIST: every kind of file is read alike, and no damage goes unnoticed."""

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swsmix.problems import mnist


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------- a tiny stand-in

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
    with pytest.raises(ValueError, match=rf"does not hold MNIST: wanted {name} of SHA-256 .* got"):
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
        ({"y_test": np.zeros(4)}, r"wanted y_test of integers \(4,\), got float64 \(4,\)"),
        ({"x_test": np.zeros((4, 784), np.uint8)}, r"wanted x_test .* got uint8 \(4, 784\)"),
        ({"y_test": np.array([None] * 4)}, "wanted a numpy npz file.*allow_pickle"),
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
    with pytest.raises(ValueError, match="does not hold MNIST: wanted a numpy npz file"):
        mnist.mnist(mirrors=())


def test_mnist_is_downloaded_once_and_then_read_from_the_cache(
    tiny: dict[str, np.ndarray], tmp_path: Path, serve: Callable[[Path], str]
) -> None:
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    write_folder(shelf, tiny, "gz")
    mirror = serve(shelf)
    assert same(mnist.mnist(mirrors=[mirror], cache=cache), tiny)
    for path in shelf.iterdir():
        path.unlink()
    assert same(mnist.mnist(mirrors=[mirror], cache=cache), tiny)
    # A damaged cache is not trusted, it is downloaded again.
    next(cache.glob("train-images*")).write_bytes(b"damaged")
    write_folder(shelf, tiny, "gz")
    assert same(mnist.mnist(mirrors=[mirror.rstrip("/")], cache=cache), tiny)


def test_the_folder_is_asked_before_the_mirrors_and_the_mirrors_when_it_has_not_all(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[Path], str],
) -> None:
    folder, shelf, cache = (tmp_path / name for name in ("folder", "shelf", "cache"))
    folder.mkdir()
    shelf.mkdir()
    write_folder(folder, tiny, "idx")
    monkeypatch.setenv("SWSMIX_DATA", str(folder))
    mnist.mnist(mirrors=[serve(shelf)], cache=cache)
    assert not cache.exists()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    write_folder(shelf, tiny, "gz")
    assert same(mnist.mnist(mirrors=[serve(shelf)], cache=cache), tiny)
    assert len(list(cache.iterdir())) == 4


def test_a_mirror_that_fails_or_serves_something_else_is_passed_over(
    tiny: dict[str, np.ndarray], tmp_path: Path, serve: Callable[[Path], str]
) -> None:
    empty, wrong, right = (tmp_path / name for name in ("empty", "wrong", "right"))
    for folder in (empty, wrong, right):
        folder.mkdir()
    write_folder(wrong, {key: array[::-1] for key, array in tiny.items()}, "gz")
    write_folder(right, tiny, "gz")
    mirrors = [serve(empty), serve(wrong), serve(right)]
    assert same(mnist.mnist(mirrors=mirrors, cache=tmp_path / "cache"), tiny)


def test_without_any_source_the_error_says_what_was_tried_and_how_to_mend_it(
    tiny: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[Path], str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    missing, dead = serve(empty), "http://127.0.0.1:9/"  # nothing listens on port 9
    with pytest.raises(FileNotFoundError) as caught:
        mnist.mnist(mirrors=[missing, dead], cache=tmp_path / "cache")
    message = str(caught.value)
    assert "SWSMIX_DATA: not set" in message
    assert f"{missing}train-images-idx3-ubyte.gz: HTTPError: 404" in message
    assert f"{dead}train-images-idx3-ubyte.gz: ConnectionError" in message
    assert "Set the environment variable SWSMIX_DATA to a folder with mnist.npz" in message
    assert "t10k-labels-idx1-ubyte.gz" in message

    monkeypatch.setenv("SWSMIX_DATA", str(empty))
    with pytest.raises(FileNotFoundError, match=r"no mnist.npz, and no train-images-idx3-ubyte"):
        mnist.mnist(mirrors=())
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere: not a folder"):
        mnist.mnist(mirrors=())


# ----------------------------------------------------------------------------------------- tensors


@pytest.fixture
def digits() -> mnist.MNIST:
    """Twelve random digits; the label of a training image is its place."""
    return mnist.MNIST(
        x_train=torch.randint(0, 256, (8, 28, 28), generator=seeded(0), dtype=torch.uint8),
        y_train=torch.arange(8),
        x_test=torch.randint(0, 256, (4, 28, 28), generator=seeded(1), dtype=torch.uint8),
        y_test=torch.arange(4),
    )


def test_pixels_become_fractions_and_keep_their_order(digits: mnist.MNIST) -> None:
    tensors = mnist.mnist_tensors(digits, num_validation=3, dtype=torch.float64)
    assert tensors.x_train.shape == (5, 1, 28, 28)
    assert tensors.x_validation.shape == (3, 1, 28, 28)
    pixels = torch.cat([tensors.x_train, tensors.x_validation])[:, 0] * 255
    assert torch.equal(pixels.round().to(torch.uint8), digits.x_train)
    assert torch.equal((tensors.x_test[:, 0] * 255).round().to(torch.uint8), digits.x_test)
    assert tensors.x_train.min() >= 0
    assert tensors.x_train.max() <= 1
    assert tensors.x_train.dtype == torch.float64


def test_flat_images_are_the_same_pixels(digits: mnist.MNIST) -> None:
    image = mnist.mnist_tensors(digits, num_validation=3)
    flat = mnist.mnist_tensors(digits, num_validation=3, flatten=True)
    for key in ("x_train", "x_validation", "x_test"):
        assert torch.equal(getattr(flat, key), getattr(image, key).flatten(1))


@pytest.mark.parametrize("num_validation", [0, 1, 7])
@pytest.mark.parametrize("drawn", [False, True])
def test_training_and_validation_part_the_training_data(
    digits: mnist.MNIST, num_validation: int, drawn: bool
) -> None:
    generator = seeded(0) if drawn else None
    tensors = mnist.mnist_tensors(digits, num_validation=num_validation, generator=generator)
    assert len(tensors.y_validation) == len(tensors.x_validation) == num_validation
    labels = torch.cat([tensors.y_train, tensors.y_validation])
    assert sorted(labels.tolist()) == list(range(8))
    assert drawn or labels.tolist() == list(range(8))
    images = torch.cat([tensors.x_train, tensors.x_validation])[:, 0]
    assert torch.equal((images * 255).round().to(torch.uint8), digits.x_train[labels])


def test_the_drawn_validation_set_is_a_function_of_the_generator(digits: mnist.MNIST) -> None:
    first, again = (
        mnist.mnist_tensors(digits, num_validation=4, generator=seeded(2)).y_validation
        for _ in range(2)
    )
    others = [
        mnist.mnist_tensors(digits, num_validation=4, generator=seeded(s)).y_validation.tolist()
        for s in range(3, 8)
    ]
    assert torch.equal(first, again)
    assert any(other != first.tolist() for other in others)


def test_standardising_looks_at_the_training_part_alone(digits: mnist.MNIST) -> None:
    brighter = replace(digits, x_test=torch.full_like(digits.x_test, 255))
    tensors = mnist.mnist_tensors(brighter, num_validation=3, standardise=True, dtype=torch.float64)
    plain = mnist.mnist_tensors(brighter, num_validation=3, dtype=torch.float64)
    assert tensors.x_train.mean().item() == pytest.approx(0, abs=1e-12)
    assert tensors.x_train.std(correction=0).item() == pytest.approx(1, rel=1e-12)
    mean, std = plain.x_train.mean(), plain.x_train.std(correction=0)
    torch.testing.assert_close(tensors.x_validation * std + mean, plain.x_validation)
    torch.testing.assert_close(tensors.x_test * std + mean, plain.x_test)


@pytest.mark.parametrize("num_validation", [-1, 8, 10_000])
def test_holding_out_all_of_the_training_data_is_refused(
    digits: mnist.MNIST, num_validation: int
) -> None:
    with pytest.raises(ValueError, match=rf"wanted 0 to 7 .* got {num_validation}"):
        mnist.mnist_tensors(digits, num_validation=num_validation)


# ------------------------------------------------------------------------------------- MNIST itself


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


@pytest.mark.mnist
def test_mnist_tensors_keep_ten_thousand_images_for_validation() -> None:
    tensors = mnist.mnist_tensors(mnist.mnist(mirrors=()))
    assert tensors.x_train.shape == (50_000, 1, 28, 28)
    assert tensors.x_validation.shape == tensors.x_test.shape == (10_000, 1, 28, 28)
