"""The evidence of a model, by Laplace's approximation at each mode that an ensemble finds.

    log p(data | phi) = log sum_modes copies exp(log p(data, z*) + d / 2 log 2 pi - log det H / 2)

over weights, biases and noise, z, of mixtures phi that are held (pinned); H is the curvature of
-log p(data, z) at the mode z*. A mode is counted with its copies: hidden units in another order, or
of the other sign.

It is exact where the posterior is Gaussian. Modes that no start has led to are missing, so that it
is rather too small; see also `Mode.pareto_k`. With the mixture's stds free, the joint density is
the largest where most hidden units are dead, far from the posterior's mass; Laplace's approximation
looks good there and says nothing: hence the pins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from torch import nn

from swsmix.bayes.joint import Joint
from swsmix.bayes.layout import Array
from swsmix.bayes.network import SequentialEvaluator

_SAME = 1e-3  # nats: modes that differ less are one
_ALIKE = 1e-3  # units that differ less are alike
_STEP = 1e-4  # of the differences of gradients, in units of z
_NEWTON_STEPS, _SETTLED = 30, 1e-9  # the second: half the squared Newton step, in nats


@dataclass(frozen=True, eq=False)
class Mode:
    """A maximum of the joint density, and the mass around it.

    Attributes:
        z: where it is, in centred coordinates (d,), see `Joint.centre`.
        log_density: log p(data, z*) in nats.
        log_det: log det H.
        log_copies: log of the number of modes that are the same but for their labels.
        pareto_k: how far the posterior near the mode is from its Gaussian, by the importance
            weights of draws: above 0.7 the tails are wrong, and the evidence with them.
    """

    z: Array = field(repr=False)
    log_density: float
    log_det: float
    log_copies: float
    pareto_k: float

    @property
    def log_mass(self) -> float:
        """What the mode and its copies add to the evidence, its logarithm in nats."""
        half = 0.5 * (len(self.z) * math.log(2.0 * math.pi) - self.log_det)
        return self.log_density + half + self.log_copies


@dataclass(frozen=True)
class ModeEvidence:
    """The evidence, summed over modes.

    Attributes:
        log_evidence: log p(data) in nats.
        modes: the different ones, the heaviest first.
        num_lost: the starts that led to no maximum with a Gaussian around it.
    """

    log_evidence: float
    modes: list[Mode] = field(repr=False)
    num_lost: int

    @property
    def pareto_k(self) -> float:
        """That of the heaviest mode; above 0.7 do not choose by this evidence."""
        return self.modes[0].pareto_k


def mode_evidence(
    joint: Joint, starts: Sequence[Array], *, draws: int = 1000, seed: int = 0
) -> ModeEvidence:
    """The evidence of a model with pinned mixtures, from the modes that these starts lead to.

    At mixtures that were fitted to the data, one with more components fits by itself a little
    better: a difference of a nat or two per component is no evidence.

    Args:
        joint: the model; d + 1 gradients per Newton step, so for some hundreds of unknowns.
        starts: z (d,) of trained networks, `joint.start_at(net, prior)` for those of an ensemble.
        draws: per mode, for its Pareto k.
        seed: of these draws.

    Raises:
        ValueError: if tau is not 1, a mixture is not pinned, or no start leads to a mode.

    Example:
        >>> import torch
        >>> from swsmix import GaussianMixture, HyperPrior, MixturePrior
        >>> pins = dict.fromkeys(("pinned_mixing", "pinned_mean", "pinned_std"), [True])
        >>> net, x = nn.Linear(2, 1), torch.randn(20, 2)
        >>> held = GaussianMixture([1.0], [0.0], [0.5], **pins)
        >>> prior = MixturePrior(net, initial=held, hyper=HyperPrior(mean_count=0.1))
        >>> joint = Joint(net, prior, x, x.sum(1, keepdim=True) + torch.randn(20, 1))
        >>> len(mode_evidence(joint, [joint.start()]).modes)
        1
    """
    if any(term.tau != 1.0 for term in joint.terms.values()):
        raise ValueError(
            "the evidence is defined at tau = 1 alone: a prior raised to the power tau is not "
            f"normalised; got {[term.tau for term in joint.terms.values()]}"
        )
    if any(sum(c.sizes) for c in joint.layout.components.values()):
        raise ValueError(
            "the evidence needs mixtures that are held: with their stds free, the joint density is "
            "the largest where most units are dead. Pin all of mixing, mean and std at a fit: "
            "GaussianMixture(..., pinned_mixing=[True, ...], pinned_mean=..., pinned_std=...)"
        )
    rng = np.random.default_rng(seed)
    modes: list[Mode] = []
    lost = 0
    for start in starts:
        found = _maximum(joint, joint.centre(np.asarray(start, dtype=np.float64)))
        if found is None:
            lost += 1
            continue
        z, value, curvature = found
        log_det = 2.0 * float(np.log(np.diag(np.linalg.cholesky(curvature))).sum())
        k = _pareto_k(joint, z, value, curvature, draws, rng)
        mode = Mode(z, value, log_det, _log_copies(joint, z, value), k)
        if not any(_same(mode, other) for other in modes):
            modes.append(mode)
    if not modes:
        raise ValueError(
            f"none of the {len(starts)} starts leads to a maximum: train the networks longer, or "
            "hold the mixture at wider stds"
        )
    modes.sort(key=lambda mode: -mode.log_mass)
    total = float(np.logaddexp.reduce([mode.log_mass for mode in modes]))
    return ModeEvidence(total, modes, lost)


def _same(a: Mode, b: Mode) -> bool:
    """Whether two modes are the same but for labels, of which height and width say nothing."""
    return abs(a.log_density - b.log_density) < _SAME and abs(a.log_mass - b.log_mass) < 10 * _SAME


def _maximum(joint: Joint, z: Array) -> tuple[Array, float, Array] | None:
    """The maximum of the log joint density near z, the density there, and its curvature."""

    def potential(at: Array) -> tuple[float, Array]:
        value, gradient = joint.potential(at, centred=True)
        return min(value, 1e300), gradient  # a line search compares, and inf has no slope

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-7}
    z = minimize(potential, z, jac=True, method="L-BFGS-B", options=options).x
    for _ in range(_NEWTON_STEPS):
        value, gradient = potential(z)
        curvature = _curvature(joint, z)
        try:
            np.linalg.cholesky(curvature)
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            return None
        if 0.5 * float(gradient @ step) < _SETTLED:
            return z, -value, curvature
        size = 1.0
        while potential(z - size * step)[0] >= value:
            size *= 0.5
            if size < 1e-6:
                return None
        z = z - size * step
    return None


def _curvature(joint: Joint, z: Array) -> Array:
    """H (d, d), by central differences of the gradient."""
    rows = []
    for i in range(len(z)):
        step = np.zeros_like(z)
        step[i] = _STEP
        ahead, back = (joint.potential(z + s, centred=True)[1] for s in (step, -step))
        rows.append((ahead - back) / (2.0 * _STEP))
    matrix = np.array(rows)
    curvature: Array = 0.5 * (matrix + matrix.T)
    return curvature


def _pareto_k(
    joint: Joint, z: Array, value: float, curvature: Array, draws: int, rng: np.random.Generator
) -> float:
    """Pareto k of the weights p(data, z) / N(z | z*, H^-1) of draws from the Gaussian."""
    from arviz_stats.base.array import array_stats

    factor = np.linalg.cholesky(curvature)
    noise = rng.standard_normal((draws, len(z)))
    points = np.ascontiguousarray(z + np.linalg.solve(factor.T, noise.T).T)
    heights = np.array([-joint.potential(point, centred=True)[0] for point in points])
    log_weights = heights - value + 0.5 * np.square(noise).sum(1)
    if np.ptp(log_weights) < 1e-4:  # a Gaussian: the weights are rounding
        return -math.inf
    with np.errstate(all="ignore"):
        return float(array_stats.psislw(np.maximum(log_weights, -1e300))[1])


# -- copies -----------------------------------------------------------------------------------


def _log_copies(joint: Joint, centred: Array, value: float) -> float:
    """Log of the number of different modes that relabelling makes of this one.

    Units that are alike have no order; a sign counts where the density allows it.
    """
    z, copies = joint.uncentre(centred), 0.0
    for units in _hidden_layers(joint):
        rows = []
        for unit in units:
            turned = z.copy()
            turned[unit] *= -1.0
            row = z[unit]
            if _is_copy(joint, turned, z, value):
                copies += math.log(2.0)
                row = row * np.sign(row[np.abs(row).argmax()])  # alike, up to the sign
            rows.append(row)
        copies += _log_orders(np.array(rows))
    return copies


def _is_copy(joint: Joint, other: Array, z: Array, value: float) -> bool:
    """Whether another point is as high, and not the same."""
    return bool(np.abs(other - z).max() > _ALIKE and abs(joint.log_joint(other)[0] - value) < _SAME)


def _log_orders(rows: Array) -> float:
    """Log of the number of different orders of the rows, those that are alike taken for equal."""
    count, left = math.lgamma(len(rows) + 1.0), [*rows]
    while left:
        first = left[0]
        alike = [bool(np.abs(row - first).max() < _ALIKE) for row in left]
        count -= math.lgamma(sum(alike) + 1.0)
        left = [row for row, same in zip(left, alike, strict=True) if not same]
    return count


def _hidden_layers(joint: Joint) -> Iterator[list[Array]]:
    """Of each hidden layer of a network that is computed in numpy, the indices of each unit.

    A unit has its weights in, its bias, and its weights out. Of a ReLU no sign is free, and the
    density says so.
    """
    evaluate = joint._compiled[0]
    if not isinstance(evaluate, SequentialEvaluator):
        return
    index = {
        n: np.arange(at.start, at.stop).reshape(joint.layout.parameters[n])
        for n, at in joint.layout.slices.items()
    }
    linear = [(prefix, m) for prefix, m in evaluate.layers if type(m) is nn.Linear]
    for (before, layer), (after, _) in itertools.pairwise(linear):
        parts = [index[f"{before}weight"], index[f"{after}weight"].T]
        if layer.bias is not None:
            parts.append(index[f"{before}bias"][:, None])
        yield [*np.concatenate(parts, 1)]
