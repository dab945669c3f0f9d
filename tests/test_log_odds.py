"""Log odds against mpmath, out to the largest float; and what they are made of."""

import itertools
import math

import mpmath
import pytest
import torch

from swsmix._log_odds import LogSum, log_odds, log_or_nothing, standardised

FLOAT = torch.float64
LARGEST = torch.finfo(FLOAT).max
PLACES = [0.0, -0.3, 40.0, -1e100, LARGEST, 0.6 * LARGEST, -0.4 * LARGEST]


def odds_of(w, mean, std, level):
    mean, std = torch.tensor(mean, dtype=FLOAT), torch.tensor(std, dtype=FLOAT)
    w = torch.tensor(w, dtype=FLOAT)[:, None]
    return log_odds(w, standardised(w, mean, std), level, mean, std)


@pytest.mark.parametrize("std", [*itertools.product([1e-12, 1.0, 2.5, 1e300], repeat=2)], ids=str)
def test_components_are_told_apart_wherever_floats_can(std):
    level = torch.tensor([0.7, 0.3], dtype=FLOAT).log() - torch.tensor(std, dtype=FLOAT).log()
    first, second = map(mpmath.mpf, level.tolist())
    for mean in itertools.product(PLACES, repeat=2):
        odds = odds_of(PLACES, mean, std, level)
        assert not odds.isnan().any() and odds.max(-1).values.isfinite().all()
        with mpmath.workdps(700):
            for w, (one, other) in zip(PLACES, odds.tolist(), strict=True):
                z = [(mpmath.mpf(w) - m) / mpmath.mpf(s) for m, s in zip(mean, std, strict=True)]
                exact = first - second - (z[0] - z[1]) * (z[0] + z[1]) / 2
                if max(map(abs, z)) < 1e150:
                    assert abs(one - other - exact) <= 1e-13 * (1 + abs(exact))
                elif abs(abs(z[0]) - abs(z[1])) > 1e-15 * abs(z[0]):
                    assert (one > other) == (exact > 0), (w, mean)


@pytest.mark.parametrize(("w", "mean"), [(0.5, 0.0), (LARGEST, 1.0), (-LARGEST, LARGEST)])
def test_z_has_a_finite_square_and_the_gradient_1_over_std_where_it_is_not_cut_off(w, mean):
    w = torch.tensor([[w]], dtype=FLOAT, requires_grad=True)
    std = torch.tensor([1e-200, 2.0, 1e200], dtype=FLOAT, requires_grad=True)
    z = standardised(w, torch.full((3,), mean, dtype=FLOAT), std)
    z.sum().backward()
    assert (0.5 * z * z).isfinite().all()
    cut_off = z.abs() >= 1.8e154
    assert cut_off[0, 0] and not cut_off[0, 2]
    expected = torch.where(cut_off[0], 0.0, 1 / std.detach()).sum()
    assert w.grad.item() == pytest.approx(expected.item(), rel=1e-12)
    assert std.grad.isfinite().all() and std.grad[0] == 0.0


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 1, 2)])
def test_the_shape_of_the_weights_does_not_matter(shape):
    w = torch.tensor([0.0, 3.0, -1e3, 1e9, 50.0, LARGEST], dtype=FLOAT)[: math.prod(shape) or 1]
    mean, std = torch.tensor([[0.0, 0.5, 2.0], [1.0, 1.0, 0.1]], dtype=FLOAT)
    one_by_one = [
        log_odds(each, standardised(each, mean, std), -std.log(), mean, std) for each in w.split(1)
    ]
    w = w.view(*shape, 1)
    odds = log_odds(w, standardised(w, mean, std), -std.log(), mean, std)
    assert torch.equal(odds, torch.stack(one_by_one).view(*shape, 3))


def test_a_proportion_of_zero_has_the_log_of_nothing_and_no_gradient():
    mixing = torch.tensor([0.25, 0.0], dtype=FLOAT, requires_grad=True)
    log = log_or_nothing(mixing)
    assert log[0] == torch.tensor(0.25, dtype=FLOAT).log() and log[1] == -torch.inf
    (grad,) = torch.autograd.grad(log[0] + log[1].clamp_min(-1.0), mixing)
    assert grad.tolist() == [4.0, 0.0]


def test_log_sums_of_a_batch_have_the_gradients_of_each():
    joint = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=FLOAT)

    def log_sum(row):
        return LogSum.apply(row, row.detach().softmax(-1))

    together = torch.func.vmap(torch.func.grad(log_sum))(joint)
    torch.testing.assert_close(together, joint.softmax(-1))
