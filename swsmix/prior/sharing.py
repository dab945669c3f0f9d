"""The plain form of soft weight-sharing: given memberships, each weight pays for its distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Distance = Literal["squared", "absolute", "huber"] | Callable[[Tensor, Tensor], Tensor]


def sharing_penalty(
    w: Float[Tensor, "*n"],
    mean: Float[Tensor, " k"],
    memberships: Float[Tensor, "*n k"] | Int[Tensor, "*n"],
    *,
    distance: Distance = "squared",
) -> Float[Tensor, ""]:
    """R(w) = sum_i sum_j gamma_ij d(w_i, mu_j), to be added to a loss as L' = L + lambda R.

    With gamma held at the E step's responsibilities and d = (w - mu_j)^2 / (2 sigma_j^2), this is
    the EM majoriser of the mixture prior's penalty: it has the same gradient at the current
    weights (Nowlan & Hinton 1992; Bishop & Bishop 2024, section 9.4.1).

    Args:
        w: the weights, any shape.
        mean: mu, the centres of the groups (k,).
        memberships: gamma, soft (*n, k) with rows that sum to 1, or hard: the group's number of
            each weight (*n), an integer tensor.
        distance: d: `"squared"` (w - mu)^2, `"absolute"` |w - mu|, `"huber"` (quadratic within 1
            of the centre, linear beyond), or a callable d(w, mu) of two tensors that broadcast
            to (*n, k).

    Returns:
        The penalty, a scalar, differentiable in the weights, the centres and soft memberships.

    Raises:
        ValueError: if the shapes do not fit, a row does not sum to 1, a membership is negative,
            a group's number is out of range, or the distance is unknown.

    Example:
        Four weights in two groups, R = (w1-mu1)^2 + (w2-mu1)^2 + (w3-mu2)^2 + (w4-mu2)^2:

        >>> w = torch.tensor([0.9, 1.2, -0.5, -0.8], requires_grad=True)
        >>> mean = torch.tensor([1.0, -0.7])
        >>> groups = torch.tensor([0, 0, 1, 1])
        >>> penalty = sharing_penalty(w, mean, groups)
        >>> round(penalty.item(), 6)  # 0.01 + 0.04 + 0.04 + 0.01
        0.1
        >>> loss = (w.sum() - 1.0) ** 2 + 0.5 * penalty  # L' = L + lambda R
        >>> loss.backward()
    """
    gamma = _as_soft(memberships, w, mean)
    d = _DISTANCES.get(distance) if isinstance(distance, str) else distance
    if d is None:
        raise ValueError(
            f"distance must be one of {list(_DISTANCES)} or a callable; got {distance!r}"
        )
    dtype = torch.promote_types(w.dtype, mean.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    weights, centres = w.unsqueeze(-1).to(wide), mean.to(wide)
    far = d(weights, centres)
    beyond = (gamma == 0) & ~far.isfinite()
    if bool(beyond.any()):  # 0 times inf is nan, and so is its gradient
        far = d(torch.where(beyond, centres, weights), centres).masked_fill(beyond, 0.0)
    return (gamma * far).sum().to(dtype)


def _huber(off: Tensor) -> Tensor:
    near = off.clamp_max(1.0)  # not `where`: the square overflows far out, its gradient is then nan
    return 0.5 * near.square() + (off - near)


# To add one: a line here, its name in `Distance` and in the docstring.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda w, mean: (w - mean).square(),
    "absolute": lambda w, mean: (w - mean).abs(),
    "huber": lambda w, mean: _huber((w - mean).abs()),
}


def _as_soft(memberships: Tensor, w: Tensor, mean: Tensor) -> Tensor:
    if not memberships.is_floating_point():
        if memberships.shape != w.shape:
            raise ValueError(
                f"hard memberships need one group number per weight, shape {tuple(w.shape)}; got "
                f"{tuple(memberships.shape)}"
            )
        if memberships.numel() and not 0 <= memberships.min() <= memberships.max() < len(mean):
            raise ValueError(
                f"hard memberships must lie between 0 and {len(mean) - 1}; got "
                f"{memberships.min().item()} to {memberships.max().item()}"
            )
        return functional.one_hot(memberships.long(), len(mean)).to(w.dtype)
    if memberships.shape != (*w.shape, len(mean)):
        raise ValueError(
            f"soft memberships need shape {(*w.shape, len(mean))} (weights, groups); got "
            f"{tuple(memberships.shape)}"
        )
    off = (memberships.detach().double().sum(-1) - 1.0).abs()
    # Sums of single-precision (or half) responsibilities are not exactly 1.
    allowed = 1e-5 if memberships.dtype.itemsize >= 4 else 1e-2
    if off.numel() and (not off.max() <= allowed or memberships.detach().min() < 0):
        raise ValueError(
            "each row of the memberships must be non-negative and sum to 1; the worst row sums to "
            f"1 ± {off.max().item():.3g}, the least entry is {memberships.min().item():.3g}"
        )
    return memberships
