"""Variational inference: the right optimum, mini-batches, interruption; and calibration by SBC."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from figures import sbc
from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint, fit_guide
from swsmix.bayes.program import held_mixtures, sites_of
from swsmix.bayes.svi import trainer

FLOAT = torch.float64
HYPER = HyperPrior(mean_count=0.2, std=0.3, std_count=4.0)


def linear(pinned=True, stepped=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=FLOAT)
    y = x @ torch.tensor([0.5, -0.5, 0.0], dtype=FLOAT)
    y = y + 0.5 * torch.randn(40, generator=generator, dtype=FLOAT)
    net = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0)).double()
    pins = [True] if pinned else None
    initial = GaussianMixture(
        [1.0], [0.0], [0.6], pinned_mixing=pins, pinned_mean=pins, pinned_std=pins
    )
    prior = MixturePrior(net, initial=initial, hyper=HYPER)
    if stepped:
        prior.em_step_()
    return x, y, Joint(net, prior, x, y, noise_std=0.5)


def test_the_guide_finds_the_best_mean_field_posterior():
    x, y, joint = linear()
    drawn = fit_guide(
        joint, epochs=250, batch_size=20, lr=0.02, init_scale=0.1, draws=800, progress=False
    )
    precision = x.T @ x / 0.25 + torch.eye(3, dtype=FLOAT) / 0.36
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)
    w = drawn.weights()[0]
    assert torch.allclose(w.mean(0), mean, atol=0.05)
    # The best factorised Gaussian has the precision's diagonal, not the covariance's.
    assert torch.allclose(w.std(0), precision.diagonal().rsqrt(), rtol=0.3)
    assert all(map(math.isfinite, drawn.about["elbo"]))
    assert drawn.z.shape == (1, 800, 3)


def test_held_mixtures_give_the_weights_the_same_gradient():
    _, _, joint = linear(pinned=False)
    at = torch.from_numpy(joint.start())
    sites = sites_of(joint, at)
    (held,) = held_mixtures(joint, sites).values()
    from swsmix.bayes.program import MixtureWeights

    found = []
    for table in (None, held.table):
        w = sites["all.weights"].clone().requires_grad_()
        MixtureWeights(held.mixing, held.mean, held.std, len(w), table).log_prob(w).backward()
        found.append(w.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-12)
    step, draw = trainer(joint, guide="normal", init_scale=0.01, lr=1e-3, mixture_every=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [step(joint.x, joint.y) for _ in range(6)]
    assert [loss is None for loss in losses] == [False, True, True, False, True, True]
    assert draw().keys() >= {"all.weights", "all.mean", "all.variance"}


def test_a_guide_leaves_random_state_and_parameter_store_alone():
    import pyro

    _, _, joint = linear()
    state, before = torch.random.get_rng_state(), set(pyro.get_param_store().keys())
    runs = [
        fit_guide(joint, epochs=2, draws=5, seed=s, kl_warmup=0.0, progress=False).z
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == before


def test_bad_settings_and_divergence_are_errors():
    _, _, joint = linear()
    for options, message in (
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "must be positive"),
        ({"guide": "flow"}, "guide must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_guide(joint, progress=False, **options)
    _, _, fresh = linear(stepped=False)
    with pytest.warns(UserWarning, match="has not taken an EM step: .* the guide"):
        fit_guide(fresh, epochs=1, draws=2, progress=False)


def test_an_interrupted_guide_is_drawn_from(monkeypatch):
    from swsmix.bayes import svi

    _, _, joint = linear()
    make = svi.trainer

    def broken(*args, **options):
        step, draw = make(*args, **options)
        count = iter(range(100))

        def once(*batch):
            if next(count) == 7:
                raise KeyboardInterrupt
            return step(*batch)

        return once, draw

    monkeypatch.setattr(svi, "trainer", broken)
    with pytest.warns(
        UserWarning, match="interrupted: the draws are from the guide after 3 of 9 epochs"
    ):
        drawn = fit_guide(joint, epochs=9, batch_size=20, draws=4, mixture_every=1, progress=False)
    assert drawn.num_draws == 4 and len(drawn.about["elbo"]) == 3


# -- simulation-based calibration (figures/sbc.py) ---------------------------------------------


def test_few_simulations_are_calibrated_and_a_wrong_prior_is_not():
    hyper = sbc.wrong(sbc.HYPER)
    right, wrong = (
        [sbc.ranks(seed, hyper=h, thin=1, warmup=40)[0] for seed in range(16)]
        for h in (sbc.HYPER, hyper)
    )
    assert min(sbc.uniformity(right, bins=4)) > 1e-4
    assert min(sbc.uniformity(wrong, bins=4)) < 1e-4


@pytest.mark.parametrize("name", ["sbc.json", "sbc-wrong.json"])
def test_the_recorded_calibration(name):
    found = json.loads((Path(sbc.__file__).parent / name).read_text())
    ranks = np.array(found["ranks"])
    assert found["names"] == [*sbc.NAMES] and len(ranks) >= 60
    assert ranks.min() >= 0 and ranks.max() <= found["draws"]
    lowest = min(sbc.uniformity(ranks))
    if found["wrong"]:
        assert lowest < 1e-6
    else:
        assert lowest > 0.01 / len(sbc.NAMES)
    assert math.isfinite(lowest)
