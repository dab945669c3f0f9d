"""Jumps of single weights leave the posterior as it is, and take weights through the gaps."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from joints import FLOAT
from scipy import stats
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, jump_loops, mixture_draws, sample
from swsmix.bayes.jumps import Jumps

HYPER = HyperPrior(mean_count=0.5, std=0.5, std_count=3.0)
MIXING, MEAN, STD = np.array([0.3, 0.7]), np.array([-0.8, 0.4]), np.array([0.3, 0.9])


def _tanh():
    return nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))


def _two_hidden_layers():
    return nn.Sequential(
        nn.Linear(1, 1), nn.Sigmoid(), nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1), nn.Flatten(0)
    )


def _no_biases():
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))


def _acts_on_the_inputs():
    return nn.Sequential(nn.Tanh(), nn.Linear(2, 1), nn.Identity(), nn.Linear(1, 1))


def _joint(make, likelihood="gaussian", *, tau=1.0, groups="global", include=None, exclude=()):
    torch.manual_seed(0)
    net = make().to(FLOAT)
    inputs = next(p for p in net.parameters()).shape[1]
    x = torch.randn(10, inputs, dtype=FLOAT) + 2.0
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
        out = net(x)
    if likelihood == "gaussian":
        y = out + 0.5 * torch.randn_like(out)
    elif likelihood == "binary":
        y = (out > out.median()).to(FLOAT)
    else:
        y = out.argmax(1)
    prior = MixturePrior(
        net, 2, hyper=HYPER, tau=tau, groups=groups, include=include, exclude=exclude,
        initial=GaussianMixture(MIXING.tolist(), MEAN.tolist(), STD.tolist()), zero=False,
    )  # fmt: skip
    return Joint(net, prior, x, y, likelihood=likelihood, other_std=0.5, noise_std=0.5)


CASES = {
    "one hidden layer": lambda: _joint(_tanh),
    "biases under the mixture": lambda: _joint(_tanh, include=["*"]),
    "a tensor under no mixture": lambda: _joint(_tanh, exclude=["2.weight"]),
    "a mixture per tensor, tau 2": lambda: _joint(_tanh, tau=2.0, groups="tensor"),
    "two hidden layers": lambda: _joint(_two_hidden_layers),
    "labels of two classes": lambda: _joint(_no_biases, "categorical"),
    "an activation first, labels 0 and 1": lambda: _joint(_acts_on_the_inputs, "binary"),
}


def _drawn(rng, tau, size):
    """From the mixture's density to the power tau, by its distribution function on a grid."""
    grid = np.linspace(-6.0, 6.0, 4001)
    mass = (stats.norm.pdf(grid[:, None], MEAN, STD) @ MIXING) ** tau
    at = np.interp(rng.random(size), mass.cumsum() / mass.sum(), np.arange(len(grid)))
    return np.interp(at, np.arange(len(grid)), grid)


def _targets(rng, likelihood, out):
    """Targets as a likelihood with outputs (units, n) draws them."""
    if likelihood == "gaussian":
        return out + 0.5 * rng.standard_normal(out.shape)
    if likelihood == "binary":
        return (rng.random(out.shape) < 1.0 / (1.0 + np.exp(-out))).astype(float)
    return np.eye(len(out))[(out + rng.gumbel(size=out.shape)).argmax(0)].T


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("case", CASES)
def test_the_moves_leave_networks_drawn_with_their_data_as_they_are(case, kind, monkeypatch):
    """Geweke's joint test (2004): from p(w) p(y | w), w moved given y is drawn from p(w)."""
    joint, rng = CASES[case](), np.random.default_rng(0)
    layout, jumps = joint.layout, Jumps(joint)
    jumps.rounds, jumps.kinds[:] = [(100, 100, 300)[kind]], False
    jumps.kinds[kind] = True
    monkeypatch.setattr(jumps, "_draw_mixtures_", lambda *_: None)
    evaluate, _ = joint._compiled
    (tau,) = {term.tau for term in joint.terms.values()}
    before, after = [], []
    for _ in range(600):
        z = joint.start()
        theta = z[: layout.num_parameters]
        theta[:] = 0.5 * rng.standard_normal(len(theta))  # of no mixture
        for group in layout.groups:
            index = layout.weight_index(group)
            theta[index] = _drawn(rng, tau, len(index))
        out = evaluate(theta)[0].reshape(len(joint.x), -1).T
        jumps._y = np.ascontiguousarray(_targets(rng, layout.likelihood, out))
        moved = joint.uncentre(jumps(joint.centre(z), rng))[: layout.num_parameters]
        for kept, each in ((before, theta), (after, moved)):
            outputs = evaluate(each)[0].reshape(len(joint.x), -1).T
            fit = jump_loops._log_likelihood(
                ({"gaussian": 0, "categorical": 1, "binary": 2}[layout.likelihood], jumps._y, 4.0),
                np.ascontiguousarray(outputs),
            )
            kept.append([*each, fit, abs(outputs).max()])
    before, after = np.array(before), np.array(after)
    assert (before != after).any()
    for measure in (np.array, np.square, lambda column: np.log(abs(column) + 1e-9)):
        rise = measure(after) - measure(before)  # of a pair, much less than of either
        error = rise.std(0, ddof=1) / np.sqrt(len(rise)) + 1e-12
        assert (abs(rise.mean(0)) < 4.0 * error).all()


def test_all_but_weights_and_mixture_stays():
    joint = CASES["one hidden layer"]()
    z = joint.centre(joint.start())
    moved = Jumps(joint)(z, np.random.default_rng(0))
    weights = np.zeros(len(z), bool)
    for name in ("0.weight", "2.weight"):
        weights[joint.layout.slices[name]] = True
    assert (moved[weights] != z[weights]).all()
    # But the centred biases, by which a unit is scaled.
    other = ~weights
    other[joint.layout.slices["0.bias"]] = False
    for part in joint.layout.mixture_slices["all"]:
        assert (moved[part] != z[part]).all()
        other[part] = False
    np.testing.assert_array_equal(moved[other], z[other])


def test_a_mixture_of_another_strength_than_1_stays():
    joint = CASES["a mixture per tensor, tau 2"]()
    z = joint.centre(joint.start())
    moved = Jumps(joint)(z, np.random.default_rng(0))
    parts = [part for group in joint.layout.mixture_slices.values() for part in group]
    assert (moved != z).any() and all((moved[part] == z[part]).all() for part in parts)


PROGRAM = """
import sys
import numpy as np
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from bayes.test_jumps import CASES
from swsmix.bayes.jumps import Jumps
for case, make in CASES.items():
    joint = make()
    print(repr(Jumps(joint, 3)(joint.centre(joint.start()), np.random.default_rng(1)).tolist()))
"""


def test_compiled_or_not_the_moves_are_the_same():
    pytest.importorskip("numba")
    found = []
    for jit in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(tests=os.path.dirname(__file__))],
            env={**os.environ, "NUMBA_DISABLE_JIT": jit, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append([np.array(eval(line)) for line in run.stdout.splitlines()])
    assert len(found[0]) == len(CASES)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.filterwarnings("ignore::swsmix.bayes.PosteriorWarning", "ignore:the prior has not")
def test_a_weight_passes_the_gap_between_two_components_by_jumps_alone():
    net = nn.Sequential(nn.Linear(1, 1, bias=False)).to(FLOAT)
    x, y = torch.ones(2, 1, dtype=FLOAT), torch.zeros(2, 1, dtype=FLOAT)
    pins = {f"pinned_{name}": [True, True] for name in ("mixing", "mean", "std")}
    mixture = GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.05, 0.05], **pins)
    prior = MixturePrior(net, 2, initial=mixture, zero=False)
    joint = Joint(net, prior, x, y, noise_std=2.0)
    share = {}
    for jumps in (True, False):
        drawn = sample(joint, chains=2, draws=200, warmup=100, seed=0, jumps=jumps, progress=False)
        share[jumps] = (drawn.weights() > 0).double().mean((1, 2)).numpy()
    np.testing.assert_allclose(share[True], 0.5, atol=0.15)
    assert set(share[False]) <= {0.0, 1.0}


def test_networks_that_need_autograd_have_no_jumps():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x):
            return self.linear(x)

    for make in (Own, lambda: nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.ReLU())):
        joint = _joint(make)
        jumps, z = Jumps(joint), joint.centre(joint.start())
        assert jumps.rounds == [] and jumps(z, np.random.default_rng(0)) is z


def test_a_call_never_costs_much_more_than_a_trajectory():
    wide = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    for make, full in ((_tanh, True), (lambda: wide, False)):
        joint = _joint(make)
        weights = sum(p.numel() for p in joint.net.parameters() if p.ndim == 2)
        number = sum(Jumps(joint, 10).rounds)
        assert (number == 10 * weights) is full and number >= 1


PINS = {
    "nothing pinned": {},
    "a mean, a std and a proportion pinned": {
        "pinned_mean": [True, False, False],
        "pinned_std": [False, True, False],
        "pinned_mixing": [True, False, False],
    },
}


@pytest.mark.parametrize("case", PINS)
def test_mixtures_drawn_given_weights_drawn_given_mixtures_have_their_prior(case):
    """Geweke's joint test (2004): from (phi, w) drawn together, phi drawn anew has p(phi)."""
    rng, k = np.random.default_rng(0), 3
    hyper = HyperPrior(concentration=1.5, mean=0.3, mean_count=0.8, std=0.7, std_count=4.0)
    initial = GaussianMixture([0.3, 0.3, 0.4], [0.0, 0.5, -0.5], [0.5, 0.6, 0.7], **PINS[case])
    net = nn.Linear(6, 1, bias=False).to(FLOAT)
    prior = MixturePrior(net, k, hyper=hyper, initial=initial, zero=False)
    joint = Joint(net, prior, torch.randn(3, 6, dtype=FLOAT), torch.randn(3, 1, dtype=FLOAT))
    term = joint.terms["all"]
    free_mixing, free_mean, free_std = term.components.free
    rest, start, found = term.components.rest, [], []
    for _ in range(3000):
        pi, mean, std = (
            getattr(initial, name).numpy().copy() for name in ("mixing", "mean", "std")
        )
        pi[free_mixing] = rest * rng.dirichlet(np.full(len(free_mixing), 1.5))
        std[free_std] = 0.7 * np.sqrt(4.0 / rng.chisquare(4.0, len(free_std)))
        mean[free_mean] = rng.normal(0.3, std[free_mean] / np.sqrt(0.8))
        of = rng.choice(k, 6, p=pi)
        w = rng.normal(mean[of], std[of])
        u = term.basis.T @ np.log(pi[free_mixing])
        before = u, mean[free_mean], 2.0 * np.log(std[free_std])
        for kept, each in (
            (start, before),
            (found, mixture_draws.drawn(term, w, *before, rng)),
        ):
            height, mean, inverse_std = term.at(*each)
            density = np.exp(height - 0.5 * ((w[:, None] - mean) * inverse_std) ** 2).sum(1)
            # How well the mixture suits the weights says that it was drawn given them.
            kept.append(np.concatenate([*each, [np.log(density).sum()]]))
    for one, other in zip(np.array(start).T, np.array(found).T, strict=True):
        assert stats.ks_2samp(one, other, method="asymp").pvalue > 1e-3
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.97, "it was not drawn"
