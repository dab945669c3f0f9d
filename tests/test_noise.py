"""Gaussian noise: torch's likelihood, with a std that must be positive."""

import math

import pytest
import torch

from swsmix import GaussianNoise


def test_gaussian_noise_is_torchs_gaussian_likelihood():
    loss = GaussianNoise(0.7)
    a, b = torch.randn(9, generator=torch.Generator().manual_seed(0)), torch.zeros(9)
    expected = -torch.distributions.Normal(a, 0.7).log_prob(b).mean()
    torch.testing.assert_close(loss(a, b), expected)
    with pytest.raises(ValueError, match=r"one shape; got \(9,\) and \(3, 3\)"):
        loss(a, b.view(3, 3))


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_noise_wants_a_positive_std(std):
    with pytest.raises(ValueError, match="std must be positive"):
        GaussianNoise(std)
