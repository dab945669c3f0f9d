"""The posterior: its density against a slow twin and against the prior, and that NUTS draws it."""

import math
import warnings

import numpy as np
import pytest
import reference
import torch
from scipy import stats
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior, nets
from swsmix.bayes import Joint, Posterior, clusters, compare, held_out, loo, sample
from swsmix.bayes.layout import Layout, basis
from swsmix.bayes.trajectory import Metric, State, nuts
from swsmix.em import fit_mixture_

FLOAT = torch.float64
HYPER = HyperPrior(concentration=1.5, mean=0.1, mean_count=0.3, std=0.2, std_count=3.0)


def small(*, groups="global", k=3, seed=0, likelihood="gaussian", tau=1.0, mode="em", **options):
    generator = torch.Generator().manual_seed(seed)
    net = nets.sunspot_net(hidden=3, lags=4, generator=generator, dtype=FLOAT)
    prior = MixturePrior(net, k, groups=groups, hyper=HYPER, tau=tau, mode=mode, **options)
    x = torch.randn(12, 4, generator=generator, dtype=FLOAT)
    y = torch.randn(12, generator=generator, dtype=FLOAT)
    if likelihood == "binary":
        y = (y > 0).double()
    return net, prior, x, y, Joint(net, prior, x, y, likelihood=likelihood)


def twin(joint, z, x, y):
    """log p(data, z) by scipy and loops, from the definition."""
    layout = joint.layout
    at = torch.from_numpy(z)
    network = {n: t.numpy() for n, t in layout.network(at).items()}
    hidden = np.tanh(x.numpy() @ network["hidden.weight"].T + network["hidden.bias"])
    out = hidden @ network["output.weight"][0] + network["output.bias"][0]
    variance = math.exp(z[-1])
    total = stats.norm(out, math.sqrt(variance)).logpdf(y.numpy()).sum()
    scale, count = joint.noise_scale, joint.noise_count
    total += stats.invgamma(count / 2, scale=count * scale**2 / 2).logpdf(variance) + z[-1]
    for group, names in layout.groups.items():
        mixing, mean, std = (t.numpy() for t in layout.mixture(at, group))
        w = np.concatenate([network[n].ravel() for n in names])
        total += reference.log_prob(w, mixing, mean, std).sum()
        total += reference.log_hyper_prior(mixing, mean, std, HYPER)
        # The volumes: numerically, of u -> the first k - 1 proportions.
        u = z[layout.mixture_slices[group][0]]
        columns = []
        for i in range(len(u)):
            step = np.zeros_like(u)
            step[i] = 1e-5
            ends = [basis(len(mixing)) @ (u + s * step) for s in (1, -1)]
            shares = [np.exp(e - e.max()) / np.exp(e - e.max()).sum() for e in ends]
            columns.append((shares[0] - shares[1])[:-1] / 2e-5)
        total += math.log(abs(np.linalg.det(np.stack(columns)))) if len(u) else 0.0
        total += 2.0 * np.log(std).sum()
    biases = [network[n] for n in network if n.endswith("bias")]
    return total + sum(stats.norm(0, joint.other_std).logpdf(b).sum() for b in biases)


def points(joint, num=5, seed=0):
    rng = np.random.default_rng(seed)
    return [joint.start() + 0.3 * rng.standard_normal(joint.layout.size) for _ in range(num)]


@pytest.mark.parametrize("groups", ["global", "tensor"])
def test_the_log_joint_is_its_definition(groups):
    _, _, x, y, joint = small(groups=groups, k=2)
    for z in points(joint):
        wanted = twin(joint, z, x, y)  # the volume, by differences, to 1e-9
        assert joint.log_joint(z)[0] == pytest.approx(wanted, abs=1e-8)


def test_without_the_volume_it_is_its_definition_to_the_last_digits():
    _, _, x, y, joint = small()
    for z in points(joint):
        volume = joint.log_joint(z)[0] - joint.log_joint(z, jacobian=False)[0]
        layout, at = joint.layout, torch.from_numpy(z)
        mixing, _, std = layout.mixture(at, "all")
        # sqrt(k) prod pi: of the softmax of an orthonormal basis; sigma^2 of its logarithm.
        exact = 0.5 * math.log(3) + mixing.log().sum() + 2.0 * std.log().sum() + z[-1]
        assert volume == pytest.approx(float(exact), abs=1e-10)
        by_hand = twin(joint, z, x, y) - joint.log_joint(z, jacobian=False)[0]
        assert by_hand == pytest.approx(float(exact), abs=1e-8)
    z, scale = points(joint)[0], abs(twin(joint, points(joint)[0], x, y))
    without = joint.log_joint(z, jacobian=False)[0]
    mixing, mean, std = (t.numpy() for t in joint.layout.mixture(torch.from_numpy(z), "all"))
    w = z[joint.layout.weight_index("all")]
    prior_terms = reference.log_prob(w, mixing, mean, std).sum()
    prior_terms += reference.log_hyper_prior(mixing, mean, std, HYPER)
    network = joint.layout.network(torch.from_numpy(z))
    out = torch.func.functional_call(joint.net, network, (x,)).detach().numpy()
    data = stats.norm(out, math.exp(0.5 * z[-1])).logpdf(y.numpy()).sum()
    noise = stats.invgamma(0.5, scale=0.5 * joint.noise_scale**2).logpdf(math.exp(z[-1]))
    others = stats.norm(0, joint.other_std).logpdf(z[joint.others]).sum()
    assert without == pytest.approx(prior_terms + data + noise + others, abs=1e-10 * scale)


@pytest.mark.parametrize("likelihood", ["gaussian", "binary"])
@pytest.mark.parametrize("jacobian", [True, False])
def test_the_gradient_is_the_slope(likelihood, jacobian):
    *_, joint = small(likelihood=likelihood, tau=0.7, groups="tensor", k=2)
    rng = np.random.default_rng(1)
    for z in points(joint):
        direction = rng.standard_normal(len(z))
        gradient = joint.log_joint(z, jacobian=jacobian)[1]
        ends = [joint.log_joint(z + s * 1e-6 * direction, jacobian=jacobian)[0] for s in (1, -1)]
        assert gradient @ direction == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("biases", ["outside the prior", "under it"])
def test_centred_coordinates_are_a_shear_of_the_same_density(biases):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False), nn.Linear(2, 1))
    names = "*" if biases == "under it" else "*weight"
    prior = MixturePrior(net.double(), 2, include=names, hyper=HYPER)
    x, y = torch.randn(9, 4).double(), torch.randn(9, 1).double()
    joint, rng = Joint(net, prior, x, y), np.random.default_rng(2)
    for z in points(joint):
        at = joint.centre(z)
        np.testing.assert_allclose(joint.uncentre(at), z, rtol=0.0, atol=1e-12)
        value, gradient = joint.log_joint(at, centred=True)
        assert value == pytest.approx(joint.log_joint(z)[0], rel=1e-12)
        step = 1e-6 * rng.standard_normal(len(z))
        ends = [joint.log_joint(at + s * step, centred=True)[0] for s in (1, -1)]
        assert gradient @ step == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-5)
        near = 1e-6 * np.eye(len(z))
        slopes = [(joint.uncentre(at + e) - joint.uncentre(at - e)) / 2e-6 for e in near]
        assert np.linalg.det(np.stack(slopes)) == pytest.approx(1.0, abs=1e-6)
        network = joint.layout.network(torch.from_numpy(z))
        mean = torch.func.functional_call(joint.net, network, (x,)).mean().item()
        assert at[joint.layout.slices["3.bias"]] == pytest.approx(mean)


def test_pinned_entries_are_no_coordinates_and_never_move():
    net, _, x, y, _ = small()
    prior = MixturePrior(net, 3, zero=True, zero_mixing=0.7, hyper=HYPER)
    joint = Joint(net, prior, x, y)
    assert joint.layout.components["all"].sizes == (1, 2, 3)
    z = torch.from_numpy(np.stack(points(joint)))
    mixing, mean, _ = joint.layout.mixture(z, "all")
    assert (mean[:, 0] == 0.0).all()
    assert (mixing[:, 0] == prior.mixtures["all"].mixing[0]).all()
    assert torch.allclose(mixing.sum(-1), torch.ones(len(z), dtype=FLOAT))
    gradient, rng = joint.log_joint(z[0].numpy())[1], np.random.default_rng(0)
    step = 1e-6 * rng.standard_normal(len(gradient))
    ends = [joint.log_joint(z[0].numpy() + s * step)[0] for s in (1, -1)]
    assert gradient @ step == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-5)


@pytest.mark.parametrize("mode", ["em", "gradient"])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_its_pull_on_the_weights_is_the_penaltys(mode, tau):
    net, prior, _, _, joint = small(tau=tau if tau == 1.0 else {"all": 0.6}, mode=mode)
    (group,) = prior.selection.groups
    z = joint.start()
    term = joint.terms[group]
    u, mu, xi = joint.layout.mixture_slices[group]
    index = joint.layout.weight_index(group)
    value, by_w, _, by_mu, _ = term(z[index], z[u], z[mu], z[xi], jacobian=False)
    penalty = prior.penalty()
    penalty.backward()
    pull = torch.cat([p.grad.reshape(-1) for p in prior.parameters_of(group).values()])
    np.testing.assert_allclose(-by_w, pull.numpy(), rtol=1e-9, atol=1e-10)
    assert -value == pytest.approx(penalty.item(), rel=1e-10)
    if mode == "gradient":
        (mean,) = (p for n, p in prior.named_parameters() if "mean" in n)
        np.testing.assert_allclose(-by_mu, mean.grad.numpy(), rtol=1e-9, atol=1e-10)


def test_em_stands_still_where_the_density_over_pi_and_variance_does():
    net, prior, _, _, _ = small()
    w = prior.flat_weights("all")
    (mixture,) = prior.mixtures.values()
    fit_mixture_(mixture, w, prior.hyper_priors["all"], max_steps=20_000, tolerance=1e-13)
    joint = Joint(net, prior, torch.randn(5, 4).double(), torch.randn(5).double())
    z, at = joint.start(), slice(joint.layout.num_parameters, -1)
    assert np.abs(joint.log_joint(z, jacobian=False)[1][at]).max() < 1e-6
    assert np.abs(joint.log_joint(z)[1][at]).max() > 0.1  # the density over z peaks elsewhere


def test_layers_by_hand_are_autograds():
    net = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 3, bias=False), nn.Sigmoid()),
        nn.Linear(3, 2), nn.Tanh(),
    ).double()  # fmt: skip
    prior = MixturePrior(net, 3, hyper=HYPER)
    x, y = torch.randn(7, 4).double(), torch.randn(7, 2).double()
    by_hand = Joint(net, prior, x, y)
    net.register_forward_hook(lambda *_: None)  # any hook: no longer a plain network
    by_autograd = Joint(net, prior, x, y)
    for z in points(by_hand):
        a, b = by_hand.log_joint(z), by_autograd.log_joint(z)
        assert a[0] == pytest.approx(b[0], rel=1e-12)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"zero": True, "zero_mixing": 0.7}])
@pytest.mark.parametrize("k", [2, 3])
def test_the_compiled_term_is_the_plain_one(monkeypatch, options, k):
    from swsmix.bayes import density

    *_, joint = small(k=k, tau=0.8, **options)
    fast = [joint.log_joint(z, jacobian=j) for z in points(joint) for j in (True, False)]
    plain = density.mixture_at, density.mixture_sums, density.with_hyper_prior
    monkeypatch.setattr(density, "_fastest", lambda: plain)
    slow = [joint.log_joint(z, jacobian=j) for z in points(joint) for j in (True, False)]
    for (value, gradient), (wanted, by_hand) in zip(fast, slow, strict=True):
        assert value == pytest.approx(wanted, rel=1e-12)
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-9, atol=1e-10)


def test_the_pyro_program_has_the_same_density():
    from pyro import poutine

    from swsmix.bayes.program import program, sites_of, z_of

    net, _, x, y, _ = small()
    for options in ({"zero": True, "zero_mixing": 0.6}, {"groups": "tensor"}):
        prior = MixturePrior(net, 3, hyper=HYPER, **options)
        joint = Joint(net, prior, x, y)
        for z in points(joint):
            sites = sites_of(joint, torch.from_numpy(z))
            trace = poutine.trace(poutine.condition(program(joint), sites)).get_trace(x, y)
            wanted = joint.log_joint(z, jacobian=False)[0]
            assert float(trace.log_prob_sum()) == pytest.approx(wanted, rel=1e-12)
            np.testing.assert_allclose(z_of(joint, sites).numpy(), z, rtol=1e-12, atol=1e-12)


def test_a_layout_survives_a_file_and_packs_what_it_unpacks():
    net, prior, _, _, joint = small(groups="tensor", k=2)
    layout = Layout.from_plain(joint.layout.to_plain())
    assert layout == joint.layout
    z = torch.from_numpy(np.stack(points(joint)))
    mixtures = {g: layout.mixture(z, g) for g in layout.groups}
    assert torch.allclose(layout.pack(layout.network(z), mixtures, layout.noise(z)), z)


# -- the sampler ----------------------------------------------------------------------------------


def test_nuts_draws_a_gaussian_with_both_metrics():
    covariance = np.array([[1.0, 0.9], [0.9, 2.0]])
    precision = np.linalg.inv(covariance)

    def potential(z):
        return 0.5 * float(z @ precision @ z), precision @ z

    for metric in (np.array([1.0, 2.0]), covariance):
        rng = np.random.default_rng(3)
        state = State(np.zeros(2), np.zeros(2), *potential(np.zeros(2)))
        found = []
        for _ in range(1500):
            state = nuts(potential, state, step=0.6, metric=Metric.of(metric), rng=rng).state
            found.append(state.z)
        found = np.array(found)
        np.testing.assert_allclose(found.mean(0), 0.0, atol=0.15)
        np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.3)
        # A mutant that takes the last state of every trajectory has far too large tails.
        assert (np.abs(found[:, 0]) > 2.0).mean() == pytest.approx(0.0455, abs=0.02)


def conjugate():
    """Linear regression under one fixed Gaussian: the posterior is known."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 2, generator=generator, dtype=FLOAT)
    y = x @ torch.tensor([0.5, -0.3], dtype=FLOAT) + 0.4 * torch.randn(
        20, generator=generator, dtype=FLOAT
    )
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0)).double()
    gaussian = GaussianMixture(
        [1.0], [0.2], [0.5], pinned_mixing=[True], pinned_mean=[True], pinned_std=[True]
    )
    prior = MixturePrior(net, initial=gaussian, hyper=HYPER)
    prior.em_step_()
    joint = Joint(net, prior, x, y, noise_std=0.4)
    precision = x.T @ x / 0.4**2 + torch.eye(2, dtype=FLOAT) / 0.5**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (x.T @ y / 0.4**2 + 0.2 / 0.5**2)
    return net, x, y, joint, mean, covariance


def test_the_posterior_of_a_linear_model_is_the_closed_form():
    net, x, y, joint, mean, covariance = conjugate()
    drawn = sample(joint, chains=2, draws=700, warmup=150, seed=1, progress=False)
    w = drawn.weights().flatten(0, 1)
    # Sums in another order, from wherever the arrays lie in memory, change a long chain: the
    # tolerances are five standard errors, not this seed's luck.
    assert torch.allclose(w.mean(0), mean, atol=0.025)
    assert torch.allclose(w.T.cov(), covariance, atol=4e-3)
    new = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=FLOAT)
    predicted = drawn.predict(net, new, quantiles=(0.05, 0.95))
    std = (torch.einsum("ni,ij,nj->n", new, covariance, new) + 0.4**2).sqrt()
    wide = predicted.quantiles[0.95] - predicted.quantiles[0.05]
    assert torch.allclose(wide, 2 * 1.645 * std, rtol=0.08)
    assert drawn.divergences == 0
    found = drawn.summary(("weights", drawn.weights()))
    assert found["R-hat of weights"] < 1.02 and found["ESS of weights"] > 300
    # PSIS-LOO against the exact predictive densities, case by case
    approximate, exact = loo(drawn.log_likelihood(net, x, y)), []
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        inverse = torch.linalg.inv(x[rest].T @ x[rest] / 0.16 + torch.eye(2).double() / 0.25)
        centre = inverse @ (x[rest].T @ y[rest] / 0.16 + 0.2 / 0.25)
        spread = math.sqrt(float(x[i] @ inverse @ x[i]) + 0.16)
        exact.append(stats.norm(float(x[i] @ centre), spread).logpdf(float(y[i])))
    np.testing.assert_allclose(approximate.pointwise, exact, atol=0.1)
    assert approximate.elpd == pytest.approx(sum(exact), abs=0.3)
    assert approximate.num_unreliable == 0


def test_pyros_own_nuts_can_use_the_potential():
    from pyro.infer import MCMC, NUTS

    *_, joint, mean, _ = conjugate()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = {"z": torch.from_numpy(joint.start())}
        mcmc = MCMC(
            NUTS(potential_fn=joint.potential_fn), 200, 60, initial_params=start,
            disable_progbar=True,
        )  # fmt: skip
        mcmc.run()
    assert torch.allclose(mcmc.get_samples()["z"].mean(0), mean, atol=0.06)


def test_a_known_mixture_is_recovered_from_weights_that_it_made():
    generator = torch.Generator().manual_seed(0)
    truth = GaussianMixture([0.7, 0.3], [0.0, 1.0], [0.05, 0.2])
    w = truth.sample(150, generator=generator)
    net = nn.Linear(150, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(w[None])
    prior = MixturePrior(net, 2, hyper=HyperPrior(mean_count=0.01, std=0.1))
    for _ in range(20):
        prior.em_step_()
    # One case a weight, hardly any noise: the posterior of the weights is where they were.
    x, y = torch.eye(150, dtype=FLOAT), w[:, None]
    joint = Joint(net, prior, x, y, noise_std=0.01)
    drawn = sample(joint, chains=1, draws=120, warmup=150, max_depth=6, progress=False)
    for name, wanted, slack in (
        ("mixing", [0.7, 0.3], 0.1), ("mean", [0.0, 1.0], 0.1), ("std", [0.05, 0.2], 0.06),
    ):  # fmt: skip
        found = getattr(drawn.mixture(), name).flatten(0, 1)
        np.testing.assert_allclose(found.mean(0), wanted, atol=slack)
        low, high = found.quantile(0.005, 0), found.quantile(0.995, 0)
        true = torch.tensor(wanted, dtype=FLOAT)
        assert ((low < true) & (true < high)).all()
    count = clusters(drawn)
    assert count.probabilities() == {2: 1.0}
    assert float(count.effective.mean()) == pytest.approx(math.exp(0.611), abs=0.15)


def test_labels_are_sorted_by_mean_and_nothing_else_changes():
    *_, joint = small()
    z = torch.from_numpy(np.stack(points(joint, 8))).view(2, 4, -1)
    drawn = Posterior(z, joint.layout)
    mixing, mean, std = drawn.mixture()
    assert (mean.diff(dim=-1) >= 0).all()
    raw = joint.layout.mixture(z, "all")
    w = torch.linspace(-1, 1, 20, dtype=FLOAT)[:, None, None, None]

    def density(pi, mu, sigma):
        return (pi * torch.distributions.Normal(mu, sigma).log_prob(w).exp()).sum(-1)

    assert torch.allclose(density(mixing, mean, std), density(*raw))


def test_arviz_gets_the_draws_under_its_own_names():
    net, _, x, y, joint = small(likelihood="binary")
    z = torch.from_numpy(np.stack(points(joint, 8))).view(2, 4, -1)
    steps = {"diverged": torch.arange(8).view(2, 4) == 3, "accept": torch.rand(2, 4)}
    drawn = Posterior(z, joint.layout, steps)
    likelihood = drawn.log_likelihood(net, x, y)
    tree = drawn.to_arviz(log_likelihood=likelihood)
    found = tree["posterior"]
    for name, wanted in (drawn.network | {"all.std": drawn.mixture().std}).items():
        np.testing.assert_array_equal(found[name].to_numpy(), wanted.numpy())
    assert (np.diff(found["all.mean"].to_numpy(), axis=-1) >= 0).all()
    assert "noise_std" not in found  # labels have none
    np.testing.assert_array_equal(tree["sample_stats"]["diverging"].to_numpy(), steps["diverged"])
    np.testing.assert_array_equal(tree["log_likelihood"]["y"].to_numpy(), likelihood)
    *_, regression = small()
    noisy = Posterior(
        torch.from_numpy(np.stack(points(regression, 8))).view(2, 4, -1), regression.layout
    )
    np.testing.assert_allclose(
        noisy.to_arviz()["posterior"]["noise_std"].to_numpy(),
        (0.5 * noisy.z[..., -1]).exp().numpy(),
    )


# -- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_refused_and_the_message_says_how_to_mend_it():
    net, prior, x, y, _ = small()
    nan = x.clone()
    nan[0, 0] = math.nan
    cases = [
        (lambda: Joint(nets.shift_net(), prior, x, y), "another network"),
        (lambda: Joint(net, prior, x[:0], y[:0]), "as many targets; got 0 and 0"),
        (lambda: Joint(net, prior, x, y[:3]), "got 12 and 3"),
        (lambda: Joint(net, prior, x, y[0]), "a single number"),
        (lambda: Joint(net, prior, x[:, :2], y), r"does not take inputs of shape \(12, 2\)"),
        (lambda: Joint(net, prior, x.long(), y), "does not take inputs of .* torch.int64"),
        (lambda: Joint(net, prior, nan, y), "inputs hold 1 nan"),
        (lambda: Joint(net, prior, x, y * math.inf), "targets hold"),
        (lambda: Joint(net, prior, x, y[:, None]), r"nn.Flatten\(0\)"),
        (lambda: Joint(net, prior, x, y, likelihood="binary"), "targets 0 and 1"),
        (lambda: Joint(net, prior, x, y, likelihood="categorical"), "class numbers"),
        (lambda: Joint(net, prior, x, y, likelihood="poisson"), "'gaussian', 'categorical'"),
        (lambda: Joint(net, prior, x, y, noise_std=-1.0), "noise_std must be positive"),
        (lambda: Joint(net, MixturePrior(net, 2), x, y), "HyperPrior\\(mean=0, mean_count=0.1"),
        (lambda: Joint(net, MixturePrior(net, 2, hyper=HYPER, tau=0.0), x, y), "tau of group"),
        (lambda: Joint(net, MixturePrior(net, 2, hyper=HYPER, tau=0.1), x, y), "std_count > 27"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    bad = nets.sunspot_net(hidden=3, lags=4, dtype=FLOAT)
    good = MixturePrior(bad, 2, hyper=HYPER)
    with torch.no_grad():
        bad.hidden.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"hidden\.weight holds nan"):
        Joint(bad, good, x, y)
    with pytest.warns(UserWarning, match="fitted to another network of the same shapes"):
        Joint(nets.sunspot_net(hidden=3, lags=4, dtype=FLOAT), prior, x, y)


def test_labels_and_cases_that_do_not_fit_are_refused():
    net, x, y = nn.Linear(2, 3).double(), torch.randn(8, 2).double(), torch.arange(8) % 3
    prior = MixturePrior(net, 2, hyper=HYPER)
    joint = Joint(net, prior, x, y, likelihood="categorical")
    drawn = Posterior(torch.from_numpy(joint.start())[None, None], joint.layout)
    for labels in (y + 1, y - 1):  # the largest would be read past the outputs, -1 as the last
        for call in (
            lambda labels=labels: Joint(net, prior, x, labels, likelihood="categorical"),
            lambda labels=labels: drawn.log_likelihood(net, x, labels),
        ):
            with pytest.raises(ValueError, match="class numbers from 0 to 2; got"):
                call()
    with pytest.raises(ValueError, match="got 8 and 5"):  # not the first five
        drawn.log_likelihood(net, x, y[:5])
    with pytest.raises(ValueError, match="does not take inputs"):
        drawn.predict(net, x[:, :1])
    with pytest.raises(ValueError, match="num must be at least 1"):
        drawn.thinned(0)


def test_an_untrained_prior_and_a_long_run_are_warned_about(monkeypatch):
    from swsmix.bayes import nuts as module

    *_, joint = small()
    with pytest.warns(UserWarning, match="has not taken an EM step"):
        sample(joint, chains=1, draws=1, warmup=20, max_depth=1, progress=False)
    monkeypatch.setattr(module, "_LONG_SECONDS", 1e-3)
    with pytest.warns(UserWarning, match=r"NUTS on .* hours: use swsmix.bayes.fit_guide"):
        module.warn_if_long(joint, joint.start(), 8000, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(module, "_LONG_SECONDS", 1e9)
        module.warn_if_long(joint, joint.start(), 8000, 1)


def test_settings_of_the_sampler_are_checked():
    *_, joint, _, _ = conjugate()
    for options, message in (
        ({"chains": 0}, "chains must be at least 1"),
        ({"warmup": 3}, "warmup must be at least 20"),
        ({"target_accept": 1.0}, "between 0 and 1"),
        ({"metric": "full"}, "'diagonal' or 'dense'; got 'full'"),
        ({"start": np.zeros(7)}, "start wants 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(joint, progress=False, **options)


def interruption():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:  # what numba makes of one inside a compiled function
        raise SystemError("returned a result with an exception set") from error


def plain_interruption():
    raise KeyboardInterrupt


@pytest.mark.parametrize("raises", [plain_interruption, interruption])
def test_an_interruption_keeps_the_finished_draws(monkeypatch, raises):
    from swsmix.bayes import nuts as module

    *_, joint, _, _ = conjugate()
    whole = sample(joint, chains=3, draws=40, warmup=30, seed=4, progress=False)
    plain = module._in_turn

    def broken(*args):
        for number, step in enumerate(plain(*args)):
            if number == 3 * 30 + 3 * 17 + 1:  # two chains have 17 draws, one 18
                raises()
            yield step

    monkeypatch.setattr(module, "_in_turn", broken)
    with pytest.warns(UserWarning, match="interrupted: 3 of 3 chains with 17 of 40 draws"):
        kept = sample(joint, chains=3, draws=40, warmup=30, seed=4, progress=False)
    assert torch.equal(kept.z, whole.z[:, :17])
    with pytest.raises(KeyboardInterrupt):
        sample(joint, chains=3, draws=40, warmup=60, seed=4, progress=False)


def test_another_error_of_compiled_code_is_no_interruption(monkeypatch):
    from swsmix.bayes import nuts as module

    *_, joint, _, _ = conjugate()

    def broken(*_):
        raise SystemError("not the user's")
        yield

    monkeypatch.setattr(module, "_in_turn", broken)
    with pytest.raises(SystemError, match="not the user's"):
        sample(joint, chains=1, draws=4, warmup=20, progress=False)


def test_a_trajectory_that_overflows_has_diverged_and_stays_where_it_was():
    def cliff(z):  # all is well at 0; a step away the gradient's square is beyond float64
        return float(np.abs(z).sum()), 1e200 * z

    rng = np.random.default_rng(0)
    at = State(np.zeros(2), np.zeros(2), *cliff(np.zeros(2)))
    drawn = nuts(cliff, at, step=1.0, metric=Metric(np.ones(2)), rng=rng)
    assert drawn.diverged and drawn.accept == 0.0
    assert (drawn.state.z == 0.0).all()


def test_chains_are_functions_of_the_seed_alone_in_one_process_or_two():
    *_, joint, _, _ = conjugate()
    state = torch.random.get_rng_state()
    runs = [
        sample(joint, chains=2, draws=10, warmup=20, seed=s, processes=p, progress=False).z
        for s, p in ((1, 1), (1, 2), (2, 1))
    ]
    assert torch.allclose(runs[0], runs[1], rtol=0.0, atol=1e-6)
    assert not torch.allclose(runs[0], runs[2], rtol=0.0, atol=1e-2)
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(torch.random.get_rng_state(), state)


# -- files, evidence ------------------------------------------------------------------------------


def test_a_posterior_survives_its_file_and_damage_is_an_error(tmp_path):
    net, x, _, joint, *_ = conjugate()
    drawn = sample(joint, chains=2, draws=20, warmup=20, progress=False)
    path = tmp_path / "posterior.safetensors"
    drawn.save(path)
    back = Posterior.load(path)
    assert torch.equal(back.z, drawn.z) and back.layout == drawn.layout
    assert back.about == drawn.about and back.steps.keys() == drawn.steps.keys()
    assert torch.equal(back.predict(net, x).mean, drawn.predict(net, x).mean)
    whole = path.read_bytes()
    swapped = whole.replace(b"gaussian", b"gaussiam")
    for damaged in (b"", whole[:100], whole[:-9], b"x" + whole[1:], swapped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|not a posterior"):
            Posterior.load(path)
    with pytest.raises(FileNotFoundError):
        Posterior.load(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a posterior"):
        Posterior.load(path)
    with pytest.raises(ValueError, match="the posterior is over a network with"):
        drawn.predict(nets.shift_net(), x)


def test_held_out_density_and_comparison_are_the_formulas():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2, 60, 9, generator=generator, dtype=FLOAT)
    value = held_out(draws)
    by_hand = draws.exp().mean((0, 1)).log()
    np.testing.assert_allclose(value.pointwise, by_hand, rtol=1e-12)
    assert value.se == pytest.approx(3.0 * float(by_hand.std()))
    rows = compare({"a": held_out(draws - 1.0), "b": value})
    assert [r.name for r in rows] == ["b", "a"]
    assert rows[1].difference == pytest.approx(-9.0) and rows[1].se == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="same cases"):
        compare({"a": held_out(draws), "b": held_out(draws[..., :4])})
    with pytest.raises(ValueError, match="nan or inf"):
        loo(draws * math.nan)


def test_labels_are_predicted_with_probabilities():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator, dtype=FLOAT)
    y = (x[:, 0] > 0).long()
    net = nn.Linear(2, 2).double()
    prior = MixturePrior(net, 2, hyper=HYPER)
    prior.em_step_()
    joint = Joint(net, prior, x, y, likelihood="categorical")
    drawn = sample(joint, chains=1, draws=100, warmup=40, max_depth=4, progress=False)
    predicted = drawn.predict(net, x)
    assert torch.allclose(predicted.mean.sum(-1), torch.ones(60, dtype=FLOAT))
    assert (predicted.mean.argmax(-1) == y).double().mean() > 0.9
    assert drawn.log_likelihood(net, x, y).shape == (1, 100, 60)
    assert predicted.samples.shape == (100, 60) and predicted.quantiles == {}
