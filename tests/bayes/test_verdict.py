"""Draws that are not to be trusted are called so: by what no permutation changes, with remedies."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from joints import FLOAT, conjugate, small

from swsmix.bayes import Posterior, PosteriorWarning, fit_guide, sample, symmetric
from swsmix.bayes.agreement import Agreement
from swsmix.bayes.verdict import judge

CHAINS, DRAWS = 4, 250


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def healthy(shape=(CHAINS, DRAWS), seed=0):
    """What a sampler that works says of its draws."""
    return {
        "energy": noise(*shape, seed=seed), "log_density": noise(*shape, seed=seed + 1),
        "accept": torch.full(shape, 0.9, dtype=FLOAT), "steps": torch.full(shape, 7),
        "diverged": torch.zeros(shape, dtype=torch.bool),
    }  # fmt: skip


def about_start(joint, *, apart=0.0, seed=0):
    """Independent draws about the start, or those of each chain about a place of its own."""
    centre = torch.from_numpy(joint.start()) + apart * noise(CHAINS, 1, joint.layout.size, seed=9)
    return centre + 0.05 * noise(CHAINS, DRAWS, joint.layout.size, seed=seed)


def posterior(joint, net, x, z, **steps):
    about = {"predictions": Agreement.of(symmetric.predictions(joint.layout, z, net, x)).to_dict()}
    about |= {"max_depth": 8, "warmup": 20, "target_accept": 0.8}
    return Posterior(z, joint.layout, healthy() | steps, about)


def relabelled(layout, z, signs):
    """The same draws, each chain's hidden units and components in an order of its own.

    Of each chain, signs (3,) of its hidden units; if all turn, the means of the components do.
    """
    network = {n: t.clone() for n, t in layout.network(z).items()}
    mixing, mean, std = (t.clone() for t in layout.mixture(z, "all"))
    for chain in range(len(z)):
        order = torch.randperm(3, generator=torch.Generator().manual_seed(chain))
        sign = torch.tensor(signs[chain], dtype=FLOAT)
        network["hidden.weight"][chain] = network["hidden.weight"][chain][:, order] * sign[:, None]
        network["hidden.bias"][chain] = network["hidden.bias"][chain][:, order] * sign
        network["output.weight"][chain] = network["output.weight"][chain][..., order] * sign
        mean[chain] *= 1.0 if sign.max() > 0 else -1.0
        for t in (mixing, mean, std):
            t[chain] = t[chain][:, order.roll(1)]
    return layout.pack(network, {"all": (mixing, mean, std)}, layout.noise(z))


def test_relabelled_chains_agree_although_their_weights_do_not():
    net, _, x, _, joint = small()
    turned = [(1.0, 1.0, 1.0), (-1.0, -1.0, -1.0)] * 2
    z = relabelled(joint.layout, about_start(joint), turned)
    weights = Agreement.of(z)
    assert weights.rhat > 2.0 and weights.between > 2.0 and max(weights.within) < 1.06
    drawn = posterior(joint, net, x, z)
    for name in ("predictions", "components", "clusters", "log density", "noise std"):
        found = drawn.agreements[name]
        assert found.rhat < 1.03 and found.between < 1.03 and found.ess > 500, name
    assert drawn.verdict.problems == () and drawn.verdict.usable
    assert Agreement.of(symmetric.norms(joint.layout, z)).between < 1.03
    # Some signs alone: the same functions, other weights for the mixture to describe.
    some = [(1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, -1.0), (1.0, 1.0, 1.0)]
    found = posterior(joint, net, x, relabelled(joint.layout, about_start(joint), some)).agreements
    assert found["predictions"].between < 1.03 < found["clusters"].between


def test_chains_in_modes_of_their_own_are_caught_between_and_not_within():
    net, _, x, _, joint = small()
    drawn = posterior(joint, net, x, about_start(joint, apart=0.5))
    found = drawn.agreements["predictions"]
    assert found.between > 1.5 and max(found.within) < 1.06
    verdict = drawn.verdict
    assert not verdict.usable
    assert "regions of their own: start them from several trained networks" in str(verdict)
    with pytest.warns(PosteriorWarning, match=r"Do not use this posterior\. R-hat is above 1\.05"):
        summary = drawn.summary()
    assert str(summary).endswith(str(verdict)) and summary["R-hat of predictions"] > 1.1
    assert summary.agreements["predictions"] == found


def test_a_chain_that_drifts_is_caught_within_it():
    drift = noise(CHAINS, DRAWS)
    drift[2] += torch.linspace(-3, 3, DRAWS, dtype=FLOAT)
    found = Agreement.of(drift)
    assert found.between < 1.2 and found.within[2] > 1.5
    assert max(found.within[:2] + found.within[3:]) < 1.06
    (problem,) = judge(drift[..., None], {}, {}, {"predictions": found}).problems[:1]
    assert problem.unusable and "move too slowly" in problem.sentence


def test_r_hat_is_that_of_arviz_and_whole_chains_are_the_halves_of_one():
    from arviz_stats.base.array import array_stats

    draws = noise(3, 200, 5).cumsum(1) + 5.0 * noise(3, 1, 5, seed=1)
    found = Agreement.of(draws)
    rhat = array_stats.rhat(draws.numpy(), chain_axis=0, draw_axis=1)
    assert found.rhat == pytest.approx(rhat.max(), rel=1e-12)
    assert found.ess == pytest.approx(
        array_stats.ess(draws.numpy(), chain_axis=0, draw_axis=1).min()
    )
    joined = draws[:2].flatten(0, 1)[None]  # the second chain after the first
    of_two, of_one = Agreement.of(draws[:2]), Agreement.of(joined)
    assert of_two.between == pytest.approx(of_one.rhat) == pytest.approx(of_one.within[0])
    assert math.isnan(of_one.between)
    # of values and of distances from the median: a chain may differ by its spread alone
    wide = noise(2, 500) * torch.tensor([[1.0], [3.0]], dtype=FLOAT)
    assert Agreement.of(wide).between > 1.1
    # and no monotone map changes it: heavy tails do no harm
    assert Agreement.of(draws[..., :1].sinh()).between == pytest.approx(
        Agreement.of(draws[..., :1]).between, abs=0.05
    )


def test_still_and_broken_draws_have_no_good_r_hat():
    same = torch.ones(2, 60, dtype=FLOAT)
    assert math.isnan(Agreement.of(same).rhat)  # a pinned value: nothing is wrong
    apart = torch.tensor([[1.0], [1.1]], dtype=FLOAT).expand(2, 60)
    assert Agreement.of(apart).between == math.inf
    for bad in (math.nan, math.inf):
        broken = noise(2, 60)
        broken[1, 3] = bad
        assert Agreement.of(broken).rhat == math.inf and Agreement.of(broken).ess == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_independent_draws_raise_no_alarm(seed):
    net, _, x, _, joint = small()
    drawn = posterior(joint, net, x, about_start(joint, seed=10 * seed), **healthy(seed=seed))
    assert drawn.verdict.problems == ()
    assert str(drawn.verdict) == "Nothing speaks against this posterior."


def changed(name, share, value):
    steps = healthy()[name].clone()
    steps[:, : int(share * DRAWS)] = value
    return {name: steps}


@pytest.mark.parametrize(
    ("steps", "sentence", "usable"),
    [
        (changed("diverged", 0.02, True), "20 of 1,000 draws .* diverged.* target_accept", True),
        (changed("diverged", 0.2, True), "200 of 1,000 draws .* diverged", False),
        (changed("steps", 0.2, 255), r"20% .* tree's limit of 2\^8 steps: raise max_depth", True),
        (changed("steps", 1.0, 255), r"100% .* tree's limit", True),
        (
            {"energy": noise(CHAINS, DRAWS) + 9.0 * noise(CHAINS, DRAWS).cumsum(1)},
            r"E-BFMI\) is 0\.\d+, below 0\.3.*std_count",
            True,
        ),
        (
            {"log_density": noise(CHAINS, DRAWS).cumsum(1)},
            "R-hat is above 1.05: .*log density.*sizes are below 100: .*log density",
            True,  # the predictions agree
        ),
    ],
)
def test_each_sign_of_the_sampler_has_its_sentence(steps, sentence, usable):
    net, _, x, _, joint = small()
    verdict = posterior(joint, net, x, about_start(joint), **steps).verdict
    found = str(verdict)
    assert re.search(sentence, found), found
    assert verdict.usable == usable
    assert found.startswith("Use this posterior with care" if usable else "Do not use")


def test_each_fault_of_the_draws_has_its_sentence():
    net, _, x, _, joint = small()
    z = about_start(joint)
    nan, still = z.clone(), z.clone()
    nan[1, 5, 0] = math.nan
    still[2] = still[2, :1]
    for draws, sentence in (
        (nan, "1 of 1,000 draws hold nan or inf"),
        (still, "Chain 2 stands still"),
        (z[:, :20], "4 x 20 draws are too few to judge"),
        (z[:1, :60], "1 x 60 draws are too few"),
    ):
        steps = {name: t[: len(draws), : draws.shape[1]] for name, t in healthy().items()}
        drawn = Posterior(draws, joint.layout, steps)
        assert sentence in str(drawn.verdict) and not drawn.verdict.usable
        with pytest.warns(PosteriorWarning, match="Do not use"):
            drawn.predict(net, x)
    one = Posterior(z[:1], joint.layout, {n: t[:1] for n, t in healthy().items()})
    assert one.verdict.usable and "One chain cannot say" in str(one.verdict)
    assert math.isnan(one.agreements["norms"].between)  # unknown
    assert len(one.agreements["norms"].within) == 1


def test_a_guide_is_judged_by_its_numbers_alone():
    *_, joint = small()
    z = about_start(joint)[:1, :20]
    assert Posterior(z, joint.layout, {}, {"method": "svi"}).verdict.problems == ()
    z[0, 3] = math.nan
    assert not Posterior(z, joint.layout, {}, {"method": "svi"}).verdict.usable


def test_the_sampler_judges_predictions_and_says_so_again_of_its_file(tmp_path):
    net, prior, x, _, joint = small()
    prior.em_step_()
    options = {"chains": 2, "warmup": 30, "max_depth": 2, "progress": False}
    with pytest.warns(PosteriorWarning, match=r"100% of the draws stopped"):
        drawn = sample(joint, draws=60, **options)
    found = Agreement.from_dict(drawn.about["predictions"])
    assert found == Agreement.of(drawn.outputs(net, x)) == drawn.agreements["predictions"]
    for at in ((0, 3), (1, 59)):
        value = joint.log_joint(drawn.z[at].numpy())[0]
        assert drawn.steps["log_density"][at] == pytest.approx(value)
    path = tmp_path / "posterior.safetensors"
    drawn.save(path)
    with pytest.warns(PosteriorWarning, match=r"100% of the draws stopped"):
        back = Posterior.load(path)
    assert back.verdict == drawn.verdict == drawn.thinned(20).verdict
    with pytest.warns(PosteriorWarning, match=r"100% of the draws stopped"):
        back.predict(net, x)


def test_a_good_chain_says_nothing(tmp_path):
    net, x, _, joint, *_ = conjugate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = sample(joint, chains=2, draws=300, warmup=100, progress=False)
        drawn.save(tmp_path / "posterior.safetensors")
        Posterior.load(tmp_path / "posterior.safetensors").predict(net, x)
        assert drawn.summary().verdict.problems == ()
        fit_guide(joint, epochs=2, batch_size=20, draws=30, progress=False)


def test_many_predictions_are_judged_by_evenly_spaced_cases():
    net, _, _, _, joint = small()
    z = about_start(joint)[:, :3]
    x = noise(1100, 4)
    found = symmetric.predictions(joint.layout, z, net, x)
    assert found.shape == (CHAINS, 3, 367)
    drawn = Posterior(z, joint.layout)
    np.testing.assert_array_equal(found, drawn.outputs(net, x[::3]))
