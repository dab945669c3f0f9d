"""The noise model of regression: Gaussian, its variance learned with the weights."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """The mean negative log likelihood of Gaussian noise whose variance is learned.

        -log p(y | x) = (y - f(x))^2 / (2 sigma_y^2) + log(sigma_y^2) / 2 + log(2 pi) / 2

    The loss for regression that fits a prior's penalty: a plain mean squared error is no
    likelihood. sigma_y is adapted together with the weights (Nowlan & Hinton 1992, section 3).

    Args:
        std: the initial sigma_y, in units of the targets.
        learned: whether it is a parameter; give it to your optimiser then (`fit` tells you).

    Raises:
        ValueError: if std is not positive.

    Example:
        >>> loss = GaussianNoise(0.5)
        >>> round(loss(torch.zeros(2), torch.tensor([0.5, -0.5])).item(), 4)
        0.7258
    """

    log_variance: Tensor

    def __init__(self, std: float = 1.0, *, learned: bool = True) -> None:
        super().__init__()
        if not std > 0.0:
            raise ValueError(f"std must be positive; got {std}")
        start = torch.tensor(2.0 * math.log(std), dtype=torch.float32, device="cpu")
        self.log_variance = nn.Parameter(start, requires_grad=learned)

    def forward(self, prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
        """The mean over the batch, in nats per predicted number.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes differ.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction and target need one shape; got {tuple(prediction.shape)} and "
                f"{tuple(target.shape)}"
            )
        error = (prediction - target).square() / self.log_variance.exp()
        return 0.5 * (error.mean() + self.log_variance + math.log(2.0 * math.pi))

    @property
    def std(self) -> float:
        """sigma_y, in units of the targets."""
        return math.exp(0.5 * self.log_variance.item())
