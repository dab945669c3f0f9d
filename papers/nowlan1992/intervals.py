"""Means with bootstrap intervals and paired comparisons: `scipy.stats`, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean.
        std: the standard deviation between seeds (n - 1).
        low: lower end of the bootstrap 95 % interval of the mean (BCa).
        high: its upper end.
        num: seeds.
    """

    mean: float
    std: float
    low: float
    high: float
    num: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of a sample with its BCa bootstrap 95 % interval; one value has none (nan).

    Returns:
        The estimate.
    """
    from scipy import stats

    sample = np.asarray(values, dtype=float)
    mean, num = float(sample.mean()), len(sample)
    if num < 2:
        return Estimate(mean, float("nan"), float("nan"), float("nan"), num)
    std = float(sample.std(ddof=1))
    if np.ptp(sample) == 0.0:
        return Estimate(mean, std, mean, mean, num)
    interval = stats.bootstrap((sample,), np.mean, n_resamples=9999, rng=0).confidence_interval
    return Estimate(mean, std, float(interval.low), float(interval.high), num)


@dataclass(frozen=True)
class Comparison:
    """A paired comparison, first minus second.

    Attributes:
        difference: of the means, with its bootstrap interval over the pairs.
        p_t: of the paired t test.
        p_wilcoxon: of the signed-rank test.
    """

    difference: Estimate
    p_t: float
    p_wilcoxon: float


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two methods on the same seeds.

    Returns:
        The comparison; its tests are nan for fewer than two pairs or when no pair differs.
    """
    from scipy import stats

    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if len(difference) < 2 or not difference.any():
        return Comparison(estimate(difference.tolist()), float("nan"), float("nan"))
    t = stats.ttest_1samp(difference, 0.0).pvalue if np.ptp(difference) > 0 else 0.0
    rank = stats.wilcoxon(difference).pvalue
    return Comparison(estimate(difference.tolist()), float(t), float(rank))
