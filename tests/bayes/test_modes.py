"""The evidence summed over modes, where it is known: linear models, enumerated mixtures, copies."""

import itertools
import math

import numpy as np
import pytest
import torch
from joints import FLOAT, conjugate, small
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, modes
from swsmix.bayes.modes import mode_evidence

HYPER = HyperPrior(mean_count=0.3, std=0.3, std_count=6.0)
NORMAL = torch.distributions.MultivariateNormal


def pinned(mixing, mean, std):
    pins = dict.fromkeys(("pinned_mixing", "pinned_mean", "pinned_std"), [True] * len(mixing))
    return GaussianMixture(mixing, mean, std, **pins)


def linear(mixture, n=30, d=4, noise=0.3, seed=3):
    """Linear regression under a fixed mixture, and its evidence: every assignment is a Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=FLOAT)
    w = torch.tensor([0.0, 1.0, 0.05, 0.95], dtype=FLOAT)[:d]
    y = x @ w + noise * torch.randn(n, generator=generator, dtype=FLOAT)
    terms, (pi, mu, sigma) = (
        [],
        (mixture.mixing.double(), mixture.mean.double(), mixture.std.double()),
    )
    for owner in itertools.product(range(len(pi)), repeat=d):
        own = torch.tensor(owner)
        spread = noise**2 * torch.eye(n, dtype=FLOAT) + x @ sigma[own].square().diag() @ x.T
        terms.append(pi[own].log().sum() + NORMAL(x @ mu[own], spread).log_prob(y))
    net = nn.Linear(d, 1, bias=False).double()
    prior = MixturePrior(net, initial=mixture, hyper=HYPER)
    joint = Joint(net, prior, x, y[:, None], noise_std=noise)
    return joint, torch.stack(terms).logsumexp(0).item()


def test_of_linear_regression_it_is_exact_whatever_the_starts():
    _, x, y, joint, *_ = conjugate()
    spread = 0.4**2 * torch.eye(20, dtype=FLOAT) + 0.5**2 * x @ x.T
    exact = NORMAL(0.2 * x.sum(1), spread).log_prob(y).item()
    starts = [joint.start(), joint.start() + 3.0, joint.start() - 1.0]
    found = mode_evidence(joint, starts, draws=200)
    assert found.log_evidence == pytest.approx(exact, abs=1e-5)
    assert len(found.modes) == 1 and found.num_lost == 0 and found.pareto_k == -math.inf


@pytest.mark.parametrize(
    ("std", "slack"),
    [(0.05, 0.02), (0.2, 0.25)],  # far apart, each assignment is a mode; near, they run together
)
def test_of_a_mixture_of_linear_models_it_is_the_enumerated_evidence(std, slack):
    joint, exact = linear(pinned([0.6, 0.4], [0.0, 1.0], [std, std]))
    starts = [np.array(owner, dtype=float) for owner in itertools.product((0, 1), repeat=4)]
    found = mode_evidence(joint, starts, draws=200)
    assert found.log_evidence == pytest.approx(exact, abs=slack)
    again = mode_evidence(joint, starts + starts[::5], draws=200)  # a mode does not count twice
    assert again.log_evidence == pytest.approx(found.log_evidence)
    if len(found.modes) > 1:  # one that no start leads to is missing
        assert mode_evidence(joint, starts[:1], draws=200).log_evidence < found.log_evidence - 1.0


def case(mixture):
    net, _, x, y, _ = small()
    return Joint(net, MixturePrior(net, initial=mixture, hyper=HYPER), x, y)


ONE_SIDED = pinned([0.6, 0.4], [0.0, 0.6], [0.3, 0.2])
SYMMETRIC = pinned([0.5, 0.5], [-0.6, 0.6], [0.3, 0.3])


@pytest.mark.parametrize(
    ("mixture", "sign"), [(ONE_SIDED, 1.0), (SYMMETRIC, -1.0)], ids=["one-sided", "symmetric"]
)
def test_copies_are_counted_and_not_found_anew(mixture, sign):
    joint = case(mixture)
    start = torch.from_numpy(joint.start())
    one = mode_evidence(joint, [start.numpy()], draws=200)
    network = {name: t.clone() for name, t in joint.layout.network(start).items()}
    order, signs = [2, 0, 1], torch.tensor([1.0, sign, sign], dtype=FLOAT)
    network["hidden.weight"] = signs[:, None] * network["hidden.weight"][order]
    network["hidden.bias"] = signs * network["hidden.bias"][order]
    network["output.weight"] = signs * network["output.weight"][:, order]
    held = {"all": joint.layout.mixture(start, "all")}
    other = joint.layout.pack(network, held, joint.layout.noise(start)).numpy()
    assert np.abs(other - start.numpy()).max() > 0.1
    both = mode_evidence(joint, [start.numpy(), other], draws=200)
    assert len(both.modes) == 1
    assert both.log_evidence == pytest.approx(one.log_evidence, abs=1e-3)


def labellings(joint, z, free):
    """How many different networks the orders of three units, and their signs if free, make."""
    network = joint.layout.network(torch.from_numpy(z))
    units = torch.cat([network["hidden.weight"], network["output.weight"].T], 1)
    units = torch.cat([units, network["hidden.bias"][:, None]], 1)
    signs = itertools.product((1, -1), repeat=3) if free else [(1,) * 3]
    different = set()
    for sign, order in itertools.product(list(signs), itertools.permutations(range(3))):
        turned = units[list(order)] * torch.tensor(sign, dtype=FLOAT)[:, None]
        different.add(tuple(round(v, 2) + 0.0 for v in turned.flatten().tolist()))
    return len(different)


@pytest.mark.parametrize("mixture", [ONE_SIDED, SYMMETRIC, pinned([1.0], [0.0], [0.05])])
def test_the_number_of_copies_is_that_of_different_labellings(mixture):
    joint = case(mixture)
    (mode,) = mode_evidence(joint, [joint.start()], draws=200).modes
    count = labellings(joint, joint.uncentre(mode.z), mixture is not ONE_SIDED)
    assert math.exp(mode.log_copies) == pytest.approx(count)


@pytest.mark.parametrize("mixture", [ONE_SIDED, SYMMETRIC])
@pytest.mark.parametrize("second", [1.0, -1.0, 0.0])
def test_units_that_are_alike_have_no_order(mixture, second):
    joint = case(mixture)
    z = joint.start()
    for name, axis in (("hidden.weight", 0), ("hidden.bias", 0), ("output.weight", 1)):
        values = z[joint.layout.slices[name]].reshape(joint.layout.parameters[name])
        units = np.moveaxis(values, axis, 0)  # a view
        units[1] = second * units[0]
    found = modes._log_copies(joint, joint.centre(z), joint.log_joint(z)[0])
    count = labellings(joint, z, mixture is SYMMETRIC)
    assert math.exp(found) == pytest.approx(count)


def test_what_has_no_evidence_is_refused():
    net, _, x, y, _ = small()
    for options, message in (
        ({"initial": ONE_SIDED, "tau": 0.9}, "tau = 1 alone"),
        ({"num_components": 2}, "mixtures that are held: with their stds free"),
    ):
        joint = Joint(net, MixturePrior(net, hyper=HYPER, **options), x, y)
        with pytest.raises(ValueError, match=message):
            mode_evidence(joint, [joint.start()])


def test_a_start_from_another_network_is_its_own():
    net, prior, x, y, joint = small()
    other, its_prior, *_, theirs = small(seed=5)
    np.testing.assert_array_equal(joint.start_at(net, prior), joint.start())
    z = joint.start_at(other, its_prior)
    found = joint.layout.network(torch.from_numpy(z))
    torch.testing.assert_close(found["hidden.weight"], other.hidden.weight.detach())
    rms = (other(x) - y).square().mean().sqrt().item()
    assert float(joint.layout.noise(torch.from_numpy(z))) == pytest.approx(rms)
    assert not np.allclose(z, joint.start())
