"""The column loop against dense linear algebra, and what it must never do."""

import itertools
import math

import pytest
import torch

from swsmix.compression import entropy_constrained
from swsmix.compression.compensation import compensate, entropy, factor, refitted
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.layerwise import Piece, compensated


def layer(seed, outputs=7, fan_in=20, rows=200, dtype=torch.float64):
    """Weights, and inputs that are correlated."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(fan_in, fan_in, generator=g, dtype=dtype)
    x = torch.randn(rows, fan_in, generator=g, dtype=dtype) @ mix
    return torch.randn(outputs, fan_in, generator=g, dtype=dtype), x


def book_of(weight, lam):
    return entropy_constrained.fit(entropy_constrained.histogram([weight.reshape(-1)]), lam)


def surgeon(weight, h, book, order):
    """Slow twin: after each column, the exact minimum over those that follow, H inverted anew."""
    w = weight.double().clone()
    quantised = torch.zeros_like(w)
    for number, q in enumerate(order):
        rest = order[number:]
        inverse = torch.linalg.inv(h[rest][:, rest])
        for row in range(len(w)):
            costs = (w[row, q] - book.values) ** 2 / inverse[0, 0] + book.lam * book.bits
            value = book.values[costs.argmin()]
            w[row, rest] -= (w[row, q] - value) / inverse[0, 0] * inverse[:, 0]
            quantised[row, q] = value
    return quantised


@pytest.mark.parametrize("fan_in", [20, 140])  # 140 is more than a block of columns
def test_columns_are_those_of_the_exact_sequential_optimal_brain_surgeon(fan_in):
    weight, x = layer(0, outputs=3, fan_in=fan_in, rows=2 * fan_in)
    h = x.T @ x / len(x)
    book = book_of(weight, 0.05)
    by = factor(h, 0.1)
    unit = h.diagonal().mean()
    damped = (h / unit + 0.1 * torch.eye(fan_in, dtype=torch.float64)) / 1.1
    got = book.values[compensate(weight, by, book, clipped=False).which]
    torch.testing.assert_close(got, surgeon(weight, damped, book, by.order))


def test_columns_with_the_largest_inputs_come_first():
    h = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    assert factor(h, 0.1).order.tolist() == [1, 2, 0]


def test_the_factor_is_that_of_the_damped_inverse():
    _, x = layer(1)
    h = x.T @ x
    by = factor(h, 0.2)
    damped = (h / h.diagonal().mean() + 0.2 * torch.eye(20, dtype=torch.float64)) / 1.2
    inverse = torch.linalg.inv(damped[by.order][:, by.order])
    torch.testing.assert_close(by.upper.T @ by.upper, inverse)
    assert torch.equal(by.upper, by.upper.triu())


def test_blocks_of_a_layer_share_its_unit_and_are_damped_by_their_own_mean():
    _, x = layer(1)
    h = x.T @ x
    mean = h.diagonal().mean()
    by = factor(h, 0.2, unit=5.0 * mean.item())
    damped = (h + 0.2 * mean * torch.eye(20, dtype=torch.float64)) / (1.2 * 5.0 * mean)
    inverse = torch.linalg.inv(damped[by.order][:, by.order])
    torch.testing.assert_close(by.upper.T @ by.upper, inverse)


def test_a_block_whose_inputs_are_always_0_takes_the_cheapest_value():
    weight, _ = layer(2, outputs=30)
    book = book_of(weight, 0.1)
    dead = factor(torch.zeros(20, 20, dtype=torch.float64), 0.1, unit=2.0)
    assert (compensate(weight, dead, book).which == book.bits.argmin()).all()


@pytest.mark.parametrize("scale", [1.0, 17.0, 0.0])
def test_with_the_identity_or_no_inputs_at_all_it_is_plain_quantisation(scale):
    weight, _ = layer(2, outputs=30)
    book = book_of(weight, 0.1)
    done = compensate(weight, factor(scale * torch.eye(20, dtype=torch.float64), 0.1), book)
    assert torch.equal(done.which, book.assign(weight))
    assert torch.equal(done.moved, weight)


def test_it_makes_less_error_than_plain_quantisation_in_nearly_every_layer():
    better = 0
    for seed in range(40):
        weight, x = layer(seed)
        book = book_of(weight, 0.05)
        done = compensate(weight, factor(x.T @ x, 0.1), book)
        errors = [
            ((weight - book.values[index]) @ x.T).square().sum()
            for index in (done.which, book.assign(weight))
        ]
        better += int(errors[0] <= errors[1])
    assert better >= 38


def test_outputs_do_not_depend_on_one_another():
    weight, x = layer(3, dtype=torch.float32)
    book, by = book_of(weight, 0.05), factor(x.T @ x, 0.1)
    whole = compensate(weight, by, book).which
    assert torch.equal(whole[2:4], compensate(weight[2:4], by, book).which)


def test_a_weight_that_the_values_do_not_reach_does_not_wreck_its_row():
    weight, x = layer(4, fan_in=60, rows=400)
    book = book_of(weight, 0.01)
    weight[0, 5] = 100.0
    by = factor(x.T @ x, 0.1)
    others = torch.arange(60) != 5

    def error(index):
        """Of all other weights: the clipped one is lost anyway."""
        change = (weight - book.values[index])[0, others]
        return (x[:, others] @ change).square().sum()

    plain = error(book.assign(weight))
    assert error(compensate(weight, by, book).which) < plain
    assert error(compensate(weight, by, book, clipped=False).which) > 100.0 * plain


def test_values_fitted_again_are_means_and_span_what_they_spanned():
    book = Codebook(
        torch.tensor([-5.0, 0.0, 1.0, 9.0], dtype=torch.float64),
        torch.tensor([9.0, 0.5, 2.0, 9.0], dtype=torch.float64),
        0.1,
    )
    moved = torch.tensor([0.1, -0.3, 0.1, 1.5], dtype=torch.float64)
    new = refitted(book, torch.tensor([1, 1, 1, 2]), moved)
    assert new.values.tolist() == [-5.0, 0.0, 1.5, 9.0]
    assert new.bits.tolist()[1:3] == [pytest.approx(math.log2(4.0 / 3.0)), 2.0]  # shares 3/4, 1/4
    assert new.bits[0] > 2.0  # of no weight
    assert new.lam == book.lam


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lam", [0.01, 0.2, 1.0])
def test_more_passes_never_cost_more(seed, lam):
    """Single passes may: with values fitted to the pass before, error + lambda * bits swings."""
    weight, x = layer(seed, outputs=30, fan_in=40)
    h = x.T @ x / len(x)
    piece = Piece(slice(0, 30), h, h, x.mean(0), None)
    damped = (h / h.diagonal().mean() + 0.1 * torch.eye(40, dtype=torch.float64)) / 1.1
    start = book_of(weight, lam)
    costs = []
    for passes in range(1, 9):
        found = compensated(weight, [piece], start, 0.1, passes)
        assert torch.equal(found.values, found.book.values[found.which])
        d = weight - found.values
        bits = entropy(found.which) * weight.numel()
        costs.append(((d @ damped) * d).sum().item() + lam * bits)
    assert all(b <= a * (1.0 + 1e-12) for a, b in itertools.pairwise(costs))
    assert lam != 0.2 or costs[-1] < 0.99 * costs[0]


def test_entropy_is_in_bits_per_weight():
    assert entropy(torch.tensor([[0, 1], [2, 3]])) == pytest.approx(2.0)
    assert entropy(torch.tensor([7, 7, 7])) == 0.0
