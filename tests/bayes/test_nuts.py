"""NUTS draws the posterior, keeps what it has, and says what is amiss."""

import math
import warnings

import numpy as np
import pytest
import torch
from joints import FLOAT, conjugate, small
from scipy import stats
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, clusters, loo, sample
from swsmix.bayes.trajectory import Metric, State, nuts

# Chains as short as these are told not to be trusted: tests/bayes/test_verdict.py.
pytestmark = pytest.mark.filterwarnings("ignore::swsmix.bayes.PosteriorWarning")


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
        ({"start": np.zeros(7)}, "start needs 2 numbers"),
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
    whole = sample(joint, chains=3, draws=40, warmup=60, seed=4, progress=False)
    in_turn = module.in_turn

    def broken(*args):
        for number, step in enumerate(in_turn(*args)):
            if number == 3 * 60 + 3 * 17 + 1:  # two chains have 17 draws, one 18
                raises()
            yield step

    monkeypatch.setattr(module, "in_turn", broken)
    with pytest.warns(UserWarning, match="interrupted: 3 of 3 chains with 17 of 40 draws"):
        kept = sample(joint, chains=3, draws=40, warmup=60, seed=4, progress=False)
    assert torch.equal(kept.z, whole.z[:, :17])
    with pytest.raises(KeyboardInterrupt):
        sample(joint, chains=3, draws=40, warmup=90, seed=4, progress=False)


def test_another_error_of_compiled_code_is_no_interruption(monkeypatch):
    from swsmix.bayes import nuts as module

    *_, joint, _, _ = conjugate()

    def broken(*_):
        raise SystemError("not the user's")
        yield

    monkeypatch.setattr(module, "in_turn", broken)
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
    before, at = joint.log_joint(joint.start())[0], joint.start()
    runs = [
        sample(joint, chains=2, draws=10, warmup=60, seed=s, processes=p, progress=False).z
        for s, p in ((1, 1), (1, 2), (2, 1))
    ]
    assert joint.log_joint(at)[0] == pytest.approx(before)  # what went to the processes was a copy
    assert torch.allclose(runs[0], runs[1], rtol=0.0, atol=1e-6)
    assert not torch.allclose(runs[0], runs[2], rtol=0.0, atol=1e-2)
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("diverged", "draws"), [(10, 50), (15, 1500)])
def test_more_than_ten_divergences_and_one_in_a_hundred_are_warned_about(
    monkeypatch, diverged, draws
):
    from swsmix.bayes import nuts as module

    *_, joint, _, _ = conjugate()
    in_turn = module.in_turn

    def diverging(*args):
        for chain, iteration, step in in_turn(*args):
            yield chain, iteration, step._replace(diverged=60 <= iteration < 60 + diverged)

    monkeypatch.setattr(module, "in_turn", diverging)
    options = {"chains": 1, "draws": draws, "warmup": 60, "max_depth": 3, "progress": False}
    drawn = sample(joint, **options)
    assert drawn.divergences == diverged and "diverged" not in str(drawn.verdict)
    diverged += 1
    with pytest.warns(UserWarning, match=f"{diverged} of {draws:,} draws.*target_accept"):
        sample(joint, **options)
