"""Decision regions agree with the responsibilities that they stand for."""

from fractions import Fraction

import cases
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from swsmix.mixture import GaussianMixture
from swsmix.tables.regions import decision_regions


def agree(mixture, w):
    """The claimed component is as responsible as the most responsible one, up to rounding."""
    regions = decision_regions(mixture)
    joint = mixture.log_joint(w.to(mixture.mean)).double()
    claimed = joint.gather(-1, regions.assign(w)[:, None])[:, 0]
    best = joint.max(-1).values
    torch.testing.assert_close(claimed, best, rtol=1e-9, atol=1e-9)
    assert torch.equal(
        regions.count(w), torch.bincount(regions.assign(w), minlength=len(mixture.mean))
    )
    assert (regions.component[1:] != regions.component[:-1]).all()


@pytest.mark.parametrize("name", cases.mixtures())
def test_regions_give_each_weight_its_most_responsible_component(name):
    far = torch.tensor([-1e6, 1e6, 0.0], dtype=torch.float64)
    agree(cases.mixtures()[name], torch.cat([cases.weights(5000), far]))


values = st.lists(
    st.tuples(st.floats(0.01, 1.0), st.floats(-2.0, 2.0), st.floats(1e-3, 3.0)),
    min_size=1,
    max_size=9,
)


@given(values)
@example([(1.0, 0.0, 1.0), (1.0, 0.0, 2.0), (0.5, 7e-186, 1.0)])
@example([(1.0, 0.0, 1.0), (1.0, 0.0, 2.9999999999999996), (1.0, 1.0, 3.0)])
def test_regions_of_any_mixture(components):
    mixing, mean, std = torch.tensor(components, dtype=torch.float64).T
    agree(GaussianMixture(mixing / mixing.sum(), mean, std), torch.linspace(-9, 9, 3001).double())


def twin(mixture, w):
    """The first of the most responsible components, one weight at a time, in exact fractions.

    Without logarithms: all components have the same mixing proportion and std.
    """
    means = [Fraction(m) for m in mixture.mean.double().tolist()]
    rows = [[abs(Fraction(v) - m) for m in means] for v in w.double().tolist()]
    return torch.tensor([row.index(min(row)) for row in rows])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_first_of_equally_responsible_components_claims_a_weight(dtype, order):
    means = torch.tensor([-1.0, 0.0, 0.5, 2.0])[order]
    mixture = GaussianMixture([0.25] * 4, means, [0.125] * 4)
    w = torch.tensor([-0.5, 0.25, 1.25]).to(dtype)  # half way
    assert torch.equal(decision_regions(mixture).assign(w), twin(mixture, w))
    w = torch.linspace(-3, 3, 1001).to(dtype)
    assert torch.equal(decision_regions(mixture).assign(w), twin(mixture, w))


@pytest.mark.parametrize("std", [1e-9, 1e-12, 1e-30])
def test_weights_far_out_go_to_the_nearest_of_equal_components(std):
    mixture = GaussianMixture([0.25] * 4, torch.tensor([1e-3, -1e-3, 0.1, -0.2]), [std] * 4)
    largest = torch.finfo(torch.float32).max
    w = torch.tensor([-largest, -1.0, -1e-4, 1e-4, 0.04, 1.0, 1e30, largest])
    assert (w.abs() / std).max() > 1e9
    assert torch.equal(decision_regions(mixture).assign(w), twin(mixture, w))


@pytest.mark.parametrize("exponent", [-900, -130, 120, 900])
def test_a_mixture_of_any_magnitude_has_the_regions_of_the_one_near_1(exponent):
    mixture, unit = cases.mixtures()["typical"], 2.0**exponent
    scaled = GaussianMixture(mixture.mixing, unit * mixture.mean, unit * mixture.std)
    one, other = decision_regions(mixture), decision_regions(scaled)
    assert torch.equal(one.component, other.component)
    torch.testing.assert_close(other.boundaries / unit, one.boundaries, rtol=1e-12, atol=0.0)


def test_neighbouring_floats_on_both_sides_of_a_boundary_go_to_both_sides():
    mixture = GaussianMixture([0.3, 0.7], [0.1, 0.7], [0.05, 0.2])
    regions = decision_regions(mixture)
    for b in regions.boundaries.float():
        near = torch.stack([b.nextafter(b - 1), b, b.nextafter(b + 1)])
        exact = regions.assign(near.double())
        assert torch.equal(regions.assign(near), exact) and exact[0] != exact[-1]


def test_a_dead_component_claims_nothing_and_a_wide_one_both_tails():
    mixture = GaussianMixture([0.5, 0.0, 0.5], [0.0, 0.0, 0.1], [0.1, 9.0, 1.0])
    regions = decision_regions(mixture)
    assert regions.component.tolist() == [2, 0, 2]
    assert regions.count(torch.tensor([-8.0, 0.0, 0.01, 8.0])).tolist() == [2, 0, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_claimed_by_no_component(dtype, bad):
    regions = decision_regions(cases.mixtures()["typical"])
    for call in (regions.assign, regions.count):
        with pytest.raises(ValueError, match="1 of 2 are nan or inf"):
            call(torch.tensor([0.0, bad], dtype=dtype))


@pytest.mark.parametrize("least", [2e-322, 1e-200, 1e-12])
def test_a_tiny_std_hides_no_boundary_of_the_others(least):
    mixture = GaussianMixture([0.3, 0.3, 0.4], [0.0, 0.0, 0.7], [0.1, 1e4, least])
    w = torch.tensor([0.0, 5.0, -1e9], dtype=torch.float64)
    assert decision_regions(mixture).assign(w).tolist() == [0, 1, 1]


@pytest.mark.parametrize("mean", [1.0, -1.0, 1e200, 3.0000000000000004])
def test_a_component_narrower_than_the_distance_of_floats_claims_its_mean(mean):
    mixture = GaussianMixture([0.5, 0.5], [mean, 0.0], [1e-30 * abs(mean), abs(mean)])
    w = torch.tensor([mean], dtype=torch.float64)
    w = torch.cat([w, torch.nextafter(w, -w), torch.nextafter(w, 2 * w)])
    assert decision_regions(mixture).assign(w).tolist() == [0, 1, 1]
