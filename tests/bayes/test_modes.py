"""The evidence summed over modes, where it is known: linear models, enumerated mixtures, copies."""

import itertools
import math

import numpy as np
import pytest
import torch
from joints import FLOAT, conjugate, small
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint
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


def relabelled(joint, z, units, components, sign=1.0):
    """The same network and mixture under other labels."""
    network = joint.layout.network(torch.from_numpy(z))
    network["hidden.weight"] = sign * network["hidden.weight"][units]
    network["hidden.bias"] = sign * network["hidden.bias"][units]
    network["output.weight"] = sign * network["output.weight"][:, units]
    mixing, mean, std = (t[components] for t in joint.layout.mixture(torch.from_numpy(z), "all"))
    mixture = {"all": (mixing, sign * mean, std)}
    return joint.layout.pack(network, mixture, joint.layout.noise(torch.from_numpy(z))).numpy()


def case(k=2, hyper=HYPER, **options):
    net, _, x, y, _ = small()
    prior = MixturePrior(net, k, hyper=hyper, **options)
    return Joint(net, prior, x, y)


def test_copies_are_counted_and_not_found_anew():
    joint = case()
    one = mode_evidence(joint, [joint.start()])
    copies = [relabelled(joint, joint.start(), [2, 0, 1], [1, 0])]
    copies += [relabelled(joint, joint.start(), [0, 2, 1], [0, 1], sign=-1.0)]
    several = mode_evidence(joint, [joint.start(), *copies])
    assert len(several.modes) == 1
    assert several.log_evidence == pytest.approx(one.log_evidence, abs=1e-3)


def log_copies(joint):
    """Of the heaviest mode; and of its units, whether they are alike."""
    (mode,) = mode_evidence(joint, [joint.start()]).modes
    z = torch.from_numpy(joint.uncentre(mode.z))
    return math.exp(mode.log_copies), joint.layout.network(z), joint.layout.mixture(z, "all")


def test_the_number_of_copies_is_that_of_different_labellings():
    for joint, free_signs in ((case(), False), (case(1, zero=True), True)):
        count, network, (mixing, mean, std) = log_copies(joint)
        units = torch.cat([network["hidden.weight"], network["output.weight"].T], 1)
        everything = set()
        k = len(mean)
        signs = itertools.product((1, -1), repeat=3) if free_signs else [(1,) * 3, (-1,) * 3]
        for sign, order, parts in itertools.product(
            list(signs), itertools.permutations(range(3)), itertools.permutations(range(k))
        ):
            turned = units[list(order)] * torch.tensor(sign, dtype=FLOAT)[:, None]
            mirror = 1 if free_signs else sign[0]
            labelled = torch.stack([mixing, mirror * mean, std], 1)[list(parts)]
            found = [*turned.flatten().tolist(), *labelled.flatten().tolist()]
            everything.add(tuple(round(v, 2) + 0.0 for v in found))
        assert count == pytest.approx(len(everything))


def test_what_has_no_evidence_is_refused():
    net, _, x, y, _ = small()
    joint = Joint(net, MixturePrior(net, 2, hyper=HYPER, tau=0.9), x, y)
    with pytest.raises(ValueError, match="tau = 1 alone"):
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
