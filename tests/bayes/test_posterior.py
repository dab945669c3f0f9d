"""What is made of the draws: labels, predictions, files, evidence."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from joints import FLOAT, HYPER, conjugate, points, small
from safetensors.torch import save, save_file
from torch import nn

from swsmix import MixturePrior
from swsmix.bayes import Joint, Posterior, compare, held_out, loo, sample
from swsmix.problems import nets

# Draws as few as these are told not to be trusted: tests/bayes/test_verdict.py.
pytestmark = pytest.mark.filterwarnings("ignore::swsmix.bayes.PosteriorWarning")


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


def test_a_posterior_survives_its_file_and_damage_is_an_error(tmp_path):
    net, x, _, joint, *_ = conjugate()
    drawn = sample(joint, chains=2, draws=20, warmup=60, progress=False)
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


def is_written(dtype):
    """Whether this safetensors can: before 0.7 none writes complex numbers."""
    try:
        save({"z": torch.zeros(1).to(dtype)})
    except KeyError:
        return False
    return True


def test_a_posterior_whose_parts_do_not_fit_is_an_error_that_names_the_file(tmp_path):
    *_, joint = small()
    z = torch.from_numpy(np.stack([points(joint)]))
    steps = {"diverged": torch.zeros(1, 5, dtype=torch.bool)}
    path = tmp_path / "posterior.safetensors"
    whole = joint.layout.to_dict()
    Posterior(z, joint.layout, steps).save(path)
    assert Posterior.load(path).num_draws == 5

    def of_group(name, value):
        return whole | {name: {group: value for group in whole[name]}}

    component = next(iter(whole["components"].values()))
    layouts = [
        of_group("groups", ("none",)), of_group("groups", ()), whole | {"groups": {}},
        of_group("components", component | {"std": component["std"][:-1]}),
        of_group("components", component | {"std": [-1.0] * len(component["std"])}),
        whole | {"parameters": {n: [-1, *s] for n, s in whole["parameters"].items()}},
    ]  # fmt: skip
    bad = [(z, whole_layout, steps) for whole_layout in layouts]
    bad += [(z[:, :0], whole, {}), (z, whole, {"energy": torch.zeros(1, 4)})]
    if is_written(torch.complex64):
        bad += [(z, whole, {"energy": torch.zeros(1, 5, dtype=torch.complex64)})]
    bad += [(z.to(dtype), whole, {}) for dtype in (torch.float8_e4m3fn, torch.bfloat16)]
    for draws, layout, taken in bad:
        saved = Posterior(z, joint.layout, taken)
        object.__setattr__(saved, "z", draws.contiguous())
        object.__setattr__(saved, "layout", SimpleNamespace(to_dict=lambda layout=layout: layout))
        saved.save(path)
        with pytest.raises(ValueError, match=r"posterior\.safetensors is damaged"):
            Posterior.load(path)
    deep = {"format": "swsmix posterior 1", "layout": "[" * 10**5 + "]" * 10**5, "about": "{}"}
    save_file({"z": z}, path, deep)
    with pytest.raises(ValueError, match=r"posterior\.safetensors is damaged"):
        Posterior.load(path)
