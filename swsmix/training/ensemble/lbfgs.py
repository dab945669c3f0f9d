"""L-BFGS on many small problems at once, each with its own step, line search and memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_ARMIJO, _TRIES, _TOLERANCE = 1e-4, 12, 1e-9


def minimise(
    function: Function,
    start: Tensor,
    iterations: int,
    *,
    memory: int = 10,
    each: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise b functions of p variables by L-BFGS with a backtracking (Armijo) line search.

    One call of the function serves all problems, so a thousand nets cost hardly more than ten;
    the problems do not see each other. A step whose curvature is not positive is not remembered. A
    problem that two steps running improve by less than 1e-9 of its value has arrived: it stays.

    Args:
        function: (theta (r, p), rows (r,)) -> values (r,) and gradients (r, p) of these problems.
        start: (b, p).
        iterations: to make, for every problem.
        memory: steps remembered.
        each: called as each(iteration, theta) after every iteration, counted from 1.

    Returns:
        theta (b, p) and the values (b,).

    Reference:
        Nocedal & Wright 2006, algorithm 7.4.
    """
    x, everyone = start.clone(), torch.arange(len(start), dtype=torch.int64, device=start.device)
    value, gradient = function(x, everyone)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    failed = torch.zeros_like(everyone)
    for iteration in range(1, iterations + 1):
        direction = -_two_loops(gradient, pairs)
        slope = (direction * gradient).sum(-1)
        uphill = ~(slope < 0)
        if uphill.any():
            direction = torch.where(uphill[:, None], -gradient, direction)
            slope = (direction * gradient).sum(-1)
        length = torch.ones_like(value)
        if not pairs:
            length = 1.0 / direction.norm(dim=-1).clamp_min(1.0)

        new_x, new_value, new_gradient = x.clone(), value.clone(), gradient.clone()
        rows = everyone[failed < 2]
        if not len(rows) and each is None:
            break  # all have arrived
        for _ in range(_TRIES if len(rows) else 0):
            t = length[rows]
            trial = x[rows] + t[:, None] * direction[rows]
            f, g = function(trial, rows)
            falls = f <= value[rows] + _ARMIJO * t * slope[rows]
            good = rows[falls]
            new_x[good], new_value[good], new_gradient[good] = trial[falls], f[falls], g[falls]
            if falls.all():
                rows = good[:0]
                break
            # The minimum of the parabola through both values and the slope, kept inside.
            rows, t, f = rows[~falls], t[~falls], f[~falls]
            best = -0.5 * slope[rows] * t / ((f - value[rows]) / t - slope[rows])
            length[rows] = t * (best / t).nan_to_num(0.1).clamp(0.1, 0.5)

        step, change = new_x - x, new_gradient - gradient
        curvature = (step * change).sum(-1)
        known = curvature > 1e-10 * change.square().sum(-1)
        inverse = torch.where(known, 1.0 / curvature, 0.0)
        still = (value - new_value <= _TOLERANCE * value.abs().clamp_min(1.0)) | (failed >= 2)
        failed = torch.where(still, failed + 1, 0)
        for _, _, old in pairs:  # where no step helped: forget, and try steepest descent
            old[rows] = 0.0
        pairs = [*pairs, (step, change, inverse)][-memory:]
        x, value, gradient = new_x, new_value, new_gradient
        if each is not None:
            each(iteration, x)
    return x, value


def _two_loops(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian's approximation times the gradient; a pair with inverse 0 is inert."""
    q, shares = gradient.clone(), []
    for step, change, inverse in reversed(pairs):
        share = inverse * (step * q).sum(-1)
        q.sub_(share[:, None] * change)
        shares.append(share)
    scale = torch.ones_like(gradient[:, 0])
    for _, change, inverse in pairs:  # of the newest pair with curvature
        scale = torch.where(inverse > 0, 1.0 / (inverse * change.square().sum(-1)), scale)
    q.mul_(scale[:, None])
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        again = inverse * (change * q).sum(-1)
        q.add_((share - again)[:, None] * step)
    return q
