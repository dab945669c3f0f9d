"""MNIST from mirrors: downloaded once, checked, and a clear error where there is none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from digits import same, write_folder

from swsmix.problems import mnist


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
    assert f"{missing}train-images-idx3-ubyte.gz: the server answered 404 " in message
    assert f"{dead}train-images-idx3-ubyte.gz: no connection to it (offline," in message
    assert "HTTPConnectionPool" not in message and "Max retries" not in message
    assert "Set the environment variable SWSMIX_DATA to a folder with mnist.npz" in message
    assert "t10k-labels-idx1-ubyte.gz" in message

    monkeypatch.setenv("SWSMIX_DATA", str(empty))
    with pytest.raises(FileNotFoundError, match=r"no mnist.npz, and no train-images-idx3-ubyte"):
        mnist.mnist(mirrors=())
    monkeypatch.setenv("SWSMIX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere: not a folder"):
        mnist.mnist(mirrors=())
