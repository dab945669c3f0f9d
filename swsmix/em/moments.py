"""What the E step sums up: the expected sufficient statistics of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The expected sufficient statistics of a mixture, centred and in float64.

        N_j = sum_i gamma_ij,  first_j = sum_i gamma_ij (w_i - c_j),
        second_j = sum_i gamma_ij (w_i - c_j)^2

    They add up over tensors and over machines. They are centred on c (the means at the E step),
    since raw moments lose the variance to cancellation once sigma is small. Those of an ensemble
    have a leading axis of members, (b, k).

    Attributes:
        centre: c (k,), in units of the weights.
        count: N_j (k,), the expected number of weights of each component.
        first: first centred moment (k,).
        second: second centred moment (k,).

    Example:
        >>> from swsmix import GaussianMixture, e_step
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> e_step(mixture, torch.tensor([0.0, 0.1, 1.0])).count
        tensor([2., 1.], dtype=torch.float64)
    """

    centre: Float[Tensor, "*b k"]
    count: Float[Tensor, "*b k"]
    first: Float[Tensor, "*b k"]
    second: Float[Tensor, "*b k"]

    def recentred(self, centre: Float[Tensor, "*b k"]) -> Moments:
        """The same moments about other centres, exactly.

        Returns:
            Moments with `centre` as their centre.
        """
        shift = centre - self.centre
        second = self.second - 2.0 * shift * self.first + shift.square() * self.count
        return Moments(centre, self.count, self.first - shift * self.count, second)

    def __add__(self, other: Moments) -> Moments:
        """Pool the moments of two sets of weights, about this one's centres."""
        other = other.recentred(self.centre)
        return Moments(
            self.centre,
            self.count + other.count,
            self.first + other.first,
            self.second + other.second,
        )

    def damped(self, new: Moments, rate: float) -> Moments:
        """Running moments, s <- (1 - rate) s + rate s_new (Cappe & Moulines 2009).

        Moments about different means do not add, hence the old ones are recentred first.

        Args:
            new: the fresh moments.
            rate: rho in (0, 1]; 1 forgets the old ones.

        Returns:
            The running moments, about the new ones' centres.

        Raises:
            ValueError: if the rate is outside (0, 1].
        """
        if not 0.0 < rate <= 1.0:
            raise ValueError(f"the rate of the running moments must lie in (0, 1]; got {rate}")
        old = self.recentred(new.centre)
        return Moments(
            new.centre,
            torch.lerp(old.count, new.count, rate),
            torch.lerp(old.first, new.first, rate),
            torch.lerp(old.second, new.second, rate),
        )
