"""Values by rate and distortion, against slow twins that try every other choice."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swsmix.compression.entropy_constrained import Codebook, Histogram, fit, histogram
from swsmix.compression.snap import assign


def cost(w, values, lam):
    """Squared error + lambda * order-0 bits of an assignment, by brute force."""

    def of(index):
        n = torch.bincount(index, minlength=len(values)).double()
        share = n[n > 0] / len(w)
        return (w - values[index]).square().sum() - lam * (n[n > 0] @ share.log2())

    return of


def weights(seed, size=300, kind="student"):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(size, generator=generator, dtype=torch.float64)
    if kind == "student":
        w = w / torch.rand(size, generator=generator, dtype=torch.float64).sqrt()
    return w


@pytest.mark.parametrize("lam", [0.003, 0.03, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_choice_of_one_value_or_one_weight_costs_less(lam, seed):
    w = weights(seed)
    book = fit(Histogram(torch.ones(len(w), dtype=torch.float64), w.sort().values), lam)
    index, of = book.assign(w), cost(w, book.values, lam)
    least = of(index)
    price = (w[:, None] - book.values).square() + lam * book.bits
    assert torch.equal(price.argmin(1), index)  # no weight's other choice, at these bits
    for j in range(len(book.values)):
        for step in (1e-4, -1e-4):  # no value's move
            moved = book.values.clone()
            moved[j] += step
            assert cost(w, moved, lam)(index) >= least
        if len(book.values) > 1:  # no value's removal
            other = price.clone()
            other[:, j] = math.inf
            assert of(other.argmin(1)) >= least - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_values_that_cost_their_bits_in_the_codebook_are_fewer_and_worth_it(seed):
    w, lam = weights(seed), 0.03
    cells = Histogram(torch.ones(len(w), dtype=torch.float64), w.sort().values)
    free, paid = (fit(cells, lam, value_bits=bits) for bits in (0.0, 24.0))
    assert len(paid.values) < len(free.values)
    whole = [
        sum(x * y for x, y in zip((lam, 1.0), book.outcome(cells), strict=True))
        + 24.0 * lam * len(book.values)
        for book in (free, paid)
    ]
    assert whole[1] < whole[0]


def test_assignment_is_that_of_the_mixture_and_of_brute_force():
    w = weights(0, 5000)
    book = fit(histogram([w]), 0.05)
    slow = ((w[:, None] - book.values).square() + 0.05 * book.bits).argmin(1)
    assert torch.equal(book.assign(w), slow)
    assert torch.equal(assign(book.mixture(), w), slow)


def test_a_value_nobody_chooses_has_no_boundary():
    book = Codebook(torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 9.0, 1.0]), 0.5)
    book = book._replace(bits=book.bits.double())
    index, cuts = book.boundaries()
    assert index.tolist() == [0, 2] and cuts.tolist() == [1.0]


def test_smaller_lambdas_have_more_bits_and_less_error():
    cells = histogram([weights(1, 20_000)])
    found = [fit(cells, lam).outcome(cells) for lam in torch.logspace(1, -4, 40).tolist()]
    bits, error = zip(*found, strict=True)
    assert list(bits) == sorted(bits) and list(error) == sorted(error)[::-1]


def test_the_histogram_is_exact_in_number_and_sum_and_far_weights_are_their_own_cells():
    w = weights(2, 100_000).float()
    w[::7], w[5], w[6] = 0.0, 1e6, -3e4
    cells = histogram([w[:60_000], w[60_000:]])
    assert cells.size.sum() == len(w) and cells.mean.diff().gt(0).all()
    assert (cells.size @ cells.mean).item() == pytest.approx(w.double().sum().item(), rel=1e-9)
    assert cells.zeros == (w == 0.0).double().mean() > 0.1
    assert cells.mean[-1] == 1e6 and cells.mean[0] == -3e4
    within = (w.abs() < 3.0).sum()
    assert (cells.mean.abs() < 3.0).sum() > 1000
    assert cells.size[cells.mean.abs() < 3.0].sum() == pytest.approx(within.item(), abs=20)


def test_a_start_is_refined_and_never_gets_worse():
    cells = histogram([weights(3, 20_000)])
    coarse = fit(cells, 0.5)
    finer = fit(cells, 0.1, start=coarse)
    assert len(finer.values) <= len(coarse.values)

    def price(book):
        bits, error = book.outcome(cells)
        return error + 0.1 * bits

    assert price(finer) <= price(coarse)


@given(
    st.integers(0, 99),
    st.sampled_from([10, 300, 5000]),
    st.floats(-4.0, 1.0).map(lambda x: 10.0**x),
    st.sampled_from([0.2, 1.0, 4.0]),
    st.booleans(),
    st.sampled_from([0.0, 24.0]),
    st.sampled_from([0.0, 0.3, 3.0]),
)
def test_fitting_again_from_any_values_costs_no_more(seed, size, lam, ratio, zero, paid, shift):
    """The descent is monotone: error + lambda * (bits of the weights and of the values)."""
    cells = histogram([weights(seed, size) + shift])

    def price(book):
        bits, error = book.outcome(cells)
        return error + lam * (bits + paid * len(book.values))

    start = fit(cells, ratio * lam, zero=zero, value_bits=paid)
    again = fit(cells, lam, zero=zero, value_bits=paid, start=start)
    assert price(again) <= price(start) * (1.0 + 1e-6)


def test_one_value_stays_at_zero():
    cells = histogram([weights(4, 20_000) + 0.4])
    for lam in (1e-3, 0.1, 100.0):
        assert (fit(cells, lam, zero=True).values == 0.0).sum() == 1
    far = fit(histogram([weights(4, 20_000) + 4000.0]), 0.1, zero=True).values
    assert (far == 0.0).sum() == 1 and (far != 0.0).any()


@pytest.mark.parametrize("lam", [0.0, -1.0, math.inf, math.nan])
def test_lambda_is_positive(lam):
    with pytest.raises(ValueError, match="lambda must be positive and finite"):
        fit(histogram([torch.zeros(3)]), lam)
