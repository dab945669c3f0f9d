"""The penalty by tables: its derivatives in the weights and in the mixture, and torch.compile."""

import math

import pytest
import torch
from tabulated import MIXTURES

from swsmix import tables


@pytest.mark.parametrize("name", ["typical", "spiked", "coinciding", "wide"])
def test_gradcheck_of_neg_log_prior(name):
    mixing, mean, std = (each.double()[:5] for each in MIXTURES[name])
    mixture = [
        (mixing / mixing.sum()).requires_grad_(),
        mean.requires_grad_(),
        std.requires_grad_(),
    ]
    w = torch.linspace(-0.4, 0.4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tables.neg_log_prior, (w, *mixture), eps=1e-7, rtol=1e-4)


def test_neg_log_prior_of_many_weights_has_the_twins_gradients():
    mixture = [each.clone().requires_grad_() for each in MIXTURES["typical"]]
    w = (0.1 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = tables.neg_log_prior(w, *mixture)
    found = torch.autograd.grad(2 * loss, [w, *mixture])
    off = w.double()[:, None] - mixture[1].double()
    joint = (
        mixture[0].double().log()
        - mixture[2].double().log()
        - 0.5 * (off / mixture[2].double()) ** 2
    )
    exact = -(joint - 0.5 * math.log(2 * math.pi)).logsumexp(1).sum()
    assert torch.allclose(loss.double(), exact, rtol=1e-6)
    for a, b in zip(found, torch.autograd.grad(2 * exact, [w, *mixture]), strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(b.norm())


def test_zero_mixing_has_a_finite_gradient():
    mixture = [each.clone().requires_grad_() for each in MIXTURES["dead"]]
    tables.neg_log_prior(
        torch.randn(100, generator=torch.Generator().manual_seed(0)), *mixture
    ).backward()
    assert all(bool(each.grad.isfinite().all()) for each in mixture)


def test_there_is_a_graph_only_where_gradients_are_wanted():
    w = torch.zeros(100, requires_grad=True)
    mixture = MIXTURES["typical"]
    assert tables.neg_log_prior(w, *mixture).grad_fn is not None
    with torch.no_grad():
        assert tables.neg_log_prior(w, *mixture).grad_fn is None


# torch.compile itself asks its inputs for their gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_losses_may_call_it():
    mixture = MIXTURES["typical"]

    @torch.compile(backend="eager")
    def loss(w):
        return tables.neg_log_prior(w, *mixture) + (w * 2).square().sum()

    w = (0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (found,) = torch.autograd.grad(loss(w), w)
    assert torch.allclose(found, 8 * w + tables.build(*mixture).gradient(w), rtol=1e-5)
