"""Full-batch minimisers of `scipy.optimize` on torch parameters: the way of the 1992 paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FullBatch = Literal["l-bfgs", "cg"]

METHODS = {"l-bfgs": "L-BFGS-B", "cg": "CG"}


def minimize_(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    method: str,
    iterations: int,
) -> float:
    """Move parameters downhill, in place, by L-BFGS or by Polak & Ribiere's conjugate gradients.

    The search is in float64, whatever the parameters' type. An error or Ctrl-C on the way leaves
    the parameters where they started, never at a point of a line search.

    Args:
        objective: a scalar that depends on the parameters; on the scale of nats summed over the
            cases, since scipy's stopping rules are absolute.
        parameters: those that move.
        method: `"l-bfgs"` or `"cg"`.
        iterations: how many at most.

    Returns:
        The objective at the end. If it is not finite, the parameters are where they started.

    Raises:
        ValueError: for another method.

    Example:
        >>> w = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> end = minimize_(lambda: (w - 1).square().sum(), [w], method="l-bfgs", iterations=20)
        >>> w.detach().round(decimals=4)
        tensor([1., 1.])
    """
    from scipy.optimize import minimize

    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}")

    def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        _assign_(parameters, flat)
        value = objective()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        return value.item(), _flat([torch.zeros_like(p) if g is None else g for p, g in pairs])

    start = _flat(parameters)
    options = {"maxiter": iterations, "gtol": 1e-9}
    try:
        result = minimize(
            value_and_gradient, start, jac=True, method=METHODS[method], options=options
        )
    except BaseException:
        _assign_(parameters, start)
        raise
    end = float(result.fun)
    _assign_(parameters, result.x if np.isfinite(end) else start)
    return end


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = torch.cat(
        [t.detach().reshape(-1).double().cpu() for t in tensors]
    ).numpy()
    return flat


@torch.no_grad()
def _assign_(parameters: Sequence[Tensor], flat: NDArray[np.float64]) -> None:
    parts = torch.from_numpy(flat).split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.copy_(part.view_as(p))
