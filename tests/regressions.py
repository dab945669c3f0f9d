"""Bayesian linear regression, whose posterior and evidence are known in closed form."""

import torch

NOISE = 0.7


def regression(n=40, d=12, seed=0):
    """Linear regression, some directions well determined and some not at all."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, d).double()
    w = 0.8 * torch.randn(d, generator=draw, dtype=torch.float64)
    return x, x @ w + NOISE * torch.randn(n, generator=draw, dtype=torch.float64)


def log_evidence(x, y, std):
    """log p(y | std) of linear regression under N(0, std^2), in closed form."""
    covariance = NOISE**2 * torch.eye(len(x)).double() + std**2 * x @ x.T
    zero = torch.zeros(len(x), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(y).item()


def posterior(x, y, std):
    """Mean and variances of the weights."""
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + torch.eye(x.shape[1]).double() / std**2)
    return covariance @ x.T @ y / NOISE**2, covariance.diagonal()
