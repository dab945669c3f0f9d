"""A mixture that describes weights which come without one, however many they are.

Each component has a std of its own, since the density is what is wanted, for a picture or a
table. `swsmix.compression.codebooks` fits one that encodes: there all components share one std.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swsmix import tables
from swsmix._histogram import chunks, count
from swsmix.em import HyperPrior, e_step, fit_mixture_, m_step_
from swsmix.mixture import GaussianMixture

_SAMPLE = 100_000  # weights that a mixture is fitted to before the last steps on all of them
_TABULATED = {torch.float32, torch.float16, torch.bfloat16}
_MAX_VALUES = 64  # weights of so few values are clustered already: each value is a component


@tables.uncompiled()  # 100 MB and seconds, the first time many, for five passes over the weights
def cluster(
    flat: Sequence[Tensor], num_components: int, *, seed: int = 0
) -> tuple[GaussianMixture, str]:
    """Fit a mixture to finite weights: k-means, EM on a sample, a few EM steps on all of them.

    Weights of few different values (no more than K, or at most 64 and 8 weights a value) are
    clustered already: each value becomes a narrow component.

    Args:
        flat: the weights, as vectors.
        num_components: K.
        seed: for the sample.

    Returns:
        The mixture, and how it came about, in words.

    Example:
        >>> mixture, origin = cluster([torch.tensor([0.0, 0.5, 0.5])], 7)
        >>> mixture.mean.tolist(), origin
        ([0.0, 0.5], 'one component for each of the 2 values that the weights have')
    """
    total = count(flat)
    sample = _sample(flat, seed)
    few = max(num_components, min(_MAX_VALUES, total // 8))
    if len(sample.unique()) <= few and (values := _few_values(flat, few)) is not None:
        how = "one component for each of the {} values that the weights have"
        one = "one component for the one value that the weights have"
        return of_values(flat, values), how.format(len(values)) if len(values) > 1 else one
    largest = max(end.abs().item() for part in chunks(flat) for end in part.aminmax())
    if not 1e-6 < largest < 1e6:  # squares of weights like 1e30 are beyond float32
        unit = 2.0 ** round(math.log2(largest))
        near_one = [(w.double() / unit).float() for w in flat]
        mixture, how = cluster(near_one, num_components, seed=seed)
        mean, std = (unit * v.double() for v in (mixture.mean, mixture.std))
        return GaussianMixture(mixture.mixing, mean, std), how
    mixture = GaussianMixture.from_weights(sample, num_components, method="kmeans", seed=seed)
    hyper = HyperPrior(std=sample.double().std(correction=0).item() / 20)
    fit_mixture_(mixture, sample, hyper, max_steps=100, tolerance=1e-3)
    steps = 5 if total > len(sample) else 0
    for _ in range(steps):
        table = tables.build(mixture.mixing, mixture.mean, mixture.std)
        parts = [e_step(mixture, w if w.dtype in _TABULATED else w.float(), table) for w in flat]
        m_step_(mixture, functools.reduce(lambda a, b: a + b, parts), hyper)
    how = f"fitted here by EM, K = {num_components}"
    return mixture, how + (f", on a sample of {len(sample):,} and then on all" if steps else "")


def _sample(flat: Sequence[Tensor], seed: int) -> Tensor:
    total = count(flat)
    if total <= _SAMPLE:
        return torch.cat([part.float() for part in chunks(flat)])
    generator = torch.Generator().manual_seed(seed)
    at = torch.randint(total, (_SAMPLE,), generator=generator).sort().values
    start, parts = 0, []
    for w in flat:
        inside = at[(at >= start) & (at < start + len(w))] - start
        parts.append(w[inside].float())
        start += len(w)
    return torch.cat(parts)


def of_values(flat: Sequence[Tensor], values: Tensor) -> GaussianMixture:
    """A mixture with a narrow component at each of the few values that weights have.

    Args:
        flat: the weights.
        values: all of them, and maybe others, ascending and different (k,).

    Returns:
        The mixture; its mixing proportions are the shares.

    Example:
        >>> of_values([torch.tensor([0.0, 1.0, 1.0, 1.0])], torch.tensor([0.0, 1.0])).mixing
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    values = values.double()
    numbers = torch.zeros(len(values), dtype=torch.float64)
    for part in chunks([w.reshape(-1) for w in flat]):
        index = torch.searchsorted(values, part.double())
        numbers += torch.bincount(index, minlength=len(values))[: len(values)]
    gap = values.diff().min().item() if len(values) > 1 else values[0].abs().item() or 1.0
    return GaussianMixture(numbers / numbers.sum(), values, torch.full_like(values, 0.03 * gap))


def _few_values(flat: Sequence[Tensor], most: int) -> Tensor | None:
    """The different values, ascending; None if there are more than `most`."""
    values = torch.zeros(0).double()
    for part in chunks(flat):
        values = torch.cat([values, part.double().unique()]).unique()
        if len(values) > most:
            return None
    return values
