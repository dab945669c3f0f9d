import cases
import numpy as np
import pytest
import reference
import torch
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.em import e_step, log_hyper_prior
from swsmix.prior import evaluation


def net(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(cases.weights(p.numel() + 3, seed)[3:].view_as(p))
            p.add_(0.01 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


MODES = pytest.mark.parametrize("mode", ["em", "gradient"])
GROUPS = pytest.mark.parametrize("groups", ["global", "tensor", {"a": "0.weight", "b": "2.*"}])


@MODES
@GROUPS
def test_the_penalty_is_the_naive_sum_over_its_groups(mode, groups):
    prior = MixturePrior(net(), 4, groups=groups, mode=mode, tau=0.5)
    expected = 0.0
    for group, mixture in prior.mixtures.items():
        w = prior.flat_weights(group)
        expected += 0.5 * (-mixture.log_prob(w).sum()).item()
        expected += 0.5 * -log_hyper_prior(mixture, prior.hyper_priors[group]).item()
    assert prior.penalty().item() == pytest.approx(expected, rel=1e-10)
    terms = prior.terms()
    assert prior.penalty().item() == pytest.approx(
        0.5 * sum((t["nll"] + t["hyper_prior"]).item() for t in terms.values()), rel=1e-12
    )


@MODES
@GROUPS
def test_an_evaluation_is_the_penalty_its_terms_and_the_moments_bit_for_bit(mode, groups):
    prior = MixturePrior(net(), 4, groups=groups, mode=mode, tau=0.3)
    state = prior.evaluate()
    assert torch.equal(state.penalty, prior.penalty())
    assert not state.penalty.requires_grad
    assert state.terms.keys() == state.moments.keys() == prior.mixtures.keys()
    for group, terms in prior.terms().items():
        assert state.terms[group].keys() == terms.keys()
        assert all(torch.equal(state.terms[group][name], terms[name]) for name in terms)
        w, mixture = prior.flat_weights(group), prior.mixtures[group]
        alone = e_step(mixture, w)
        for name in ("centre", "count", "first", "second"):
            moment = getattr(state.moments[group], name)
            assert torch.equal(moment, getattr(prior.moments(group), name))
            torch.testing.assert_close(moment, getattr(alone, name), rtol=1e-10, atol=1e-12)


@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_evaluation_adds_up_large_and_small_tensors_of_any_type(mode, dtype, monkeypatch):
    monkeypatch.setattr(evaluation, "_SMALL", 50)  # one tensor above, one below
    prior = MixturePrior(net(dtype=dtype), 4, mode=mode)
    state = prior.evaluate()
    assert torch.equal(state.penalty, prior.penalty())
    assert state.moments["all"].count.sum().item() == pytest.approx(104)


@MODES
def test_an_evaluation_of_weights_that_are_not_finite_names_the_tensor(mode):
    model = net()
    prior = MixturePrior(model, 3, mode=mode)
    with torch.no_grad():
        model[2].weight[0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"1 of the 8 weights of 2.weight are nan or inf"):
        prior.evaluate()


@MODES
def test_the_penaltys_gradient_is_the_responsibility_weighted_pull(mode):
    model = net()
    prior = MixturePrior(model, 4, include="0.weight", mode=mode)
    prior.penalty().backward()
    m = prior.mixtures["all"]
    w = model[0].weight.detach().flatten().tolist()
    expected = reference.pull(w, m.mixing.tolist(), m.mean.tolist(), m.std.tolist())
    np.testing.assert_allclose(model[0].weight.grad.flatten(), expected, rtol=1e-8, atol=1e-8)
    assert model[2].weight.grad is None


def test_in_gradient_mode_the_mixtures_gradients_are_autograds_of_the_naive_penalty():
    prior = MixturePrior(net(), 4, mode="gradient", zero=True)
    (mixture,) = prior.mixtures.values()
    naive = -mixture.log_prob(prior.flat_weights("all")).sum()
    naive = naive - log_hyper_prior(mixture, prior.hyper_priors["all"])
    parameters = list(prior.parameters())
    expected = torch.autograd.grad(naive, parameters)
    found = torch.autograd.grad(prior.penalty(), parameters)
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-7, atol=1e-7)


def test_prmls_four_gradients_hold():
    # Bishop & Bishop 2024, section 9.4.1, without the hyper-prior.
    prior = MixturePrior(net(), 3, mode="gradient")
    nll = prior.terms()["all"]["nll"]
    (mixture,) = prior.mixtures.values()
    w, mu, s, pi = prior.flat_weights("all"), mixture.mean, mixture.std, mixture.mixing
    gamma = mixture.responsibilities(w)
    off = w[:, None] - mu
    raw = mixture.parametrizations
    logits, mean, log_variance = (raw[n].original for n in ("mixing", "mean", "std"))
    found = torch.autograd.grad(nll, [logits, mean, log_variance])
    torch.testing.assert_close(found[0], (pi - gamma).sum(0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[1], (-gamma * off / s**2).sum(0), rtol=1e-8, atol=1e-8)
    expected = 0.5 * (gamma * (1.0 - off**2 / s**2)).sum(0)
    torch.testing.assert_close(found[2], expected, rtol=1e-8, atol=1e-8)


@GROUPS
def test_em_steps_lower_the_penalty_and_leave_the_network_alone(groups):
    model = net()
    prior = MixturePrior(model, 4, groups=groups, method="spread")
    before = {n: p.clone() for n, p in model.named_parameters()}
    values = [prior.penalty().item()]
    for _ in range(10):
        prior.em_step_()
        values.append(prior.penalty().item())
    assert (np.diff(values) <= 1e-9 * abs(values[0])).all() and values[-1] < values[0] - 1.0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_global_mixture_sees_all_tensors_and_one_a_tensor_only_its_own():
    model = net()
    together, apart = MixturePrior(model, 3), MixturePrior(model, 3, groups="tensor")
    assert together.moments("all").count.sum().item() == pytest.approx(104)
    assert apart.moments("0.weight").count.sum().item() == pytest.approx(96)
    assert apart.moments("2.weight").count.sum().item() == pytest.approx(8)


def test_it_never_touches_the_network():
    model = net()
    names = list(model.state_dict())
    modules = list(model.modules())
    prior = MixturePrior(model, 3)
    prior.em_step_()
    assert list(model.state_dict()) == names and list(model.modules()) == modules
    assert model not in list(prior.modules())
    assert not any("weight" in key for key in prior.state_dict())
    assert list(prior.parameters()) == []  # in mode "em" the mixtures are buffers


@MODES
def test_state_dicts_round_trip_with_weights_only(mode, tmp_path):
    prior = MixturePrior(net(), 4, groups="tensor", mode=mode, zero=True, zero_mixing=0.5)
    if mode == "em":
        prior.em_step_()
    torch.save(prior.state_dict(), tmp_path / "prior.pt")
    other = MixturePrior(net(), 4, groups="tensor", mode=mode, zero=True, method="spread")
    other.load_state_dict(torch.load(tmp_path / "prior.pt", weights_only=True))
    assert torch.equal(other.penalty(), prior.penalty())
    for group in prior.mixtures:
        assert torch.equal(prior.hyper_priors[group].mean, other.hyper_priors[group].mean)


def test_damping_averages_moments_over_em_steps():
    model = net()
    fresh, damped = (MixturePrior(model, 3, method="quantiles") for _ in range(2))
    for prior in (fresh, damped):
        prior.em_step_()
    with torch.no_grad():
        model[0].weight.add_(0.5)
    fresh.em_step_()
    damped.em_step_(rate=0.1)
    start = MixturePrior(net(), 3, method="quantiles")
    start.em_step_()
    moved = (fresh.mixtures["all"].mean - start.mixtures["all"].mean).abs().max()
    crept = (damped.mixtures["all"].mean - start.mixtures["all"].mean).abs().max()
    assert 0.0 < crept < 0.5 * moved


def test_responsibilities_come_by_tensor_and_sum_to_one():
    prior = MixturePrior(net(), 4)
    gamma = prior.responsibilities()
    assert {n: tuple(g.shape) for n, g in gamma.items()} == {
        "0.weight": (8, 12, 4),
        "2.weight": (1, 8, 4),
    }
    for g in gamma.values():
        torch.testing.assert_close(g.sum(-1), torch.ones_like(g[..., 0]))


def test_describe_names_what_is_in_and_what_is_out():
    model = net()
    model[2].weight.requires_grad_(False)
    text = MixturePrior(model, 3).describe()
    assert "0.weight" in text and "8x12" in text and "96" in text
    assert "left out: 2.weight (frozen)" in text
    shares = [float(v) for v in text.splitlines()[2].rstrip(" %").split()[-3:]]
    assert sum(shares) == pytest.approx(100.0, abs=0.2)


def test_explicit_mixtures_and_pins_are_kept():
    initial = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1], pinned_mean=[True, False])
    prior = MixturePrior(net(), initial=initial)
    prior.em_step_()
    assert prior.mixtures["all"].mean[0] == 0.0 and prior.mixtures["all"].mean[1] != 1.0
    assert initial.mean.tolist() == [0.0, 1.0]


def test_the_gradient_flows_through_tied_and_non_contiguous_weights():
    model = nn.Linear(6, 4).double()
    model.weight = nn.Parameter(model.weight.detach().t().contiguous().t())
    prior = MixturePrior(model, 2)
    prior.penalty().backward()
    m = prior.mixtures["all"]
    w = model.weight.detach().requires_grad_()
    (expected,) = torch.autograd.grad(-m.log_prob(w).sum(), w)
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-8, atol=1e-8)


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "at least 1"),
        ({"num_components": 105}, "'all' .104 weights, K = 105."),
        ({"num_components": 9, "groups": "tensor"}, "'2.weight' .8 weights, K = 9..*groups="),
        ({"tau": -1.0}, "tau of group 'all' must be finite and at least 0; got -1"),
        ({"tau": {"b": 1.0}}, "no entry for the group 'all'"),
        ({"hyper": HyperPrior(std=torch.ones(3))}, "one per component"),
    ],
)
def test_impossible_priors_are_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=message):
        MixturePrior(net(), **{"num_components": 4, **options})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_leave_the_mixture_as_it_was(bad):
    model = net()
    prior = MixturePrior(model, 3)
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    with torch.no_grad():
        model[2].weight[0, 3] = bad
    with pytest.raises(ValueError, match=r"1 of the 8 weights of 2.weight are nan or inf"):
        prior.em_step_()
    after = prior.state_dict()
    assert all(torch.equal(after[k], v) or v.isnan().all() for k, v in before.items())
    with pytest.raises(ValueError, match="nan or inf"):
        MixturePrior(model, 3)


def test_em_steps_are_refused_in_gradient_mode():
    with pytest.raises(RuntimeError, match="mode='em'"):
        MixturePrior(net(), 3, mode="gradient").em_step_()


def test_a_state_dict_of_other_groups_is_refused():
    saved = MixturePrior(net(), 3).state_dict()
    with pytest.raises(ValueError, match="make it with the same groups="):
        MixturePrior(net(), 3, groups="tensor").load_state_dict(saved)


def test_a_state_dict_of_another_number_of_components_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        MixturePrior(net(), 3).load_state_dict(MixturePrior(net(), 4).state_dict())


def test_a_saved_hyper_prior_outside_its_range_is_refused():
    saved = MixturePrior(net(), 3).state_dict()
    name = next(each for each in saved if each.endswith("hyper_std"))
    saved[name] = -saved[name]
    with pytest.raises(ValueError, match="std of a HyperPrior must be > 0"):
        MixturePrior(net(), 3).load_state_dict(saved)


def test_a_mixture_on_another_device_than_its_weights_is_refused():
    model = net()
    prior = MixturePrior(model, 3)
    prior.to("meta")
    with pytest.raises(ValueError, match=r"call prior.to\('cpu'\)"):
        prior.em_step_()


def test_penalty_weighs_each_group_by_its_own_tau():
    prior = MixturePrior(net(), 3, groups="tensor", tau={"0.weight": 2.0, "2.weight": 0.5})
    parts = {g: (t["nll"] + t["hyper_prior"]).item() for g, t in prior.terms().items()}
    expected = 2.0 * parts["0.weight"] + 0.5 * parts["2.weight"]
    assert prior.penalty().item() == pytest.approx(expected, rel=1e-12)


def test_any_group_name_is_kept_apart_and_round_trips():
    names = ["a/b", "a.b", "a%2Eb", "keys", "training", ""]
    model = nn.ModuleDict({f"l{i}": nn.Linear(5, 5) for i in range(len(names))})
    groups = {name: f"l{i}.weight" for i, name in enumerate(names)}
    sizes = {name: i + 2 for i, name in enumerate(names)}
    prior = MixturePrior(model, sizes, groups=groups)
    assert {g: m.num_components for g, m in prior.mixtures.items()} == sizes
    prior.em_step_()
    other = MixturePrior(model, sizes, groups=groups)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.penalty(), prior.penalty())


def test_statistics_stay_in_float64_whatever_the_prior_is_cast_to():
    prior = MixturePrior(net(), 3)
    prior.em_step_()
    prior.float()
    assert prior.mixtures["all"].mean.dtype == torch.float32
    prior.em_step_(rate=0.5)
    assert prior.state_dict()["groups.[all].running_count"].dtype == torch.float64


def test_a_trainable_mixture_starts_an_em_prior_as_a_plain_copy():
    learned = MixturePrior(net(), 3, mode="gradient").mixtures["all"]
    prior = MixturePrior(net(), initial=learned)
    mean = prior.mixtures["all"].mean.clone()
    prior.em_step_()
    assert list(prior.parameters()) == [] and not torch.equal(prior.mixtures["all"].mean, mean)
    again = MixturePrior(net(), initial=learned, mode="gradient")
    torch.testing.assert_close(again.mixtures["all"].mean, learned.mean)


def test_a_mixture_with_all_mixing_pinned_has_a_finite_penalty():
    initial = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1], pinned_mixing=[True, True])
    assert torch.isfinite(MixturePrior(net(), initial=initial).penalty())


@pytest.mark.parametrize("rate", [0.0, -1.0, 2.0, float("nan")])
def test_rates_outside_zero_to_one_are_refused(rate):
    with pytest.raises(ValueError, match=r"lie in \(0, 1\]"):
        MixturePrior(net(), 3).em_step_(rate)


def test_a_state_dict_of_the_other_mode_and_empty_groups_are_refused():
    with pytest.raises(ValueError, match="saved with mode='gradient'"):
        MixturePrior(net(), 3).load_state_dict(MixturePrior(net(), 3, mode="gradient").state_dict())
    with pytest.raises(ValueError, match="groups is empty"):
        MixturePrior(net(), 3, groups={})
