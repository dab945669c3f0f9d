"""The values of a file: duplicates merge within a bound, and no weight goes far for nothing."""

import math

import cases
import pytest
import torch
from torch import nn

from swsmix import GaussianMixture, MixturePrior, snap_
from swsmix.codec import encode
from swsmix.compression import load_compressed, save_compressed
from swsmix.compression.duplicates import file_values
from swsmix.compression.report import snapping_report
from swsmix.compression.snap import assign, bits_per_weight, quantize, snapped_state
from swsmix.tables.regions import decision_regions

SEVEN = (0.0, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3)


def made(seed):
    """A mixture with twins, idle components, pinned means, and stds of any size."""
    generator = torch.Generator().manual_seed(seed)
    k = 1 + seed % 11
    mean, scale, share = torch.randn(3, k, generator=generator, dtype=torch.float64)
    twin, pin = torch.rand(2, k, generator=generator)
    std = 0.1 * torch.exp((0.5, 2.0, 5.0)[seed % 3] * scale)
    near = mean[torch.randint(0, k, (k,), generator=generator)] + 0.3 * std * mean
    mean = torch.where(twin < (0.0, 0.5, 0.9, 0.9)[seed % 4], near, mean)
    mixing = torch.exp(3.0 * share)
    pinned = pin < (0.0, 0.3)[seed % 2]
    mean[pinned] = 0.25
    values = (mixing / mixing.sum(), mean, std)
    dtype = (torch.float32, torch.float64)[seed % 5 == 0]
    return GaussianMixture(*(v.to(dtype) for v in values), pinned_mean=pinned)


MIXTURES = [made(seed) for seed in range(60)]


def weights(mixture):
    """Numbers all over the axis, with the centres and the tails among them."""
    mean, std = mixture.mean, mixture.std
    far = torch.linspace(-8.0, 8.0, 65, dtype=mean.dtype)
    return torch.cat([(mean + std * far[:, None]).reshape(-1), far])


def values_of(mixture, w, distortion):
    found = file_values(mixture, distortion)
    return found.codebook[found.regions.assign(w)]


DISTORTIONS = pytest.mark.parametrize("distortion", [0.1, 1.0, 3.0])


@DISTORTIONS
def test_merging_moves_no_weight_by_more_than_it_may_unless_nearer(distortion):
    for mixture in MIXTURES:
        w = weights(mixture)
        j = assign(mixture, w)
        value = values_of(mixture, w, distortion).double()
        mean, std = mixture.mean.double()[j], mixture.std.double()[j]
        shared = file_values(mixture, distortion).codebook.double()[j]
        assert ((shared - mean).abs() <= distortion * std * (1 + 1e-12)).all()
        nearer = (value - w).abs() < (shared - w).abs()
        assert (nearer | (value == shared)).all()


def test_no_weight_takes_a_value_that_is_farther_and_rarer_than_another():
    for mixture in MIXTURES:
        w = weights(mixture)
        found = file_values(mixture)
        j, value = assign(mixture, w), values_of(mixture, w, 1.0)
        for k in found.regions.component.unique():
            nearer = (found.codebook[k] - w).abs() < (value - w).abs() * (1 - 1e-6)
            assert not (nearer & (mixture.mixing[k] >= mixture.mixing[j])).any()


def test_without_distortion_each_weight_takes_its_components_mean():
    for mixture in MIXTURES:
        w = weights(mixture)
        found = file_values(mixture, 0.0)
        assert torch.equal(found.codebook, mixture.mean)
        assert torch.equal(found.regions.assign(w), assign(mixture, w))


@DISTORTIONS
def test_merging_ends_only_where_no_pair_has_an_allowed_value(distortion):
    merged = 0
    for mixture in MIXTURES:
        book = file_values(mixture, distortion).codebook
        owners = decision_regions(mixture).component.unique()
        groups = [[k for k in owners.tolist() if book[k] == v] for v in book[owners].unique()]
        merged += len(owners) - len(groups)
        for g, one in enumerate(groups):
            for other in groups[:g]:
                both = torch.tensor(one + other)
                mixing, mean, std = (
                    t.double()[both] for t in (mixture.mixing, mixture.mean, mixture.std)
                )
                pinned = mixture.pinned_mean[both]
                c = (mixing / std**2 * mean).sum() / (mixing / std**2).sum()
                c = mean[pinned][0] if pinned.any() else c
                assert ((c - mean).abs() > distortion * std * (1 - 1e-4)).any()
    assert merged > 10


def test_a_value_keeps_its_own_weights_so_that_snapping_twice_is_once():
    for mixture in MIXTURES:
        found = file_values(mixture)
        value = values_of(mixture, weights(mixture), 1.0).unique()
        own = found.codebook[assign(mixture, value)] == value
        assert torch.equal(values_of(mixture, value, 1.0)[own], value[own])
        assert len(own) == 1 or own.any()


def test_pinned_means_keep_their_value_to_the_last_bit():
    for mixture in MIXTURES:
        book, pinned = file_values(mixture, 3.0).codebook, mixture.pinned_mean
        assert torch.equal(book[pinned], mixture.mean[pinned])
    assert sum(int(m.pinned_mean.sum()) for m in MIXTURES) > 20


def test_two_different_pinned_means_never_merge():
    pinned = GaussianMixture([0.5, 0.5], [0.0, 1e-3], [1.0, 0.9], pinned_mean=[True, True])
    assert file_values(pinned, 10.0).codebook.unique().numel() == 2


def test_equal_pinned_means_are_one_value():
    pinned = GaussianMixture([0.6, 0.4], [0.5, 0.5], [0.01, 1.0], pinned_mean=[True, True])
    assert len(decision_regions(pinned).component.unique()) == 2
    assert len(file_values(pinned, 0.1).regions.component) == 1


def test_merging_saves_entropy_and_never_costs_any():
    saved = []
    for seed, mixture in enumerate(MIXTURES):
        w = mixture.sample(3000, generator=torch.Generator().manual_seed(seed))
        before, after = assign(mixture, w), file_values(mixture).regions.assign(w)
        saved.append(bits_per_weight(before) - bits_per_weight(after))
    assert min(saved) > -0.02 and max(saved) > 0.5


def test_the_order_of_components_does_not_matter():
    for mixture in MIXTURES:
        if len(mixture.mean.unique()) == len(mixture.mean):
            turn = torch.arange(len(mixture.mean)).flip(0)
            columns = (mixture.mixing[turn], mixture.mean[turn], mixture.std[turn])
            turned = GaussianMixture(*columns, pinned_mean=mixture.pinned_mean[turn])
            w = weights(mixture)
            one, other = (values_of(m, w, 1.0) for m in (mixture, turned))
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_an_impossible_distortion_is_refused(bad):
    with pytest.raises(ValueError, match=r"in stds of its component: it must be finite and at"):
        file_values(cases.mixtures()["typical"], bad)


def planted(values, zeros, noise, *, conv=False, spread=0.6):
    """A network whose weights are few values and noise, and which value each weight is."""
    generator = torch.Generator().manual_seed(0)
    layers = (nn.Conv2d(4, 40, 5), nn.Linear(40, 100)) if conv else (nn.Linear(90, 80),)
    net = nn.Sequential(*layers, nn.Linear(100 if conv else 80, 10))
    plant = {}
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1:
                at = torch.rand(p.shape, generator=generator) > zeros
                j = at * torch.randint(1, len(values), p.shape, generator=generator)
                plant[name] = torch.tensor(values)[j]
                p.copy_(plant[name] + noise * spread * torch.randn(p.shape, generator=generator))
    return net, plant


def enough(net, plant):
    """2 % and 200 bytes more than the entropy of the plant and the biases."""
    index = torch.cat([v.reshape(-1) for v in plant.values()]).unique(return_inverse=True)[1]
    biases = sum(4 * p.numel() for p in net.parameters() if p.ndim < 2)
    return 1.02 * (bits_per_weight(index) * len(index) / 8 + biases) + 200


def check(net, plant, prior, noise, spread=0.6):
    for _ in range(10):
        prior.em_step_()
    state = snapped_state(net, prior)
    assert len(encode(state)) <= enough(net, plant)
    for name, value in plant.items():
        assert ((state[name] - value).abs() <= 5 * noise * spread + 1e-7).all()


@pytest.mark.parametrize(
    ("k", "zero"), [(7, False), (8, True), (12, False), (17, True), ("auto", False)]
)
def test_too_many_components_cost_no_bytes_and_move_no_weight(k, zero):
    net, plant = planted(SEVEN, 0.96, 1e-3)
    check(net, plant, MixturePrior(net, k, zero=zero), 1e-3)


@pytest.mark.parametrize(
    ("values", "zeros"),
    [
        ((0.0, -0.31, -0.12, 0.05, 0.17, 0.4, 0.47), 0.9),
        ((0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4), 0.9),
        ((-0.05, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3), 0.1),
    ],
)
def test_other_values_take_no_more(values, zeros):
    net, plant = planted(values, zeros, 1e-4)
    check(net, plant, MixturePrior(net, 12), 1e-4)


@pytest.mark.parametrize("noise", [1e-6, 1e-2])
def test_more_or_less_noise_takes_no_more(noise):
    net, plant = planted(SEVEN, 0.9, noise, conv=True)
    check(net, plant, MixturePrior(net, 12), noise)


def twins_at_zero():
    """Three twins on zero, an idle wide component, and a value."""
    net, plant = planted((0.0, 0.3), 0.9, 1e-4)
    s = 0.6e-4
    mixture = GaussianMixture(
        [0.4, 0.3, 0.1995, 0.1, 0.0005],
        [0.1 * s, -0.3 * s, 0.0, 0.3, 0.14],
        [s, 1.1 * s, 0.9 * s, s, 0.2],
    )
    return net, plant, MixturePrior(net, initial=mixture)


def test_duplicates_and_idle_components_cost_nothing_where_they_cost_much_before():
    net, plant, prior = twins_at_zero()
    with torch.no_grad():
        net[0].weight[0, 0] = plant["0.weight"][0, 0] = 0.3
        net[0].weight[0, 0] += 6e-4  # claimed by the idle component
    before = snapped_state(net, prior, distortion=0.0)
    after = snapped_state(net, prior)
    assert before["0.weight"][0, 0] == pytest.approx(0.14)
    assert len(encode(before)) > 1.2 * enough(net, plant)
    assert len(encode(after)) <= enough(net, plant)
    assert all((after[n] - v).abs().max() < 1e-4 for n, v in plant.items())


def test_what_is_snapped_saved_quantised_and_reported_is_the_same(tmp_path):
    net, plant, prior = twins_at_zero()
    found, report = quantize(prior), snapping_report(net, prior)
    save_compressed(tmp_path / "one.sws", net, prior)
    mixture = prior.mixtures["all"].mean.clone()
    index = snap_(prior)
    assert torch.equal(prior.mixtures["all"].mean, mixture)  # the prior's components are its own
    assert sum(t.distinct for t in report.tensors) == 4
    for name in plant:
        p = net.get_parameter(name)
        assert torch.equal(p, load_compressed(tmp_path / "one.sws")[name])
        assert torch.equal(p, found[name].values) and torch.equal(index[name], found[name].index)
        assert len(index[name].unique()) == len(p.unique()) == 2
    snapped = net[0].weight.detach().clone()
    snap_(prior)
    assert torch.equal(net[0].weight, snapped)  # twice is once
    net, _, prior = twins_at_zero()
    save_compressed(tmp_path / "all.sws", net, prior, distortion=0.0)
    assert len(load_compressed(tmp_path / "all.sws")["0.weight"].unique()) > 2
    assert sum(t.distinct for t in snapping_report(net, prior, distortion=0.0).tensors) > 4
