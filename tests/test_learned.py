"""A learned prior apart from its network: kept, printed, rescaled, put on another."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swsmix import HyperPrior, MixturePrior
from swsmix.prior import LearnedPrior

PARTS = ("mixing", "mean", "std", "pinned_mixing", "pinned_mean", "pinned_std")


def network(width=30):
    return nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 10))


def learned_prior(mode="em"):
    groups = {"in": "0.weight", "out.put": "2.weight"}
    prior = MixturePrior(network(), 4, groups=groups, zero=True, zero_mixing=0.5, mode=mode)
    if mode == "em":
        prior.em_step_()
    return prior


def same(one, other):
    assert one.groups == other.groups
    for group, mixture in one.mixtures.items():
        for name in PARTS:
            assert torch.equal(getattr(mixture, name), getattr(other.mixtures[group], name))
        mine = one.hyper_priors[group].expanded(mixture)
        theirs = other.hyper_priors[group].expanded(mixture)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_saved_and_loaded_it_is_the_same_to_the_last_bit(tmp_path, mode):
    learned = LearnedPrior.of(learned_prior(mode))
    learned.save(tmp_path / "it.prior")
    same(LearnedPrior.load(tmp_path / "it.prior"), learned)
    shown = str(learned)
    for group, mixture in learned.mixtures.items():
        assert f"mixture {group!r}: K = 4" in shown
        assert all(f"{value:.3g}" in shown for value in mixture.mean.tolist())


def test_the_prior_of_a_run_is_one_too(run_folder):
    learned = LearnedPrior.load(run_folder / "final" / "prior.safetensors")
    assert learned.groups == {"all": ("2.weight",)}


def test_a_run_folder_is_loaded_as_its_outcome_or_its_newest_checkpoint(run_folder, tmp_path):
    outcome = LearnedPrior.load(run_folder / "final" / "prior.safetensors")
    same(LearnedPrior.load(run_folder), outcome)
    same(LearnedPrior.load(run_folder / "final"), outcome)
    for epoch, prior in ((1, learned_prior()), (12, learned_prior())):
        folder = tmp_path / f"checkpoint-{epoch:06}"
        folder.mkdir()
        newest = LearnedPrior.of(prior)
        newest.save(folder / "prior.safetensors")
    same(LearnedPrior.load(tmp_path), newest)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must be a file.* got the folder .*empty without one: "):
        LearnedPrior.load(tmp_path / "empty")


@pytest.mark.parametrize("worth", [None, 50.0])
def test_scaled_it_is_the_prior_of_scaled_weights(worth):
    # The penalty of c w under the scaled prior is that of w but for constants, in any weights.
    net, learned = network().double(), LearnedPrior.of(learned_prior())
    values = []
    for factor in (1.0, 2.5):
        prior = learned.scaled(factor).on(net, worth=worth)
        weights = [p for p in net.parameters() if p.ndim > 1]
        before = prior.terms()
        with torch.no_grad():
            for p in weights:
                p.mul_(1.3)
        after = prior.terms()
        values += [after[g]["nll"] - before[g]["nll"] for g in before]
        prior.em_step_()
        values += [m.mean / factor for m in prior.mixtures.values()]
        values += [m.std / factor for m in prior.mixtures.values()]
        with torch.no_grad():
            for p in weights:
                p.mul_(2.5 / 1.3)
    for a, b in zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_groups_of_another_network_are_matched_by_patterns():
    learned = LearnedPrior.of(learned_prior())
    other = nn.ModuleDict({"a": nn.Linear(9, 9), "b": nn.Linear(9, 9), "head": nn.Linear(9, 3)})
    prior = learned.on(other, groups={"in": ["a.*", "b.*"], "out.put": "head.*"}, exclude="*bias")
    assert prior.selection.groups == {
        "in": ("a.weight", "b.weight"), "out.put": ("head.weight",)
    }  # fmt: skip
    for group, mixture in prior.mixtures.items():
        assert torch.equal(mixture.mean, learned.mixtures[group].mean)
        assert mixture.mean.data_ptr() != learned.mixtures[group].mean.data_ptr()
    part = learned.on(other, groups={"in": "a.weight"})
    assert list(part.mixtures) == ["in"]
    one = LearnedPrior.of(MixturePrior(nn.Linear(9, 9), 3)).on(other)  # all weights
    assert one.selection.groups == {"all": ("a.weight", "b.weight", "head.weight")}


def test_a_prior_worth_many_weights_stays_and_one_worth_few_goes():
    learned = LearnedPrior.of(learned_prior())
    net = network(60)
    moved = []
    for worth in (1e9, 1.0):
        prior = learned.on(net, worth=worth)
        with torch.no_grad():
            net[0].weight.normal_(0.3, 0.05)
        prior.em_step_()
        old, new = learned.mixtures["in"], prior.mixtures["in"]
        moved.append(max((getattr(old, n) - getattr(new, n)).abs().max() for n in PARTS[:3]))
    assert moved[0] < 1e-5 and moved[1] > 0.05


def test_what_does_not_fit_is_refused(tmp_path):
    learned, net = LearnedPrior.of(learned_prior()), network()
    with pytest.raises(ValueError, match="must be positive and finite, got 0"):
        learned.scaled(0.0)
    with pytest.raises(ValueError, match="positive number of weights, got -1"):
        learned.on(net, worth=-1.0)
    with pytest.raises(ValueError, match=r"those that were learned, \['in', 'out.put'\], got"):
        learned.on(net, groups={"all": "*weight"})
    with pytest.raises(ValueError, match="say by groups= which patterns each takes"):
        learned.on(nn.Linear(9, 9))
    path = tmp_path / "x.prior"
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"must be one of LearnedPrior.save.* it names no groups"):
        LearnedPrior.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"must be one of LearnedPrior.save"):
        LearnedPrior.load(path)
    run = learned_prior("gradient")
    save_file(run.state_dict(), path, {"groups": '{"in": ["0.weight"]}'})
    with pytest.raises(ValueError, match="of a run in mode 'em'"):
        LearnedPrior.load(path)
    assert isinstance(learned.hyper_priors["in"], HyperPrior)


def test_groups_are_scaled_by_factors_of_their_own():
    learned = LearnedPrior.of(learned_prior())
    one, two = learned.scaled({"in": 0.5}), learned.scaled(0.5)
    assert torch.equal(one.mixtures["in"].std, two.mixtures["in"].std)
    assert torch.equal(one.mixtures["out.put"].std, learned.mixtures["out.put"].std)
    with pytest.raises(ValueError, match=r"no groups \['inn'\]; this prior has"):
        learned.scaled({"inn": 0.5})
