"""CIFAR-10: read from a folder or downloaded, verified by checksum; and as tensors to train on."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from swsmix.problems.downloads import retrieve

__all__ = ["CIFAR10", "CIFAR10_MIRRORS", "CIFAR10Tensors", "cifar10", "cifar10_tensors", "jitter"]

CIFAR10_MIRRORS: tuple[str, ...] = ("https://www.cs.toronto.edu/~kriz/",)
"""Addresses of folders with `cifar-10-binary.tar.gz`, tried in this order."""

_ARCHIVE = "cifar-10-binary.tar.gz"
_MD5_OF_ARCHIVE = "c32a1d4ab5d03f1284b67883e8d87530"
_FOLDER = "cifar-10-batches-bin"
_IMAGES, _RECORD = 10_000, 1 + 3 * 32 * 32  # of a file; a record is a label and three planes
# The published files, in their order; the last one has the test images.
_MD5_OF_FILES: Mapping[str, str] = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, eq=False)
class CIFAR10:
    """CIFAR-10 as published: 50,000 training and 10,000 test images of ten classes.

    Attributes:
        x_train: training images, pixels 0 to 255.
        y_train: their classes.
        x_test: test images.
        y_test: their classes.
    """

    x_train: UInt8[Tensor, "train 3 32 32"]
    y_train: Int64[Tensor, " train"]
    x_test: UInt8[Tensor, "test 3 32 32"]
    y_test: Int64[Tensor, " test"]


@dataclass(frozen=True, eq=False)
class CIFAR10Tensors:
    """CIFAR-10 ready to train on; images are (n, 3, 32, 32), standardised.

    Attributes:
        x_train: training images.
        y_train: their classes.
        x_validation: images held out of the training data.
        y_validation: their classes.
        x_test: test images.
        y_test: their classes.
    """

    x_train: Float[Tensor, "train 3 32 32"]
    y_train: Int64[Tensor, " train"]
    x_validation: Float[Tensor, "validation 3 32 32"]
    y_validation: Int64[Tensor, " validation"]
    x_test: Float[Tensor, "test 3 32 32"]
    y_test: Int64[Tensor, " test"]


def cifar10(
    *, mirrors: Sequence[str] = CIFAR10_MIRRORS, cache: str | Path | None = None
) -> CIFAR10:
    """CIFAR-10 from the folder named by ``SWSMIX_DATA``, else from the cache or a mirror.

    The folder may hold ``cifar10.npz`` (arrays x_train (50000, 3, 32, 32), y_train, x_test,
    y_test), the published ``cifar-10-binary.tar.gz``, or its folder ``cifar-10-batches-bin``.
    Otherwise pooch downloads the archive into its cache. In all cases images and classes must be
    the published ones, in their order.

    Args:
        mirrors: addresses of folders with the archive, tried in this order.
        cache: folder to keep the download in; None for pooch's cache folder of swsmix.

    Returns:
        Images as uint8 and classes as int64.

    Raises:
        FileNotFoundError: if neither the folder, the cache nor a mirror has the data.
        ValueError: if a file is corrupt or holds other data.

    Reference:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    Example:
        >>> images = cifar10()  # doctest: +SKIP
        >>> images.x_train.shape  # doctest: +SKIP
        torch.Size([50000, 3, 32, 32])
    """
    tried: list[str] = []
    records = _from_folder(tried)
    if records is None:
        path = retrieve(_ARCHIVE, f"md5:{_MD5_OF_ARCHIVE}", mirrors, cache, tried)
        if path is None:
            raise FileNotFoundError(
                "CIFAR-10 was not found. Tried:\n"
                + "\n".join(f"  - {line}" for line in tried)
                + "\nSet the environment variable SWSMIX_DATA to a folder with cifar10.npz (arrays "
                f"{', '.join(_ARRAYS)}), {_ARCHIVE} or {_FOLDER}/, or call cifar10(mirrors=[...]) "
                "with an address that has the archive."
            )
        records = _read_archive(path)
    train, test = records[:-_IMAGES], records[-_IMAGES:]
    return CIFAR10(*_images_and_classes(train), *_images_and_classes(test))


def cifar10_tensors(
    images: CIFAR10,
    *,
    num_validation: int = 5_000,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> CIFAR10Tensors:
    """Training, validation and test tensors: (x / 255 - m) / s for each of the three colours.

    The means m and the standard deviations s are those of the training part.

    Args:
        images: the data, from `cifar10`.
        num_validation: number of training images to hold out.
        generator: draws the validation images; None holds out the last ones.
        dtype: dtype of the images; None for PyTorch's default.

    Returns:
        Images and classes of the three parts.

    Raises:
        ValueError: if there are not that many training images to hold out.

    Example:
        >>> data = cifar10_tensors(cifar10())  # doctest: +SKIP
        >>> data.x_train.shape  # doctest: +SKIP
        torch.Size([45000, 3, 32, 32])
    """
    n = len(images.x_train)
    if not 0 <= num_validation < n:
        raise ValueError(
            f"needs 0 to {n - 1} validation images, fewer than the {n} training images, got "
            f"{num_validation}"
        )
    if generator is None:
        order = torch.arange(n, dtype=torch.int64, device="cpu")
    else:
        order = torch.randperm(n, generator=generator, dtype=torch.int64, device=generator.device)
        order = order.cpu()
    train, validation = order[: n - num_validation], order[n - num_validation :]
    # Whole numbers, summed as such: the same for every order of the images.
    counts = torch.stack(
        [
            torch.bincount(images.x_train[train, colour].flatten(), minlength=256)
            for colour in range(3)
        ]
    ).double()
    levels = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    std = (share @ levels.square() - mean.square()).sqrt()

    def standardised(pixels: Tensor) -> Tensor:
        x = pixels.to(dtype or torch.get_default_dtype())
        m, s = (255.0 * each.to(x.dtype)[:, None, None] for each in (mean, std))
        return x.sub_(m).div_(s)

    return CIFAR10Tensors(
        x_train=standardised(images.x_train[train]),
        y_train=images.y_train[train],
        x_validation=standardised(images.x_train[validation]),
        y_validation=images.y_train[validation],
        x_test=standardised(images.x_test),
        y_test=images.y_test,
    )


def jitter(
    x: Float[Tensor, "b c h w"], *, shift: int = 4, generator: torch.Generator | None = None
) -> Float[Tensor, "b c h w"]:
    """Each image moved by up to `shift` pixels, with zeros behind it, and mirrored or not.

    Args:
        x: images.
        shift: the most pixels in each direction.
        generator: draws the moves; None for the global random state.

    Returns:
        New images, in the memory format of x.

    Reference:
        He, Zhang, Ren & Sun 2016, section 4.2.

    Example:
        >>> jitter(torch.ones(2, 3, 8, 8), shift=0).sum().item()
        384.0
    """
    b, _, h, w = x.shape
    down, right, mirrored = torch.randint(
        4 * shift + 2, (3, b, 1), generator=generator, dtype=torch.int64, device=x.device
    )
    down, right, mirrored = down // 2, right // 2, mirrored % 2 == 1
    columns = torch.arange(w, dtype=torch.int64, device=x.device).expand(b, w)
    columns = torch.where(mirrored, w - 1 - columns, columns) + right
    rows = torch.arange(h, dtype=torch.int64, device=x.device) + down
    wide = torch.nn.functional.pad(x, (shift, shift, shift, shift)).permute(0, 2, 3, 1)
    image = torch.arange(b, dtype=torch.int64, device=x.device)[:, None, None]
    moved = wide[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return moved if channels_last else moved.contiguous()


def _images_and_classes(records: np.ndarray) -> tuple[Tensor, Tensor]:
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return torch.from_numpy(images.copy()), torch.from_numpy(records[:, 0].astype(np.int64))


def _corrupt(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} does not hold CIFAR-10: {what}. The file is corrupt or of another data set; "
        "replace it, or delete it so that the other places are tried."
    )


def _from_folder(tried: list[str]) -> np.ndarray | None:
    """The records from the folder SWSMIX_DATA; None, and a line in `tried`, if it lacks them."""
    name = os.environ.get("SWSMIX_DATA")
    if not name:
        tried.append("the environment variable SWSMIX_DATA: not set")
        return None
    folder = Path(name)
    if not folder.is_dir():
        tried.append(f"SWSMIX_DATA={folder}: not a folder")
        return None
    if (npz := folder / "cifar10.npz").is_file():
        return _read_npz(npz)
    if (files := folder / _FOLDER).is_dir():
        return _checked(files, lambda file: (files / file).read_bytes())
    if (archive := folder / _ARCHIVE).is_file():
        return _read_archive(archive)
    tried.append(f"SWSMIX_DATA={folder}: no cifar10.npz, no {_ARCHIVE} and no {_FOLDER}/")
    return None


def _read_archive(path: Path) -> np.ndarray:
    """The records of all files, training images first."""
    try:
        with tarfile.open(path, "r:gz") as archive:

            def read(name: str) -> bytes:
                member = archive.extractfile(f"{_FOLDER}/{name}")
                if member is None:
                    raise KeyError(f"{_FOLDER}/{name} is no file")
                return member.read(_IMAGES * _RECORD + 1)  # no more, whatever it claims

            return _checked(path, read)
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise _corrupt(path, f"needs the published archive, got {error!r}") from error


def _checked(path: Path, read: Callable[[str], bytes]) -> np.ndarray:
    """The records of all files, each of the published checksum."""
    parts = []
    for name, wanted in _MD5_OF_FILES.items():
        try:
            data = read(name)
        except FileNotFoundError as error:
            raise _corrupt(path, f"{name} is missing") from error
        got = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if got != wanted:
            raise _corrupt(path, f"needs {name} of MD5 {wanted}, got {got}")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, _RECORD))
    return np.concatenate(parts)


def _read_npz(path: Path) -> np.ndarray:
    """The records of the arrays in cifar10.npz, verified as if they were the published files."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [key for key in _ARRAYS if f"{key}.npy" not in archive.namelist()]
            for key in [] if missing else _ARRAYS:
                # Read in full, so that zipfile checks the CRC before numpy parses.
                member = io.BytesIO(archive.read(f"{key}.npy"))
                arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
    except Exception as error:  # zipfile and numpy raise a dozen kinds
        raise _corrupt(path, f"needs a numpy npz file, got {error!r}") from error
    if missing:
        raise _corrupt(path, f"needs arrays {list(_ARRAYS)}, it lacks {missing}")
    records = []
    for part, n in (("train", 5 * _IMAGES), ("test", _IMAGES)):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        for array, name, shape in ((x, "x", (n, 3, 32, 32)), (y.reshape(-1), "y", (n,))):
            if array.shape != shape or array.dtype.kind not in "iu":
                raise _corrupt(
                    path,
                    f"needs {name}_{part} of integers {shape}, got {array.dtype} {array.shape}",
                )
        flat = x.astype(np.uint8).reshape(n, -1)
        records.append(np.concatenate([y.reshape(-1, 1).astype(np.uint8), flat], axis=1))
    both = np.concatenate(records)
    start = {name: i * _IMAGES for i, name in enumerate(_MD5_OF_FILES)}
    return _checked(path, lambda name: both[start[name] : start[name] + _IMAGES].tobytes())
