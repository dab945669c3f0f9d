import cases
import numpy as np
import pytest
import reference
import torch
from em_starts import HYPERS, converged, objective, start
from sklearn.mixture import GaussianMixture as ScikitMixture

from swsmix import GaussianMixture, HyperPrior, e_step, initial_mixture, m_step_
from swsmix.em import Moments, fit_mixture_, log_hyper_prior, steps


def test_em_stops_where_it_stands_still():
    mixture, w = start(2), cases.weights()
    assert fit_mixture_(mixture, w, HyperPrior(), max_steps=900, tolerance=1e-6) < 900
    assert fit_mixture_(mixture, w, HyperPrior(), tolerance=1e-6) == 1


def test_when_a_mixture_stands_still_does_not_depend_on_the_unit_of_the_weights():
    w = torch.randn(500, generator=torch.Generator().manual_seed(0)).double() ** 3
    taken = set()
    for unit in (2.0**-20, 1.0, 2.0**20):
        start = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.3 * unit, 2.0 * unit]]).double()
        mixture = GaussianMixture(*start)
        taken.add(fit_mixture_(mixture, unit * w, None, tolerance=1e-4))
    assert len(taken) == 1 and 5 < taken.pop() < 500


def test_one_component_outside_the_range_of_a_hyper_prior_is_refused():
    with pytest.raises(ValueError, match="std of a HyperPrior must be > 0"):
        HyperPrior(std=torch.tensor([0.1, -0.1]))


# -- the M step's laws ------------------------------------------------------------------------


def _without_pseudo_counts_in_the_denominator(mixture, moments, hyper):
    m_step_(mixture, moments, hyper)
    n, nu = moments.count, hyper.std_count
    mixture.std.mul_(((n + nu + 2) / (n + nu + 1)).sqrt())


def _mean_not_moved(mixture, moments, hyper):
    mean = mixture.mean.clone()
    m_step_(mixture, moments, hyper)
    mixture.mean.copy_(mean)


def _mixing_by_counts_alone(mixture, moments, hyper):
    m_step_(mixture, moments, hyper)
    mixture.mixing.copy_(moments.count / moments.count.sum())


def _no_step(mixture, moments, hyper):
    pass


MUTANTS = {
    "denominator": _without_pseudo_counts_in_the_denominator,
    "mixing": _mixing_by_counts_alone,
}


@pytest.mark.parametrize("name", HYPERS)
@pytest.mark.parametrize("options", [{}, {"zero": True}, {"zero": True, "zero_mixing": 0.6}])
def test_em_never_raises_the_objective_from_a_converged_start(name, options):
    w, mixture = converged(HYPERS[name], **options)
    before = objective(mixture, w, HYPERS[name])
    m_step_(mixture, e_step(mixture, w), HYPERS[name])
    assert objective(mixture, w, HYPERS[name]) <= before + 1e-9 * abs(before)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_m_step_raises_the_objective_from_a_converged_start(mutant):
    w, mixture = converged(HYPERS["default"])
    before = objective(mixture, w, HYPERS["default"])
    mutant(mixture, e_step(mixture, w), HYPERS["default"])
    assert objective(mixture, w, HYPERS["default"]) > before + 1e-9 * abs(before)


def _falls_from_far(step, hyper):
    w, mixture = cases.weights(), start()
    values = [objective(mixture, w, hyper)]
    for _ in range(10):
        step(mixture, e_step(mixture, w), hyper)
        values.append(objective(mixture, w, hyper))
    drops = -np.diff(values)
    return bool((drops >= -1e-9 * abs(values[0])).all() and values[0] - values[-1] > 1.0)


@pytest.mark.parametrize("name", HYPERS)
def test_em_lowers_the_objective_strictly_from_a_far_start(name):
    assert _falls_from_far(m_step_, HYPERS[name])


def test_an_m_step_that_does_nothing_is_caught_from_a_far_start():
    assert not _falls_from_far(_no_step, HYPERS["default"])


def _expected_objective_gradient(step, hyper, **options):
    """The gradient, at the M step's result, of the expected objective with gamma held fixed."""
    w, mixture = cases.weights(), start(**options)
    gamma = mixture.responsibilities(w)
    step(mixture, e_step(mixture, w), hyper)
    mixture.trainable_()
    expected = -(gamma * mixture.log_joint(w)).sum() - log_hyper_prior(mixture, hyper)
    parameters = list(mixture.parameters())
    return torch.cat(torch.autograd.grad(expected, parameters)).abs().max().item()


@pytest.mark.parametrize("name", HYPERS)
@pytest.mark.parametrize("options", [{}, {"zero": True}, {"zero": True, "zero_mixing": 0.6}])
def test_the_m_step_lands_on_a_stationary_point_of_the_expected_objective(name, options):
    # Stationary over pi and sigma^2: stationary in any smooth parameters of them.
    assert _expected_objective_gradient(m_step_, HYPERS[name], **options) < 1e-9


@pytest.mark.parametrize("mutant", [*MUTANTS.values(), _mean_not_moved])
def test_a_wrong_m_step_is_not_stationary(mutant):
    assert _expected_objective_gradient(mutant, HYPERS["default"]) > 1e-3


@pytest.mark.parametrize("name", HYPERS)
def test_gradient_descent_has_ems_stationary_points(name):
    w, mixture = converged(HYPERS[name], zero=True)
    mixture.trainable_()
    total = -mixture.log_prob(w).sum() - log_hyper_prior(mixture, HYPERS[name])
    gradient = torch.cat(torch.autograd.grad(total, list(mixture.parameters())))
    assert gradient.abs().max().item() < 1e-6


def test_a_hyper_prior_over_log_sigma_would_have_other_stationary_points():
    w, mixture = converged(HYPERS["default"])
    mixture.trainable_()
    wrong = log_hyper_prior(mixture, HYPERS["default"]) + 2.0 * mixture.std.log().sum()
    total = -mixture.log_prob(w).sum() - wrong
    gradient = torch.cat(torch.autograd.grad(total, list(mixture.parameters())))
    assert gradient.abs().max().item() > 0.1


@pytest.mark.parametrize("name", HYPERS)
def test_the_hyper_prior_is_scipys_densities_over_mixing_and_variance(name):
    mixture, hyper = start(3), HYPERS[name]
    expected = reference.log_hyper_prior(
        mixture.mixing.numpy(), mixture.mean.tolist(), mixture.std.tolist(), hyper
    )
    assert log_hyper_prior(mixture, hyper).item() == pytest.approx(expected, rel=1e-12)


# -- textbook EM ------------------------------------------------------------------------------


def test_textbook_em_agrees_with_scikit_learn():
    w = GaussianMixture([0.3, 0.4, 0.3], [-1.0, 0.0, 1.5], [0.3, 0.2, 0.4]).sample(
        2000, generator=torch.Generator().manual_seed(3)
    )
    mixture = initial_mixture(w, 3, method="spread")
    scikit = ScikitMixture(
        3,
        covariance_type="full",
        reg_covar=0.0,
        tol=1e-12,
        max_iter=20,
        weights_init=mixture.mixing.numpy(),
        means_init=mixture.mean.numpy()[:, None],
        precisions_init=mixture.std.numpy()[:, None, None] ** -2,
    )
    with pytest.warns(match="did not converge"):
        scikit.fit(w.numpy()[:, None])
    for _ in range(scikit.n_iter_):
        m_step_(mixture, e_step(mixture, w), None)
    np.testing.assert_allclose(mixture.mixing, scikit.weights_, rtol=1e-6)
    np.testing.assert_allclose(mixture.mean, scikit.means_[:, 0], rtol=1e-6)
    np.testing.assert_allclose(mixture.std, scikit.covariances_[:, 0, 0] ** 0.5, rtol=1e-6)


def test_vanishing_pseudo_counts_are_not_textbook_em():
    w, textbook, limit = cases.weights(), start(), start()
    m_step_(textbook, e_step(textbook, w), None)
    m_step_(limit, e_step(limit, w), HyperPrior(concentration=1.0, std=1e-9, std_count=1e-9))
    assert not torch.allclose(textbook.std, limit.std, rtol=1e-3)  # N_j + 2 below, not N_j
    torch.testing.assert_close(textbook.mean, limit.mean)


# -- pinned values, and what is refused ---------------------------------------------------------


@pytest.mark.parametrize("hyper", [*HYPERS.values(), None])
def test_pinned_values_stay_pinned_to_the_last_bit(hyper):
    w = cases.weights().float()
    mixture = initial_mixture(w, 4, zero=True, zero_mixing=0.7)
    mixture.pinned_std[1] = True
    std = mixture.std[1].clone()
    free = mixture.mean[1:].clone(), mixture.mixing[1:].clone()
    for _ in range(20):
        m_step_(mixture, e_step(mixture, w), hyper)
    assert mixture.mean[0] == 0.0 and mixture.mixing[0] == torch.tensor(0.7)
    assert mixture.std[1] == std
    assert not torch.equal(mixture.mean[1:], free[0])
    assert not torch.equal(mixture.mixing[1:], free[1])
    assert mixture.mixing.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"concentration": 0.5}, "concentration of a HyperPrior must be >= 1"),
        ({"std": 0.0}, "std of a HyperPrior must be > 0"),
        ({"std_count": -1.0}, "std_count"),
        ({"mean_count": -1.0}, "mean_count"),
        ({"mean": float("nan")}, "mean of"),
    ],
)
def test_impossible_hyper_priors_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        HyperPrior(**values)


def test_a_hyper_prior_for_another_number_of_components_is_refused():
    with pytest.raises(ValueError, match="one per component"):
        m_step_(start(4), e_step(start(4), cases.weights()), HyperPrior(std=torch.ones(3)))


def test_em_is_refused_on_a_trainable_mixture_and_on_moments_that_are_not_finite():
    mixture = start()
    bad = e_step(mixture, cases.weights())
    bad.count[0] = torch.nan
    before = mixture.mean.clone()
    with pytest.raises(ValueError, match="not finite"):
        m_step_(mixture, bad, HyperPrior())
    assert torch.equal(mixture.mean, before)
    with pytest.raises(TypeError, match="trainable"):
        m_step_(mixture.trainable_(), e_step(start(), cases.weights()), HyperPrior())


@pytest.mark.parametrize("hyper", [None, HyperPrior(mean_count=2.0, std=0.01)])
@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_the_m_step_in_numpy_is_that_in_torch_to_the_last_bit(hyper, shape):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(7, *shape, generator=generator, dtype=torch.float64)
    pins = torch.arange(5).expand(shape)
    mixture = GaussianMixture(
        (values[0] / values[0].sum(-1, keepdim=True)).float(), values[1].float(), values[2].float(),
        pinned_mean=pins == 0, pinned_mixing=pins == 1, pinned_std=pins == 2,
    )  # fmt: skip
    moments = Moments(values[3], 100.0 * values[4] * (pins != 3), values[5], values[6])
    ours = map(torch.from_numpy, steps._maximised(np, mixture, moments, hyper))
    for one, other in zip(ours, steps._maximised(torch, mixture, moments, hyper), strict=True):
        assert torch.equal(one, other)
