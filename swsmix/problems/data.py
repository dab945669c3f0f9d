"""The data sets of Nowlan & Hinton (1992) as tensors: yearly sunspot numbers, shift detection."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = [
    "SUNSPOT_SCALE",
    "SUNSPOT_SPLITS",
    "VARIANCE_1535",
    "VARIANCE_1700_1979",
    "Sunspots",
    "arv",
    "shift",
    "sunspots",
]

SUNSPOT_SCALE = 191.0
"""Divisor of inputs and targets. The largest number is 190.2 (1957), so they are in [0, 1]."""

SUNSPOT_SPLITS: Mapping[str, tuple[int, int]] = {
    "train": (1712, 1920),
    "test": (1921, 1955),
    "late": (1956, 1979),
    "confirm": (1980, 2008),
}
"""First and last target year: the papers' three splits, and the years after the papers."""

VARIANCE_1535 = 1535.0
"""Normaliser of the average relative variance in the literature of 1990-1992, numbers squared."""

VARIANCE_1700_1979 = 1495.5937651785714
"""Variance (divisor n) of the yearly numbers 1700-1979 in this package, numbers squared."""


@dataclass(frozen=True, eq=False)
class Sunspots:
    """The yearly sunspot numbers and the prediction problem made from them.

    Attributes:
        years: 1700 to 2008.
        series: the yearly numbers (version 1).
        target_years: the year that each row predicts, in ascending order.
        inputs: the numbers of the years before it, oldest first, in sunspot numbers / scale.
        targets: the number of that year, in sunspot numbers / scale.
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
            ValueError: if there is no split of that name.

        Example:
            >>> x, y = sunspots().split("test")
            >>> x.shape, y.shape
            (torch.Size([35, 12]), torch.Size([35]))
        """
        if name not in SUNSPOT_SPLITS:
            raise ValueError(f"the split must be one of {list(SUNSPOT_SPLITS)}; got {name!r}")
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
        """The average relative variance of a prediction of one split: `arv` with this scale.

        Args:
            prediction: predicted targets of the split, shape (n,), in sunspot numbers / scale.
            name: "train", "test", "late" or "confirm".
            normaliser: a variance in sunspot numbers squared; report it with the result.

        Example:
            >>> data = sunspots()
            >>> x, y = data.split("train")
            >>> round(data.arv(x[:, -1], "train"), 3)  # persistence: as last year
            0.292
        """
        _, target = self.split(name)
        return arv(prediction, target, scale=self.scale, normaliser=normaliser)


def sunspots(
    lags: int = 12, *, scale: float = SUNSPOT_SCALE, dtype: torch.dtype | None = None
) -> Sunspots:
    """Yearly sunspot numbers 1700-2008 as the papers' prediction problem.

    The series is that of statsmodels (public domain), *version 1* as in 1992; the version-2 numbers
    of 2015 are about 1/0.6 times as large. The target years are 1712-1920 for training (209),
    1921-1955 "test" (35), 1956-1979 "late" (24) and 1980-2008 "confirm" (29). With more than 12
    lags, training starts at 1700 + lags.

    Args:
        lags: number of past years as inputs, 1 to 220.
        scale: divisor of inputs and targets.
        dtype: dtype of inputs and targets; None for PyTorch's default. `series` is always float64.

    Returns:
        The series and its lagged form; choose a split with ``.split("train")``.

    Raises:
        ValueError: if no training case would be left, or the scale is not positive and finite.

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
            f"needs 1 to {last_train_year - first_year} lags, got {lags}; "
            f"training targets end in {last_train_year} and the series starts in {first_year}"
        )
    _check_positive(scale=scale)
    with resources.files("swsmix.problems").joinpath("sunspots.csv").open(encoding="utf-8") as file:
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
    """The average relative variance: the mean squared error over a fixed variance of the series.

    arv(S) = mean over S of (scale (x - xhat))^2 / normaliser. The normaliser does not depend on
    the set S, so the result may exceed 1. `scale` has no default: without it the result would be
    wrong by a factor of scale^2.

    Args:
        prediction: predicted values, any shape, in sunspot numbers / scale.
        target: true values of the same shape and unit.
        scale: the divisor of both; 1 if they are sunspot numbers.
        normaliser: a variance in sunspot numbers squared: `VARIANCE_1535` (the papers') or
            `VARIANCE_1700_1979` (2.6 % smaller). Report it with the result.

    Raises:
        ValueError: if the shapes differ, there is no case, or a scale is not positive and finite.

    Reference:
        Weigend, Huberman & Rumelhart 1990.

    Example:
        >>> year_by_year = torch.tensor([11.0, 16.0, 23.0])
        >>> round(arv(year_by_year + 1535**0.5, year_by_year, scale=1.0), 3)
        1.0
    """
    if prediction.shape != target.shape or target.numel() == 0:
        raise ValueError(
            "needs prediction and target of one shape with at least one case, got "
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
    Strips for which both shifts are equal (all bits equal, or alternating) are omitted: 10 bits
    have 2 (1024 - 4) = 2040 cases. Cases are drawn *without replacement*: draw training and test
    cases together, then split them.

    Args:
        num_cases: number of cases n to draw.
        generator: source of the draw.
        coding: "01" for bits 0 and 1, "pm1" for -1 and +1. Labels are always 0 and 1.
        bits: length of a strip, 3 to 16.
        dtype: dtype of both tensors; None for PyTorch's default.

    Returns:
        Inputs x (n, 2 bits) and labels y (n,), both floating-point.

    Raises:
        ValueError: for an unknown coding, a length out of range, or more cases than there are.

    Reference:
        Nowlan & Hinton 1992. Drawing without replacement is ours.

    Example:
        >>> x, y = shift(2040, generator=torch.Generator().manual_seed(0))
        >>> x_train, y_train, x_test, y_test = x[:100], y[:100], x[100:], y[100:]
        >>> x_train.shape, x_test.shape
        (torch.Size([100, 20]), torch.Size([1940, 20]))
    """
    if coding not in ("01", "pm1"):
        raise ValueError(f"needs coding '01' (bits 0, 1) or 'pm1' (bits -1, +1), got {coding!r}")
    if not 3 <= bits <= 16:
        raise ValueError(
            f"needs 3 to 16 bits, got {bits}; on 1 or 2 bits the left and the right shift coincide"
        )
    device = generator.device
    places = torch.arange(bits, dtype=torch.int64, device=device)
    strips = (torch.arange(2**bits, dtype=torch.int64, device=device)[:, None] >> places) & 1
    left, right = strips.roll(-1, dims=1), strips.roll(1, dims=1)
    unambiguous = (left != right).any(dim=1)
    x = torch.cat([torch.cat([strips, shifted], dim=1)[unambiguous] for shifted in (left, right)])
    y = torch.arange(len(x), dtype=torch.int64, device=device) >= len(x) // 2
    if not 1 <= num_cases <= len(x):
        raise ValueError(
            f"needs 1 to {len(x)} cases, as many as {bits} bits have, got {num_cases}; more bits "
            "have more cases"
        )
    order = torch.randperm(len(x), generator=generator, dtype=torch.int64, device=device)
    dtype = dtype or torch.get_default_dtype()
    x, y = x[order[:num_cases]].to(dtype), y[order[:num_cases]].to(dtype)
    return (x if coding == "01" else 2 * x - 1), y


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"needs a positive, finite {name}, got {value}")
