"""MNIST: read from a folder or downloaded, verified by checksum; and as tensors to train on."""

import gzip
import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from swsmix.problems.downloads import retrieve

__all__ = ["MNIST", "MNIST_MIRRORS", "MNISTTensors", "mnist", "mnist_tensors"]

MNIST_MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Addresses of folders with the four gz files, tried in this order."""


@dataclass(frozen=True, eq=False)
class MNIST:
    """MNIST as published: 60,000 training and 10,000 test digits.

    Attributes:
        x_train: training images, pixels 0 to 255.
        y_train: their digits.
        x_test: test images.
        y_test: their digits.
    """

    x_train: UInt8[Tensor, "train 28 28"]
    y_train: Int64[Tensor, " train"]
    x_test: UInt8[Tensor, "test 28 28"]
    y_test: Int64[Tensor, " test"]


@dataclass(frozen=True, eq=False)
class MNISTTensors:
    """MNIST ready to train on; images are (n, 1, 28, 28) or (n, 784).

    Attributes:
        x_train: training images.
        y_train: their digits.
        x_validation: images held out of the training data.
        y_validation: their digits.
        x_test: test images.
        y_test: their digits.
    """

    x_train: Float[Tensor, "train ..."]
    y_train: Int64[Tensor, " train"]
    x_validation: Float[Tensor, "validation ..."]
    y_validation: Int64[Tensor, " validation"]
    x_test: Float[Tensor, "test ..."]
    y_test: Int64[Tensor, " test"]


def mnist(*, mirrors: Sequence[str] = MNIST_MIRRORS, cache: str | Path | None = None) -> MNIST:
    """MNIST from the folder named by ``SWSMIX_DATA``, else from the cache or a mirror.

    The folder may hold ``mnist.npz`` (arrays x_train, y_train, x_test, y_test) or the four idx
    files, gzipped or not. Otherwise pooch downloads the gz files into its cache. In all cases the
    idx bytes must have the published SHA-256.

    Args:
        mirrors: addresses of folders with the four gz files, tried in this order.
        cache: folder to keep downloads in; None for pooch's cache folder of swsmix.

    Returns:
        Images as uint8 and digits as int64.

    Raises:
        FileNotFoundError: if neither the folder, the cache nor a mirror has the files.
        ValueError: if a file is corrupt or holds other data.

    Reference:
        LeCun, Bottou, Bengio & Haffner 1998.

    Example:
        >>> digits = mnist()  # doctest: +SKIP
        >>> digits.x_train.shape  # doctest: +SKIP
        torch.Size([60000, 28, 28])
    """
    tried: list[str] = []
    arrays = _from_folder(tried) or _from_mirrors(tried, mirrors, cache)
    if arrays is None:
        names = ", ".join(f"{file.name}.gz" for file in _FILES.values())
        raise FileNotFoundError(
            "MNIST was not found. Tried:\n"
            + "\n".join(f"  - {line}" for line in tried)
            + "\nSet the environment variable SWSMIX_DATA to a folder with mnist.npz "
            f"(arrays {', '.join(_FILES)}) or with the four idx files {names} "
            "(gzipped or not), or call mnist(mirrors=[...]) with an address that has them."
        )
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    return MNIST(
        x_train=tensors["x_train"],
        y_train=tensors["y_train"].long(),
        x_test=tensors["x_test"],
        y_test=tensors["y_test"].long(),
    )


def mnist_tensors(
    digits: MNIST,
    *,
    num_validation: int = 10_000,
    generator: torch.Generator | None = None,
    standardise: bool = False,
    flatten: bool = False,
    dtype: torch.dtype | None = None,
) -> MNISTTensors:
    """Training, validation and test tensors for a LeNet.

    Pixels become x / 255, in [0, 1]; with `standardise`, (x / 255 - m) / s with the mean m and the
    standard deviation s over all pixels of the training part.

    Args:
        digits: the data, from `mnist`.
        num_validation: number of training images to hold out.
        generator: draws the validation images; None holds out the last ones.
        standardise: subtract the training mean and divide by the training standard deviation.
        flatten: images (n, 784) instead of (n, 1, 28, 28).
        dtype: dtype of the images; None for PyTorch's default.

    Returns:
        Images and digits of the three parts.

    Raises:
        ValueError: if there are not that many training images to hold out.

    Example:
        >>> data = mnist_tensors(mnist())  # doctest: +SKIP
        >>> data.x_train.shape  # doctest: +SKIP
        torch.Size([50000, 1, 28, 28])
    """
    num_images = len(digits.x_train)
    if not 0 <= num_validation < num_images:
        raise ValueError(
            f"needs 0 to {num_images - 1} validation images, fewer than the {num_images} training "
            f"images, got {num_validation}"
        )
    if generator is None:
        order = torch.arange(num_images, dtype=torch.int64, device="cpu")
    else:
        order = torch.randperm(
            num_images, generator=generator, dtype=torch.int64, device=generator.device
        ).cpu()
    train, validation = order[: num_images - num_validation], order[num_images - num_validation :]

    def images(pixels: Tensor) -> Tensor:
        return (pixels.to(dtype or torch.get_default_dtype()) / 255).reshape(
            (-1, 784) if flatten else (-1, 1, 28, 28)
        )

    x_train, x_validation = images(digits.x_train[train]), images(digits.x_train[validation])
    x_test = images(digits.x_test)
    if standardise:
        mean, std = x_train.double().mean().item(), x_train.double().std(correction=0).item()
        x_train, x_validation, x_test = ((x - mean) / std for x in (x_train, x_validation, x_test))
    return MNISTTensors(
        x_train=x_train,
        y_train=digits.y_train[train],
        x_validation=x_validation,
        y_validation=digits.y_train[validation],
        x_test=x_test,
        y_test=digits.y_test,
    )


def _corrupt(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} does not hold MNIST: {what}. The file is corrupt or of another data set; "
        "replace it, or delete it so that the other places are tried."
    )


@dataclass(frozen=True)
class _IdxFile:
    """One of the four files: an idx header (magic, sizes as big-endian int32), then the bytes."""

    name: str
    shape: tuple[int, ...]
    sha256: str
    md5_of_gz: str

    def header(self) -> bytes:
        return b"".join(n.to_bytes(4, "big") for n in (0x800 + len(self.shape), *self.shape))

    def array(self, payload: bytes, path: Path) -> np.ndarray:
        """The array in an idx file's bytes, whose SHA-256 must be the published one."""
        got = hashlib.sha256(payload).hexdigest()
        if got != self.sha256:
            raise _corrupt(path, f"needs {self.name} of SHA-256 {self.sha256}, got {got}")
        flat = np.frombuffer(payload, np.uint8, offset=len(self.header()))
        return flat.reshape(self.shape).copy()


_FILES: Mapping[str, _IdxFile] = {
    "x_train": _IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "y_train": _IdxFile(
        "train-labels-idx1-ubyte",
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "x_test": _IdxFile(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    "y_test": _IdxFile(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}


def _from_folder(tried: list[str]) -> dict[str, np.ndarray] | None:
    """The arrays from the folder SWSMIX_DATA; None, and a line in `tried`, if it lacks them."""
    name = os.environ.get("SWSMIX_DATA")
    if not name:
        tried.append("the environment variable SWSMIX_DATA: not set")
        return None
    folder = Path(name)
    if not folder.is_dir():
        tried.append(f"SWSMIX_DATA={folder}: not a folder")
        return None
    if (folder / "mnist.npz").is_file():
        return _read_npz(folder / "mnist.npz")
    paths: dict[str, Path] = {}
    for key, file in _FILES.items():
        for path in (folder / file.name, folder / f"{file.name}.gz"):
            if path.is_file():
                paths.setdefault(key, path)
    missing = [file.name for key, file in _FILES.items() if key not in paths]
    if missing:
        tried.append(f"SWSMIX_DATA={folder}: no mnist.npz, and no {', '.join(missing)} (or .gz)")
        return None
    return {key: _read_idx(path, _FILES[key]) for key, path in paths.items()}


def _from_mirrors(
    tried: list[str], mirrors: Sequence[str], cache: str | Path | None
) -> dict[str, np.ndarray] | None:
    """The arrays through pooch; None, and a line in `tried` per failure, if a file is missing."""
    arrays: dict[str, np.ndarray] = {}
    for key, file in _FILES.items():
        path = retrieve(f"{file.name}.gz", f"md5:{file.md5_of_gz}", mirrors, cache, tried)
        if path is None:
            return None
        arrays[key] = _read_idx(path, file)
    return arrays


def _read_idx(path: Path, file: _IdxFile) -> np.ndarray:
    """The array in an idx file, gzipped or not."""
    num_bytes = len(file.header()) + math.prod(file.shape)
    with path.open("rb") as raw:
        try:
            with gzip.open(raw) if path.suffix == ".gz" else raw as stream:
                payload = stream.read(num_bytes + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise _corrupt(path, f"needs an idx file, got {error!r}") from error
    return file.array(payload, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays in mnist.npz, verified as if they were idx files."""
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb") as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                missing = [key for key in _FILES if f"{key}.npy" not in archive.namelist()]
                if not missing:
                    for key in _FILES:
                        # Read in full, so that zipfile checks the CRC before numpy parses.
                        member = io.BytesIO(archive.read(f"{key}.npy"))
                        arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
        except Exception as error:  # zipfile and numpy raise a dozen kinds
            raise _corrupt(path, f"needs a numpy npz file, got {error!r}") from error
    if missing:
        raise _corrupt(path, f"needs arrays {list(_FILES)}, it lacks {missing}")
    for key, file in _FILES.items():
        got = arrays[key]
        if got.shape != file.shape or got.dtype.kind not in "iu":
            raise _corrupt(
                path, f"needs {key} of integers {file.shape}, got {got.dtype} {got.shape}"
            )
        payload = file.header() + got.astype(np.uint8).tobytes()
        arrays[key] = file.array(payload, path)
    return arrays
