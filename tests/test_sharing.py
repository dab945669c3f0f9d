from inspect import unwrap  # users see our errors, not the shape checker's of the tests

import cases
import pytest
import torch
from torch.nn.functional import one_hot

from swsmix import GaussianMixture, sharing_penalty

W = torch.tensor([0.9, 1.2, -0.5, -0.8], dtype=torch.float64)
MEAN = torch.tensor([1.0, -0.7], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 1, 1])


def test_the_worked_example_of_four_weights_in_two_groups():
    w = W.clone().requires_grad_()
    expected = (
        (w[0] - MEAN[0]) ** 2
        + (w[1] - MEAN[0]) ** 2
        + (w[2] - MEAN[1]) ** 2
        + (w[3] - MEAN[1]) ** 2
    )
    penalty = sharing_penalty(w, MEAN, GROUPS)
    torch.testing.assert_close(penalty, expected)
    # L' = L + lambda R: each weight is pulled to its own centre.
    (gradient,) = torch.autograd.grad(0.5 * penalty, w)
    torch.testing.assert_close(gradient, w.detach() - MEAN[GROUPS])


def test_hard_memberships_are_one_hot_soft_ones():
    soft = one_hot(GROUPS, 2).double()
    torch.testing.assert_close(sharing_penalty(W, MEAN, GROUPS), sharing_penalty(W, MEAN, soft))


@pytest.mark.parametrize("name", cases.mixtures())
def test_with_responsibilities_held_it_has_the_mixture_penaltys_gradient(name):
    mixture = cases.mixtures()[name]
    w = cases.weights().requires_grad_()
    gamma = mixture.responsibilities(w).detach()
    variance = mixture.std.square()
    majoriser = sharing_penalty(
        w, mixture.mean, gamma, distance=lambda w, mean: (w - mean).square() / (2.0 * variance)
    )
    (found,) = torch.autograd.grad(majoriser, w)
    (expected,) = torch.autograd.grad(-mixture.log_prob(w).sum(), w)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_majoriser_lies_above_the_penalty_and_touches_it():
    mixture, w0 = cases.mixtures()["typical"], cases.weights(50)
    gamma = mixture.responsibilities(w0)

    def majoriser(w):
        d = sharing_penalty(
            w, mixture.mean, gamma, distance=lambda w, m: (w - m).square() / (2 * mixture.std**2)
        )
        at_start = sharing_penalty(
            w0, mixture.mean, gamma, distance=lambda w, m: (w - m).square() / (2 * mixture.std**2)
        )
        return d - at_start - mixture.log_prob(w0).sum()

    torch.testing.assert_close(majoriser(w0), -mixture.log_prob(w0).sum())
    for seed in range(20):
        w = w0 + 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
        assert majoriser(w) >= -mixture.log_prob(w).sum()


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("squared", 4.0 + 0.25), ("absolute", 2.0 + 0.5), ("huber", 1.5 + 0.125)],
)
def test_distances_have_their_names_values(distance, expected):
    w, mean = torch.tensor([2.0, 0.5]), torch.tensor([0.0, 9.0])
    found = sharing_penalty(w, mean, torch.tensor([0, 0]), distance=distance)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("memberships", "message"),
    [
        (torch.tensor([[0.5, 0.4]] * 4), "sum to 1"),
        (torch.tensor([[1.5, -0.5]] * 4), "non-negative"),
        (torch.tensor([[float("nan"), 1.0]] * 4), "sum to 1"),
        (torch.ones(3, 2) / 2, "need shape"),
        (torch.tensor([0, 1]), "one group number per weight"),
        (torch.tensor([0, 1, 2, 0]), "between 0 and 1"),
    ],
)
def test_bad_memberships_are_refused_with_the_reason(memberships, message):
    with pytest.raises(ValueError, match=message):
        unwrap(sharing_penalty)(W.float(), MEAN.float(), memberships)


def test_an_unknown_distance_is_refused_with_the_legal_ones():
    with pytest.raises(ValueError, match="squared"):
        unwrap(sharing_penalty)(W, MEAN, GROUPS, distance="euclid")


def test_responsibilities_of_a_mixture_are_accepted_in_single_precision():
    mixture = GaussianMixture(torch.full((16,), 1 / 16), torch.linspace(-1, 1, 16), torch.ones(16))
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert sharing_penalty(w, mixture.mean, mixture.responsibilities(w)) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", ["squared", "absolute", "huber"])
def test_a_far_centre_without_membership_costs_nothing(dtype, distance):
    largest = torch.finfo(dtype).max
    w = torch.tensor([largest, -largest, 0.5], dtype=dtype, requires_grad=True)
    mean = torch.tensor([-largest, largest], dtype=dtype, requires_grad=True)
    for groups in (torch.tensor([1, 0, 1]), one_hot(torch.tensor([1, 0, 1]), 2).to(dtype)):
        near = sharing_penalty(w[:2], mean, groups[:2], distance=distance)
        assert near == 0.0
        assert all((g == 0).all() for g in torch.autograd.grad(near, [w, mean]))
        far = sharing_penalty(w, mean, groups, distance=distance)
        assert far > 0 and not any(g.isnan().any() for g in torch.autograd.grad(far, [w, mean]))


def test_a_membership_of_zero_keeps_its_own_gradient_where_distances_are_finite():
    gamma = torch.tensor([[1.0, 0.0]], requires_grad=True)
    sharing_penalty(torch.tensor([0.0]), torch.tensor([0.0, 3.0]), gamma).backward()
    assert gamma.grad.tolist() == [[0.0, 9.0]]
