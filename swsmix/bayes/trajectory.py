"""One draw of the No-U-turn sampler, in numpy.

Multinomial NUTS with biased progressive sampling (Hoffman & Gelman 2014; Betancourt 2017, appendix
A.4), with the criterion and the tree of Pyro's kernel. A step of Pyro's kernel takes 0.6 ms besides
the gradient, ten times the gradient of a 12-8-1 network; a step here takes 0.05 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from swsmix.bayes.layout import Array

Potential = Callable[[Array], tuple[float, Array]]
_MAX_ENERGY_ERROR = 1000.0


class State(NamedTuple):
    """A point of a trajectory.

    Attributes:
        z: position (d,).
        p: momentum, standard normal (d,); the velocity is L p, see `Metric`.
        value: the potential at z, in nats.
        gradient: its gradient (d,).
    """

    z: Array
    p: Array
    value: float
    gradient: Array

    @property
    def energy(self) -> float:
        """Potential and kinetic energy."""
        energy = self.value + 0.5 * float(self.p @ self.p)
        return math.inf if math.isnan(energy) else energy


@dataclass(frozen=True)
class Metric:
    """The inverse mass matrix L L', as its factor: velocity = L p.

    Attributes:
        factor: the diagonal of L (d,), or L, lower triangular (d, d).
    """

    factor: Array

    @classmethod
    def of(cls, inverse_mass: Array) -> Metric:
        """From the inverse mass matrix: its diagonal (d,) or all of it (d, d)."""
        if inverse_mass.ndim == 1:
            return cls(np.sqrt(inverse_mass))
        return cls(np.linalg.cholesky(inverse_mass))

    def leap(self, potential: Potential, at: State, step: float) -> State:
        """One leapfrog step; a negative one goes back in time."""
        factor = self.factor
        diagonal = factor.ndim == 1
        p = at.p - 0.5 * step * (factor * at.gradient if diagonal else at.gradient @ factor)
        z = at.z + step * (factor * p if diagonal else factor @ p)
        value, gradient = potential(z)
        p = p - 0.5 * step * (factor * gradient if diagonal else gradient @ factor)
        return State(z, p, value, gradient)


class Draw(NamedTuple):
    """A draw, and how it was made.

    Attributes:
        state: the new state.
        accept: the mean acceptance probability along the trajectory.
        steps: the number of leapfrog steps.
        depth: the number of doublings.
        diverged: whether the energy error exceeded 1000 nats.
    """

    state: State
    accept: float
    steps: int
    depth: int
    diverged: bool


class _Tree(NamedTuple):
    left: State
    right: State
    proposal: State
    momenta: Array  # summed over the tree
    log_weight: float
    stopped: bool  # it turned back, or diverged
    diverged: bool
    accept: float  # summed
    steps: int


@dataclass(frozen=True)
class _TreeBuilder:
    """Builds trees of 2^depth steps from a state, in one direction of time."""

    potential: Potential
    metric: Metric
    step: float
    energy: float
    rng: np.random.Generator

    def __call__(self, at: State, direction: int, depth: int) -> _Tree:
        if depth == 0:
            new = self.metric.leap(self.potential, at, direction * self.step)
            error = new.energy - self.energy
            diverged = not error <= _MAX_ENERGY_ERROR
            accept = min(1.0, math.exp(min(0.0, -error)))
            return _Tree(new, new, new, new.p, -error, diverged, diverged, accept, 1)
        first = self(at, direction, depth - 1)
        if first.stopped:
            return first
        second = self(first.right if direction == 1 else first.left, direction, depth - 1)
        log_weight = _log_add(first.log_weight, second.log_weight)
        take_second = math.log(self.rng.random()) < second.log_weight - log_weight
        left, right = (first.left, second.right) if direction == 1 else (second.left, first.right)
        momenta = first.momenta + second.momenta
        return _Tree(
            left, right, second.proposal if take_second else first.proposal, momenta, log_weight,
            second.stopped or _turns(left, right, momenta), second.diverged,
            first.accept + second.accept, first.steps + second.steps,
        )  # fmt: skip


# A trajectory may overflow: its energy is then infinite, and it counts as diverged.
_MAY_OVERFLOW = np.errstate(over="ignore", invalid="ignore")


@_MAY_OVERFLOW
def nuts(
    potential: Potential,
    start: State,
    *,
    step: float,
    metric: Metric,
    rng: np.random.Generator,
    max_depth: int = 10,
) -> Draw:
    """One transition: a new draw from the last one.

    Args:
        potential: z -> -log density and its gradient.
        start: the last draw; its momentum is replaced by a new one.
        step: the integrator's step size.
        metric: the mass matrix.
        rng: source of momenta and choices.
        max_depth: the largest number of doublings.
    """
    start = start._replace(p=rng.standard_normal(len(start.z)))
    build = _TreeBuilder(potential, metric, step, start.energy, rng)
    whole = _Tree(start, start, start, start.p, 0.0, False, False, 0.0, 0)
    depth, chosen, accept, steps, diverged = 0, start, 0.0, 0, False
    while depth < max_depth:
        direction = 1 if rng.random() < 0.5 else -1
        added = build(whole.right if direction == 1 else whole.left, direction, depth)
        accept, steps, diverged = accept + added.accept, steps + added.steps, added.diverged
        if added.stopped:
            break
        depth += 1
        if math.log(rng.random()) < added.log_weight - whole.log_weight:
            chosen = added.proposal
        left, right = (whole.left, added.right) if direction == 1 else (added.left, whole.right)
        whole = whole._replace(
            left=left, right=right, momenta=whole.momenta + added.momenta,
            log_weight=_log_add(whole.log_weight, added.log_weight),
        )  # fmt: skip
        if _turns(left, right, whole.momenta):
            break
    return Draw(chosen, accept / max(steps, 1), steps, depth, diverged)


@_MAY_OVERFLOW
def reasonable_step(
    potential: Potential, start: State, *, step: float, metric: Metric, rng: np.random.Generator
) -> float:
    """A first step size: doubled or halved until one step is accepted with probability 0.8.

    Hoffman & Gelman 2014, algorithm 4.
    """
    direction = 0
    while 1e-10 < step < 1e10:
        at = start._replace(p=rng.standard_normal(len(start.z)))
        error = metric.leap(potential, at, step).energy - at.energy
        wanted = 1 if -error > math.log(0.8) else -1
        if direction not in (0, wanted):
            break
        direction = wanted
        step *= 2.0**direction
    return step


def _turns(left: State, right: State, momenta: Array) -> bool:
    rho = momenta - 0.5 * (left.p + right.p)
    return bool(left.p @ rho <= 0.0 or right.p @ rho <= 0.0)


def _log_add(a: float, b: float) -> float:
    top = max(a, b)
    return top if top == -math.inf else top + math.log1p(math.exp(min(a, b) - top))
