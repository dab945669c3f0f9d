"""How heavy the tails of weights are, and how nearly they are clustered: numbers to sort by.

About their mean, with n weights and their variance var:

    kurtosis     E(w - mean)^4 / var^2: 3 for a Gaussian, 1.8 for evenly spread weights, 1 for two
                 values of equal number, and more than 3 for heavy tails
    shape        beta of the generalised Gaussian exp(-|w - mean|^beta / s) with the same
                 E|w - mean| / std = Gamma(2/beta) / sqrt(Gamma(1/beta) Gamma(3/beta)): 2 for a
                 Gaussian, 1 for a Laplace distribution, less for heavier tails (Mallat 1989)
    left         the share of the variance that the best K values leave
    outliers     how many weights are more than 6 std from the mean: of Gaussian ones 2 in 10^9
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from swsmix._histogram import chunks, count
from swsmix.inspection.clustering import variance_left

FAR = 6.0  # std: from there on a weight is an outlier
VALUES = 7  # K of `left`, unless another is asked for
_SMALLEST, _LARGEST = 0.02, 200.0  # of the shape; above, it is infinite


@dataclass(frozen=True)
class Measures:
    """The measures of some weights; see the module for their formulas.

    Attributes:
        mean: the mean of the weights.
        std: their standard deviation.
        kurtosis: 3 for a Gaussian; nan if all weights are equal.
        shape: of the generalised Gaussian; infinite for evenly spread weights and for those that
            crowd at both ends, nan if all weights are equal.
        left: the share of the variance that `values` values leave, 0 to 1.
        values: K of `left`.
        outliers: the number of weights more than 6 std from the mean.
    """

    mean: float
    std: float
    kurtosis: float
    shape: float
    left: float
    values: int
    outliers: int


def measures(flat: Sequence[Tensor], values: int = VALUES) -> Measures:
    """Measure weights, in two passes over them; `left` is that of a sample of very many.

    Args:
        flat: the weights, finite, as vectors.
        values: K of `left`.

    Returns:
        The measures of all vectors together.

    Example:
        >>> import torch
        >>> ends = torch.tensor([-1.0, 1.0])
        >>> measures([ends]).kurtosis, measures([ends]).shape
        (1.0, inf)
    """
    number = count(flat)
    mean = sum(part.double().sum().item() for part in chunks(flat)) / number
    absolute = square = fourth = 0.0
    for part in chunks(flat):
        from_mean = part.double() - mean  # a copy: double() may be the weights themselves
        absolute += from_mean.abs().sum().item()
        squares = from_mean.square_()
        square += squares.sum().item()
        fourth += squares.square_().sum().item()
    # The mean is rounded: equal weights are not exactly 0 from it.
    std = math.sqrt(square / number)
    if std <= 1e-12 * abs(mean) or std == 0.0:
        return Measures(mean, 0.0, math.nan, math.nan, 0.0, values, 0)
    return Measures(
        mean,
        std,
        fourth / number / std**4,
        shape_of(absolute / number / std),
        variance_left(flat, values),
        values,
        sum(int(((part.double() - mean).abs() > FAR * std).sum()) for part in chunks(flat)),
    )


def shape_of(ratio: float) -> float:
    """Beta of the generalised Gaussian whose mean magnitude is `ratio` times its std.

    Args:
        ratio: E|w| / std, between 0 and 1.

    Returns:
        Beta; infinite where no distribution of the family is as flat.

    Example:
        >>> round(shape_of((2 / math.pi) ** 0.5), 6), round(shape_of(0.5**0.5), 6)
        (2.0, 1.0)
    """
    low, high = math.log(_SMALLEST), math.log(_LARGEST)
    if ratio >= _ratio(_LARGEST):
        return math.inf
    for _ in range(60):  # the ratio rises with beta
        middle = (low + high) / 2
        low, high = (middle, high) if _ratio(math.exp(middle)) < ratio else (low, middle)
    return math.exp((low + high) / 2)


def _ratio(beta: float) -> float:
    one, two, three = (math.lgamma(i / beta) for i in (1, 2, 3))
    return math.exp(two - (one + three) / 2)
