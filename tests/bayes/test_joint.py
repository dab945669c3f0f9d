"""The posterior's density, against a slow twin and against the prior."""

import math

import numpy as np
import pytest
import reference
import torch
from joints import FLOAT, HYPER, points, small
from scipy import stats
from torch import nn

from swsmix import MixturePrior
from swsmix.bayes import Joint, density
from swsmix.bayes.layout import Layout, basis
from swsmix.em import fit_mixture_
from swsmix.problems import nets


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


def test_the_likelihood_of_classes_is_their_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(9, 4, generator=generator, dtype=FLOAT)
    y = torch.randint(4, (9,), generator=generator)
    value, by_logits = density.categorical(logits.numpy(), y.numpy())
    loss = nn.functional.cross_entropy(logits.requires_grad_(), y, reduction="sum")
    loss.backward()
    assert -value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(-by_logits, logits.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_the_formulas_stay_finite_far_from_all_components_and_at_extreme_proportions():
    all_of = np.arange(2)
    at = (np.array([2000.0]), np.array([0.0, 1.0]), np.zeros(2))
    free = (all_of, all_of, all_of, basis(2))
    height, mean, _, inverse_std, log_share = density.mixture_at(*at, free, (np.zeros(2),) * 3, 0.0)
    assert np.logaddexp(*log_share) == pytest.approx(0.0, abs=1e-12)
    assert abs(log_share[0] - log_share[1]) == pytest.approx(2000.0 * math.sqrt(2.0))
    w = np.array([60.0, -50.0])
    value, by_w, count, *_ = density.mixture_sums(w, height, mean, inverse_std)
    nearest = int(log_share.argmax())
    assert value == pytest.approx(stats.norm(mean[nearest], 1.0).logpdf(w).sum())
    np.testing.assert_allclose(by_w, mean[nearest] - w)
    assert count[nearest] == 2.0


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
def test_the_compiled_term_is_the_one_in_numpy(monkeypatch, options, k):
    from swsmix.bayes import mixture_term

    *_, joint = small(k=k, tau=0.8, **options)
    fast = [joint.log_joint(z, jacobian=j) for z in points(joint) for j in (True, False)]
    in_numpy = density.mixture_at, density.mixture_sums, density.with_hyper_prior
    monkeypatch.setattr(mixture_term, "_fastest_formulas", lambda: in_numpy)
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
    layout = Layout.from_dict(joint.layout.to_dict())
    assert layout == joint.layout
    z = torch.from_numpy(np.stack(points(joint)))
    mixtures = {g: layout.mixture(z, g) for g in layout.groups}
    assert torch.allclose(layout.pack(layout.network(z), mixtures, layout.noise(z)), z)


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
