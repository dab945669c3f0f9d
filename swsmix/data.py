"""The papers' data sets: yearly sunspot numbers, shift detection, MNIST.

Each set is one function that returns plain tensors. Sunspots ship with the package, shift patterns
are drawn from a generator, MNIST is read from a folder or downloaded, and every byte of it is
checked against a known SHA-256.
"""

import gzip
import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

__all__ = [
    "MNIST",
    "MNIST_MIRRORS",
    "SUNSPOT_SCALE",
    "SUNSPOT_SPLITS",
    "VARIANCE_1535",
    "VARIANCE_1700_1979",
    "MNISTTensors",
    "Sunspots",
    "arv",
    "mnist",
    "mnist_tensors",
    "shift",
    "sunspots",
]

# ---------------------------------------------------------------------------------------- sunspots

SUNSPOT_SCALE = 191.0
"""Divisor of the sunspot numbers at the network's inputs and targets.

The largest yearly number is 190.2 (1957), so everything lies in [0, 1], where tanh units start near
their linear range. It is a fixed constant, never fitted to a split (though it does know the height
of the 1957 maximum, a "late" year). The scale matters: a prior over the weights is a prior over
functions only relative to the scale of inputs and targets.
"""

SUNSPOT_SPLITS: Mapping[str, tuple[int, int]] = {
    "train": (1712, 1920),
    "test": (1921, 1955),
    "late": (1956, 1979),
    "confirm": (1980, 2008),
}
"""First and last target year of each split: the papers' three, and the years after their record."""

VARIANCE_1535 = 1535.0
"""Normaliser of the average relative variance in the literature of 1990-1992, numbers squared."""

VARIANCE_1700_1979 = 1495.5937651785714
"""Variance (divisor n) of the yearly numbers 1700-1979 in this package, numbers squared."""


@dataclass(frozen=True, eq=False)
class Sunspots:
    """The yearly sunspot numbers and the prediction problem made from them.

    Row c predicts year ``target_years[c]`` from the years before it, in the order of time:
    ``inputs[c] = series[t - lags], ..., series[t - 1]`` and ``targets[c] = series[t]``, both
    divided by `scale`.

    Attributes:
        years: 1700 to 2008.
        series: the yearly numbers, in sunspot numbers of the version-1 scale.
        target_years: the year that each row predicts.
        inputs: the years before it, oldest first, in sunspot numbers / scale.
        targets: the year's number, in sunspot numbers / scale.
        scale: the divisor of inputs and targets.
    """

    years: Int64[Tensor, " year"]
    series: Float64[Tensor, " year"]
    target_years: Int64[Tensor, " case"]
    inputs: Float[Tensor, "case lags"]
    targets: Float[Tensor, " case"]
    scale: float

    def split(self, name: str) -> tuple[Float[Tensor, "n lags"], Float[Tensor, " n"]]:
        """Inputs and targets of one split, in sunspot numbers / scale.

        Args:
            name: "train", "test", "late" or "confirm"; the years are in `SUNSPOT_SPLITS`.

        Returns:
            Inputs (n, lags) and targets (n,).

        Raises:
            ValueError: there is no split of that name.

        Example:
            >>> x, y = sunspots().split("test")
            >>> x.shape, y.shape
            (torch.Size([35, 12]), torch.Size([35]))
        """
        if name not in SUNSPOT_SPLITS:
            raise ValueError(f"wanted a split out of {list(SUNSPOT_SPLITS)}, got {name!r}")
        first, last = SUNSPOT_SPLITS[name]
        rows = (self.target_years >= first) & (self.target_years <= last)
        return self.inputs[rows], self.targets[rows]

    def arv(
        self,
        prediction: Float[Tensor, "..."],
        name: str,
        *,
        normaliser: float = VARIANCE_1535,
    ) -> float:
        """Average relative variance of a prediction of one split: `arv`, scale taken care of.

        Args:
            prediction: predicted targets of the split, shape (n,), in sunspot numbers / scale,
                as a network trained on `split` gives them.
            name: "train", "test", "late" or "confirm".
            normaliser: a variance in sunspot numbers squared; report it with the result.

        Returns:
            The average relative variance, a pure number.

        Example:
            >>> data = sunspots()
            >>> x, y = data.split("train")
            >>> round(data.arv(x[:, -1], "train"), 3)  # persistence: this year as the last one
            0.292
        """
        _, target = self.split(name)
        return arv(prediction, target, scale=self.scale, normaliser=normaliser)


def sunspots(
    lags: int = 12, *, scale: float = SUNSPOT_SCALE, dtype: torch.dtype | None = None
) -> Sunspots:
    """Yearly sunspot numbers 1700-2008 as the papers' prediction problem.

    The series is the one of statsmodels (public domain), on the *version-1* scale, the only one
    that existed in 1992. The version-2 numbers of 2015 are about 1/0.6 times as large, and not
    comparable.

    Targets are 1712-1920 to train on (209), 1921-1955 to test (35), 1956-1979 late (24) and
    1980-2008 to confirm (29), for every `lags` up to 12; beyond, training starts at 1700 + lags.

    Args:
        lags: number of past years at the input, 1 to 220.
        scale: divisor of inputs and targets; 191 brings them into [0, 1], see `SUNSPOT_SCALE`.
        dtype: type of inputs and targets; None for PyTorch's default. `series` is always float64.

    Returns:
        The series and its lagged form; choose a split with ``.split("train")``.

    Raises:
        ValueError: no training case would be left, or the scale is not positive and finite.

    Reference:
        Weigend, Huberman & Rumelhart 1990; Nowlan & Hinton 1992.

    Example:
        >>> x, y = sunspots().split("train")
        >>> x.shape
        torch.Size([209, 12])
    """
    first_year, last_train_year = 1700, SUNSPOT_SPLITS["train"][1]
    if not 1 <= lags <= last_train_year - first_year:
        raise ValueError(
            f"wanted 1 to {last_train_year - first_year} lags, got {lags}; "
            f"training targets end in {last_train_year} and the series starts in {first_year}"
        )
    _check_positive(scale=scale)
    with resources.files("swsmix").joinpath("sunspots.csv").open() as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", skiprows=1))
    years, series = table[:, 0].long(), table[:, 1].clone()

    windows = series.unfold(0, lags + 1, 1)  # window c: lags inputs, then the target
    windows = windows[years[lags:] >= SUNSPOT_SPLITS["train"][0]] / scale
    windows = windows.to(dtype or torch.get_default_dtype())
    return Sunspots(
        years=years,
        series=series,
        target_years=years[-len(windows) :].clone(),
        inputs=windows[:, :-1].contiguous(),
        targets=windows[:, -1].contiguous(),
        scale=float(scale),
    )


def arv(
    prediction: Float[Tensor, "..."],
    target: Float[Tensor, "..."],
    *,
    scale: float,
    normaliser: float = VARIANCE_1535,
) -> float:
    """Average relative variance: the mean squared error over a fixed variance of the record.

    arv(S) = mean over S of (scale (x - xhat))^2 / normaliser. The normaliser does not depend on
    the set S, so hard sets may exceed 1. `scale` has no default: the normalisers are in sunspot
    numbers squared, and an arv of scaled values would be wrong by a factor of scale^2.

    Args:
        prediction: predicted values, any shape, in sunspot numbers / scale.
        target: true values of the same shape and unit.
        scale: the divisor that was applied to both; 1 if they are sunspot numbers.
        normaliser: a variance in sunspot numbers squared: `VARIANCE_1535` (the papers') or
            `VARIANCE_1700_1979` (2.6 % smaller). Report it with the result.

    Returns:
        The average relative variance, a pure number.

    Raises:
        ValueError: the shapes differ, there is no case, or a scale is not positive and finite.

    Reference:
        Weigend, Huberman & Rumelhart 1990.

    Example:
        >>> year_by_year = torch.tensor([11.0, 16.0, 23.0])
        >>> round(arv(year_by_year + 1535**0.5, year_by_year, scale=1.0), 3)
        1.0
    """
    if prediction.shape != target.shape or target.numel() == 0:
        raise ValueError(
            "wanted prediction and target of one shape with at least one case, got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}; squeeze a network's output "
            "(n, 1) to (n,)"
        )
    _check_positive(scale=scale, normaliser=normaliser)
    error = (prediction.detach().double() - target.detach().double()) * scale
    return error.square().mean().item() / normaliser


# ------------------------------------------------------------------------------------------- shift


def shift(
    num_cases: int,
    *,
    generator: torch.Generator,
    coding: str = "01",
    bits: int = 10,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n inputs"], Float[Tensor, " n"]]:
    """Shift detection: was the strip of bits shifted to the left or to the right?

    A case is a strip of `bits` bits followed by the same strip shifted circularly by one place:
    x = (s, s') with s'_(i+1) = s_i for label 1 (right) and s'_(i-1) = s_i for label 0 (left).
    Strips that both shifts send to the same place (all equal, or alternating) are left out: the
    10-bit problem has 2 (1024 - 4) = 2040 cases. The draw is uniform and *without replacement*, so
    rows of one call never repeat: draw all 2040 and split them into training and test cases.

    Args:
        num_cases: number of cases n to draw.
        generator: source of the draw.
        coding: "01" for bits 0 and 1, "pm1" for -1 and +1. Labels are 0 and 1 in both.
        bits: length of a strip, 3 to 16.
        dtype: type of both tensors; None for PyTorch's default.

    Returns:
        Inputs x (n, 2 bits) and labels y (n,), both floating-point.

    Raises:
        ValueError: an unknown coding, a length without a meaningful shift, or more cases than
            there are.

    Reference:
        Nowlan & Hinton 1992. Drawing without replacement is ours.

    Example:
        >>> x, y = shift(2040, generator=torch.Generator().manual_seed(0))
        >>> x_train, y_train, x_test, y_test = x[:100], y[:100], x[100:], y[100:]
        >>> x_train.shape, x_test.shape
        (torch.Size([100, 20]), torch.Size([1940, 20]))
    """
    if coding not in ("01", "pm1"):
        raise ValueError(f"wanted coding '01' (bits 0, 1) or 'pm1' (bits -1, +1), got {coding!r}")
    if not 3 <= bits <= 16:
        raise ValueError(
            f"wanted 3 to 16 bits, got {bits}; on 1 or 2 bits the left and the right shift coincide"
        )
    device = generator.device
    places = torch.arange(bits, device=device)
    strips = (torch.arange(2**bits, device=device)[:, None] >> places) & 1
    left, right = strips.roll(-1, dims=1), strips.roll(1, dims=1)
    clear = (left != right).any(dim=1)
    x = torch.cat([torch.cat([strips, second], dim=1)[clear] for second in (left, right)])
    y = torch.arange(len(x), device=device) >= len(x) // 2
    if not 1 <= num_cases <= len(x):
        raise ValueError(
            f"wanted 1 to {len(x)} cases, as many as {bits} bits have without repetition, "
            f"got {num_cases}; more bits give more cases"
        )
    drawn = torch.randperm(len(x), generator=generator, device=device)[:num_cases]
    dtype = dtype or torch.get_default_dtype()
    x, y = x[drawn].to(dtype), y[drawn].to(dtype)
    return (x if coding == "01" else 2 * x - 1), y


# ------------------------------------------------------------------------------------------- MNIST

MNIST_MIRRORS: tuple[str, ...] = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where the four gz files are looked for, in this order."""


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
    files (``train-images-idx3-ubyte`` and so on), plain or gzipped, looked for in this order.
    Without them the four gz files come from a mirror, through pooch's cache. Wherever they come
    from, the idx bytes must have the published SHA-256.

    Args:
        mirrors: addresses of folders with the four gz files, tried in this order.
        cache: folder to keep downloads in; None for pooch's cache folder of swsmix.

    Returns:
        Images as uint8 and digits as int64.

    Raises:
        FileNotFoundError: neither the folder, the cache nor a mirror has the files.
        ValueError: a file is there, but it is corrupt or holds other data.

    Reference:
        LeCun, Bottou, Bengio & Haffner 1998.

    Example:
        >>> digits = mnist()  # doctest: +SKIP
        >>> digits.x_train.shape  # doctest: +SKIP
        torch.Size([60000, 28, 28])
    """
    tried: list[str] = []
    try:
        arrays = _mnist_from_folder(tried) or _mnist_from_mirrors(tried, mirrors, cache)
    except _CorruptError as error:
        raise ValueError(str(error)) from error.__cause__
    if arrays is None:
        names = ", ".join(f"{file.name}.gz" for file in _MNIST_FILES.values())
        raise FileNotFoundError(
            "wanted MNIST, and found it nowhere. Tried:\n"
            + "\n".join(f"  - {line}" for line in tried)
            + "\nTo mend it, set the environment variable SWSMIX_DATA to a folder with mnist.npz "
            f"(arrays {', '.join(_MNIST_FILES)}) or with the four idx files {names} "
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

    Pixels become x / 255, in [0, 1]; standardised, (x / 255 - m) / s with the mean m and the
    standard deviation s over all pixels of the training part (validation and test excluded).
    Validation images are the *last* ones of the training data, or random ones if a generator is
    given. In our probes the last 5,000 were easier than the test set (dense LeNet-300-100, one
    seed: 1.82 against 2.06 % errors), so 10,000 are held out by default.

    Args:
        digits: the data, from `mnist`.
        num_validation: number of training images to hold out; 0 trains on all of them.
        generator: draws the validation images; None takes the last ones.
        standardise: subtract the training mean and divide by the training standard deviation.
        flatten: images (n, 784) instead of (n, 1, 28, 28).
        dtype: type of the images; None for PyTorch's default.

    Returns:
        Images and digits of the three parts.

    Raises:
        ValueError: there are not that many training images to hold out.

    Example:
        >>> data = mnist_tensors(mnist())  # doctest: +SKIP
        >>> data.x_train.shape  # doctest: +SKIP
        torch.Size([50000, 1, 28, 28])
    """
    num_images = len(digits.x_train)
    if not 0 <= num_validation < num_images:
        raise ValueError(
            f"wanted 0 to {num_images - 1} validation images, so that of {num_images} training "
            f"images some are left, got {num_validation}"
        )
    if generator is None:
        order = torch.arange(num_images)
    else:
        order = torch.randperm(num_images, generator=generator, device=generator.device).cpu()
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


class _CorruptError(Exception):
    """A file that is there, but does not hold MNIST."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} does not hold MNIST: {what}. The file is corrupt or of another data set; "
            "replace it, or delete it to have it looked for elsewhere."
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
        # The array in an idx file's bytes, once their SHA-256 is the published one.
        got = hashlib.sha256(payload).hexdigest()
        if got != self.sha256:
            raise _CorruptError(path, f"wanted {self.name} of SHA-256 {self.sha256}, got {got}")
        flat = np.frombuffer(payload, np.uint8, offset=len(self.header()))
        return flat.reshape(self.shape).copy()


_MNIST_FILES: Mapping[str, _IdxFile] = {
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


def _mnist_from_folder(tried: list[str]) -> dict[str, np.ndarray] | None:
    # The arrays from the folder SWSMIX_DATA; None, and a line in `tried`, if it lacks them.
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
    for key, file in _MNIST_FILES.items():
        for path in (folder / file.name, folder / f"{file.name}.gz"):
            if path.is_file():
                paths.setdefault(key, path)
    missing = [file.name for key, file in _MNIST_FILES.items() if key not in paths]
    if missing:
        tried.append(f"SWSMIX_DATA={folder}: no mnist.npz, and no {', '.join(missing)} (or .gz)")
        return None
    return {key: _read_idx(path, _MNIST_FILES[key]) for key, path in paths.items()}


def _mnist_from_mirrors(
    tried: list[str], mirrors: Sequence[str], cache: str | Path | None
) -> dict[str, np.ndarray] | None:
    # The arrays through pooch; None, and a line for each failure, if a file can't be had.
    import pooch  # here, as a user without MNIST has no need of it

    folder = Path(cache) if cache is not None else Path(pooch.os_cache("swsmix"))
    mirrors = [mirrors] if isinstance(mirrors, str) else mirrors
    arrays: dict[str, np.ndarray] = {}
    for key, file in _MNIST_FILES.items():
        for mirror in mirrors:
            url = f"{mirror.rstrip('/')}/{file.name}.gz"
            try:
                path = pooch.retrieve(
                    url, f"md5:{file.md5_of_gz}", fname=f"{file.name}.gz", path=folder
                )
            except (OSError, ValueError) as error:  # no network, not found, or a wrong checksum
                tried.append(f"{url}: {type(error).__name__}: {error}")
                continue
            arrays[key] = _read_idx(Path(path), file)
            break
        else:
            return None
    return arrays


def _read_idx(path: Path, file: _IdxFile) -> np.ndarray:
    # The array of a plain or gzipped idx file.
    num_bytes = len(file.header()) + math.prod(file.shape)
    with path.open("rb") as raw:
        try:
            with gzip.open(raw) if path.suffix == ".gz" else raw as stream:
                payload = stream.read(num_bytes + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise _CorruptError(path, f"wanted an idx file, got {error!r}") from error
    return file.array(payload, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # The arrays of mnist.npz, checked as if they were idx files.
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb") as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                missing = [key for key in _MNIST_FILES if f"{key}.npy" not in archive.namelist()]
                if not missing:
                    for key in _MNIST_FILES:
                        # Read in full: zipfile checks the CRC before numpy parses the bytes.
                        member = io.BytesIO(archive.read(f"{key}.npy"))
                        arrays[key] = np.lib.format.read_array(member, allow_pickle=False)
        except Exception as error:  # zipfile and numpy raise a dozen kinds on foreign bytes
            raise _CorruptError(path, f"wanted a numpy npz file, got {error!r}") from error
    if missing:
        raise _CorruptError(path, f"wanted arrays {list(_MNIST_FILES)}, it lacks {missing}")
    for key, file in _MNIST_FILES.items():
        got = arrays[key]
        if got.shape != file.shape or got.dtype.kind not in "iu":
            raise _CorruptError(
                path, f"wanted {key} of integers {file.shape}, got {got.dtype} {got.shape}"
            )
        payload = file.header() + got.astype(np.uint8).tobytes()
        arrays[key] = file.array(payload, path)
    return arrays


def _check_positive(**values: float) -> None:
    # Complain about the first value that is not a positive, finite number.
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"wanted a positive, finite {name}, got {value}")
