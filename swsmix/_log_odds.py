"""Which component a weight belongs to, in float64 and out to the largest float.

The logarithms of densities lose their differences far out, where z^2 is large; then components are
compared by differences of z, and what overflows stays infinite and never becomes nan. Everything
can be differentiated, with gradients of 0 where nothing is owned.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# The log density below which components are compared by differences; a z whose square is finite.
FAR, LARGE = -1e3, 1.89e154
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def standardised(w: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """z_j = (w - mu_j) / sigma_j in float64, of weights (*n, 1), kept within `LARGE`."""
    offset = w - mean
    z = _quotient(offset, std)
    over = offset.detach().isinf()
    if bool(over.any()):
        z = torch.where(over, 2.0 * _quotient(0.5 * w - 0.5 * mean, std, 0.5 * LARGE), z)
    return z


def log_odds(w: Tensor, z: Tensor, level: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log pi_j N(w | mu_j, sigma_j^2), up to a number per weight, to compare the components by.

    Far out, where the squares of z lose their differences, components are compared with the
    nearest one, r, by z_j^2 - z_r^2 = (z_j - z_r) (z_j + z_r).

    Args:
        w: weights (*n, 1), in float64 like the rest.
        z: from `standardised` (*n, k).
        level: log pi_j - log sigma_j (k,), or anything that expands to the shape of z.
        mean: mu, the same.
        std: sigma, the same.

    Returns:
        Numbers (*n, k), the largest of each weight finite: -inf for proportions of 0 and where
        floats end, and for finite weights never nan.
    """
    joint = level - 0.5 * z * z
    far = joint.detach().amax(-1, keepdim=True) < FAR
    if not bool(far.any()):
        return joint
    rows = far.squeeze(-1)
    level, mean, std = (t.expand(z.shape)[rows] for t in (level, mean, std))
    w, z = w.expand(*far.shape)[rows], z[rows]
    with torch.no_grad():
        # By logarithms, since z is cut off at LARGE; then by what that one says.
        distance = (0.5 * w - 0.5 * mean).abs().log() - std.log()
        nearest = torch.where(level == -torch.inf, torch.inf, distance).argmin(-1)
        nearest = _beyond(w, z, level, mean, std, distance, nearest).argmax(-1)
    beyond = _beyond(w, z, level, mean, std, distance, nearest)
    return joint.masked_scatter(far, beyond)


def _beyond(
    w: Tensor,
    z: Tensor,
    level: Tensor,
    mean: Tensor,
    std: Tensor,
    distance: Tensor,
    nearest: Tensor,
) -> Tensor:
    """`log_odds` in comparison with one component of each weight (m,); `distance` is log |z|."""
    mean_r, std_r, z_r = (t.gather(-1, nearest[:, None]) for t in (mean, std, z))
    # z_j - z_r, as it is and in parts that do not cancel far out: the smaller numbers are better.
    one = 2.0 * _quotient((0.5 * w - 0.5 * mean_r) * ((std_r - std) / std_r), std, 0.5 * LARGE)
    other = 2.0 * _quotient(0.5 * mean_r - 0.5 * mean, std, 0.5 * LARGE)
    better = (one.abs() + other.abs() <= z.abs() + z_r.abs()).detach()
    gap, total = torch.where(better, one + other, z - z_r), z + z_r
    lost = (torch.minimum(z.abs(), z_r.abs()) >= LARGE) & (other.abs() >= LARGE)
    if bool(lost.any()):
        further = distance > distance.gather(-1, nearest[:, None])
        gap = torch.where(lost, LARGE * z.detach().sign() * further, gap)
        total = torch.where(lost, 2.0 * z, total)  # of opposite signs they would cancel
    # A dead component may be nearer by more than floats can say, where -inf + inf is nan.
    return level - (0.5 * gap * total).clamp_min(-1e300)


def _quotient(x: Tensor, y: Tensor, largest: float = LARGE) -> Tensor:
    """The ratio x / y kept within a bound, with a gradient of 0 beyond it; nan for nan alone."""
    ratio = x / y
    wild = ~(ratio.detach().abs() <= largest)
    if not bool(wild.any()):
        return ratio
    bound = torch.copysign(ratio.new_tensor(largest), x.detach()).expand_as(ratio)
    bound = torch.where(ratio.detach().isnan(), ratio.detach(), bound)
    return torch.where(wild, bound, torch.where(wild, 0.0, x) / y)


def log_or_nothing(mixing: Tensor) -> Tensor:
    """Log pi; -inf, with a gradient of 0, where pi is 0."""
    alive = mixing > 0
    return torch.where(alive, torch.where(alive, mixing, 1.0).log(), -torch.inf)


class LogSum(torch.autograd.Function):
    """log p(w) from the joint densities and the responsibilities, which are its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(joint: Tensor, gamma: Tensor) -> Tensor:
        most, nearest = gamma.max(-1, keepdim=True)
        return (joint.gather(-1, nearest) - most.log())[..., 0] - LOG_SQRT_2PI

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gamma,) = ctx.saved_tensors
        return upstream.unsqueeze(-1) * gamma, None
