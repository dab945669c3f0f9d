"""The lambda at which a network has the bits, or the loss, that were asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.in_context import ContextBook

_SEARCHES = 60  # lambdas tried at most
_CORRECTIONS = 9  # of them where they are near it already
_FRESH = 2  # of these, each with values of its own
_MISSED = 2e-3  # as a logarithm, what they may miss
_LEAP = 5e-3  # as a logarithm, what is missed where no lambda comes nearer
_REACH = 20.0  # values of one lambda serve others, down to this part of it
_WITHIN = 5e-4  # how near, as a logarithm
_SLOPES = 0.9, -0.4  # of log loss and log bits in log lambda, about
_FARTHEST = 1.5  # a step, as a logarithm


class Outcome(NamedTuple):
    """What one lambda makes of a network.

    Attributes:
        lam: lambda, the relative error of a tensor that is worth a bit.
        books: a codebook per tensor, in units of its own; None keeps all values that it has.
        bits: the order-0 entropy, per quantised weight.
        loss: the relative distortion.
    """

    lam: float
    books: tuple[Codebook | ContextBook | None, ...]
    bits: float
    loss: float


# A logarithm that is to be just below 0; it rises or falls in lambda.
Excess = Callable[[Outcome], float]
# What a lambda makes of a network; `start` gives values to begin with.
At = Callable[..., Outcome]


def log_ratio(is_: float, wanted: float) -> float:
    """The logarithm of a ratio, minus infinity if there is nothing."""
    return math.log(is_ / wanted) if is_ > 0.0 else -math.inf


def search(at: At, ends: tuple[float, float], excess: Excess, *, rises: bool) -> Outcome:
    """The outcome between two lambdas where `excess` is just below 0."""
    fine, coarse = (at(lam) for lam in ends)
    good, bad = (fine, coarse) if rises else (coarse, fine)
    if excess(bad) <= 0.0:
        return bad
    good, bad = _between(at, excess, good, bad)
    if excess(good) >= -_LEAP or not math.isfinite(excess(good)):
        return good
    # A leap: two sets of values cost the same at this lambda, and none lies between. The coarser
    # ones at smaller lambdas do.
    coarse = bad if rises else good
    fine = at(coarse.lam / _REACH, start=coarse)
    first, second = (fine, coarse) if rises else (coarse, fine)
    if excess(first) > 0.0 or excess(second) <= 0.0:
        return good
    found, _ = _between(at, excess, first, second, coarse)
    return found if excess(found) > excess(good) else good


def _between(
    at: At, excess: Excess, good: Outcome, bad: Outcome, start: Outcome | None = None
) -> tuple[Outcome, Outcome]:
    """The last outcome that is good enough between two, and the first that is not."""
    slack, over = excess(good), excess(bad)
    for step in range(_SEARCHES):
        x, y = math.log(good.lam), math.log(bad.lam)
        if slack >= -2.0 * _WITHIN or abs(y - x) < 1e-4:
            break
        share = 0.5
        if step % 3 < 2 and math.isfinite(slack):  # both are nearly straight in log lambda
            share = min(max((-_WITHIN - slack) / (over - slack), 0.01), 0.99)
        found = at(math.exp(x + share * (y - x)), start=start)
        if excess(found) <= 0.0:
            good, slack = found, excess(found)
        else:
            bad, over = found, excess(found)
    return good, bad


def corrected(at: At, lam: float, excess: Excess, *, rises: bool) -> Outcome | None:
    """The same near a lambda that is nearly right, in a few steps; None if they fail.

    Values come and go with lambda, and by that the outcome leaps. So where the first steps miss,
    all others begin with the values that these ended with.
    """
    best: Outcome | None = None
    start: Outcome | None = None
    slope = _SLOPES[0] if rises else _SLOPES[1]
    ends = dict[bool, tuple[float, float]]()  # whether it is too much -> log lambda, by how much
    x, before = math.log(lam), None
    for step in range(_CORRECTIONS):
        found = at(math.exp(x), start=start)
        over = excess(found)
        if over <= 0.0 and (best is None or over > excess(best)):
            best = found
        if -2.0 * _WITHIN <= over <= 0.0 or not math.isfinite(over):
            break
        if step >= _FRESH:
            ends[over > 0.0] = x, over
        elif step == _FRESH - 1:
            start, slope = found, 0.5 * slope  # fewer things move
        if len(ends) == 2:
            (y, under), (z, above) = ends[False], ends[True]
            share = (-_WITHIN - under) / (above - under)
            x = y + min(max(share, 0.05), 0.95) * (z - y)
        else:
            if before is not None:
                seen = (over - before[1]) / (x - before[0])
                slope = math.copysign(min(max(abs(seen), 0.2), 2.0), slope)
            before = (x, over) if start is not None and step >= _FRESH else None
            x -= min(max((over + _WITHIN) / slope, -_FARTHEST), _FARTHEST)
    return best if best is not None and excess(best) >= -_MISSED else None
