"""Decision regions agree with the responsibilities that they stand for."""

import cases
import pytest
import torch
from hypothesis import example, given, settings
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


@settings(max_examples=60, deadline=None)
@given(values)
@example([(1.0, 0.0, 1.0), (1.0, 0.0, 2.0), (0.5, 7e-186, 1.0)])
def test_regions_of_any_mixture(components):
    mixing, mean, std = torch.tensor(components, dtype=torch.float64).T
    agree(GaussianMixture(mixing / mixing.sum(), mean, std), torch.linspace(-9, 9, 3001).double())


def test_a_dead_component_claims_nothing_and_a_wide_one_both_tails():
    mixture = GaussianMixture([0.5, 0.0, 0.5], [0.0, 0.0, 0.1], [0.1, 9.0, 1.0])
    regions = decision_regions(mixture)
    assert regions.component.tolist() == [2, 0, 2]
    assert regions.count(torch.tensor([-8.0, 0.0, 0.01, 8.0])).tolist() == [2, 0, 2]
