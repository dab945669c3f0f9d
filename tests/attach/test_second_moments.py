"""Posterior variances from Adam's second moments, where they are a sound estimate."""

import pytest
import torch
from torch import nn

from swsmix import GaussianMixture, MixturePrior, fit
from swsmix.attach import second_moments
from swsmix.em import variational

N, B = 2000, 20


def problem(noise=1.0):
    """Linear regression with one weight that the data do not see."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=draw) * torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.0])
    y = x.sum(1, keepdim=True) + noise * torch.randn(N, 1, generator=draw)
    net = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [1.0]))
    prior.mixtures["all"].pinned_mean[:] = True
    return net, prior, x, y


def loss(f, y):
    return 0.5 * (f - y).square().mean()


def test_the_precision_is_that_of_the_data_plus_that_of_the_prior():
    net, prior, x, y = problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0, betas=(0.9, 0.999))
    attachment = prior.attach(
        optimizer, num_data=N, moments="posterior", batch_size=B, em_every=10**6
    )
    draw = torch.Generator().manual_seed(1)
    for _ in range(1500):
        rows = torch.randint(N, (B,), generator=draw)
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()
    members = [(optimizer, "weight", net.weight, "all")]
    s2 = second_moments.variance(prior, members, float(N * B), 1.0)["weight"][0]
    exact = 1.0 / (x.square().sum(0) + 1.0)  # the data's noise has variance 1
    torch.testing.assert_close(s2.float(), exact, rtol=0.15, atol=0)
    assert s2[-1] == pytest.approx(1.0)  # the data say nothing of it
    std = prior.mixtures["all"].std.clone()
    attachment._posterior_em_step_(1.0)
    expected = (net.weight.detach()[0].square() + s2).mean()
    assert prior.mixtures["all"].std.square() == pytest.approx(expected.item(), rel=0.35)
    assert not torch.equal(std, prior.mixtures["all"].std)


def test_each_tensor_has_the_second_moments_of_its_own_parameter_group():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [0.5]))
    groups = [
        {"params": layer.parameters(), "betas": (0.9, beta)}
        for layer, beta in zip(net, (0.9, 0.999), strict=True)
    ]
    optimizer = torch.optim.Adam(groups, lr=0.0)
    slopes = {name: float(1 + i) for i, (name, _) in enumerate(net.named_parameters())}
    for _ in range(3):  # what does not change is its own average
        for name, p in net.named_parameters():
            p.grad = torch.full_like(p, slopes[name])
        optimizer.step()
    members = [(optimizer, n, net.get_parameter(n), "all") for n in ("0.weight", "1.weight")]
    for name, s2 in second_moments.variance(prior, members, 100.0, 0.3).items():
        exact = 1.0 / (100.0 * slopes[name] ** 2 + 0.3 / 0.5**2)
        torch.testing.assert_close(s2, torch.full_like(s2, exact))


def test_variances_agree_with_the_responsibilities_that_they_give():
    mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.4]).double()
    w = torch.linspace(-1, 2, 50, dtype=torch.float64)
    data = torch.logspace(-1, 4, 50, dtype=torch.float64)
    s2 = variational.variance_of(mixture, w, data, 0.3)
    torch.testing.assert_close(
        s2, 1.0 / (data + 0.3 * variational.precision(mixture, w, s2)), rtol=0.05, atol=0
    )
    one = GaussianMixture([1.0], [0.0], [0.5]).double()
    torch.testing.assert_close(variational.variance_of(one, w, data, 0.5), 1.0 / (data + 2.0))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (torch.optim.SGD, {}, "needs the second moments of Adam or AdamW; got SGD"),
        (torch.optim.Adam, {"amsgrad": True}, "amsgrad=True keeps their maximum"),
        (torch.optim.Adam, {"weight_decay": 0.1}, "take AdamW"),
    ],
)
def test_second_moments_that_say_nothing_are_refused(make, options, message):
    net, prior, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        prior.attach(
            make(net.parameters(), lr=0.1, **options), num_data=N, moments="posterior",
            batch_size=B,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"amsgrad": True}, "amsgrad=True"), ({"weight_decay": 0.1}, "take AdamW")],
)
def test_one_parameter_group_that_says_nothing_is_enough_to_be_refused(wrong, message):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), **wrong}]
    with pytest.raises(ValueError, match=message):
        MixturePrior(net, 2).attach(
            torch.optim.Adam(groups), num_data=N, moments="posterior", batch_size=B
        )


def test_adam_whose_weight_decay_is_decoupled_is_adamw():
    net, prior, _, _ = problem()
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=0.1)
    optimizer.param_groups[0]["decoupled_weight_decay"] = True  # an argument since torch 2.7
    prior.attach(optimizer, num_data=N, moments="posterior", batch_size=B).remove()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs batch_size"),
        ({"batch_size": N}, "full batch does not scatter"),
        ({"batch_size": B, "update": "gradient"}, "needs update='proximal'"),
        ({"batch_size": B, "tau": 0.0}, "tau > 0"),
    ],
)
def test_what_leaves_the_variance_unknown_is_refused_and_nothing_is_hooked(options, message):
    net, prior, _, _ = problem()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.1)
    with pytest.raises(ValueError, match=message):
        prior.attach(optimizer, num_data=N, moments="posterior", **options)
    prior.attach(optimizer, num_data=N).remove()


def test_fit_over_batches_takes_its_own_batch_size():
    stds = {}
    for moments in ("maximum", "posterior"):
        net, prior, x, y = problem()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        fit(
            net, loss, (x, y), optimizer=optimizer, epochs=2, batch_size=B, prior=prior,
            moments=moments, progress=False,
        )  # fmt: skip
        stds[moments] = prior.mixtures["all"].std.item()
    assert stds["posterior"] > stds["maximum"] + 0.05  # the unseen weight keeps its variance
    net, prior, x, y = problem()
    batches = list(zip(x.split(B), y.split(B), strict=True))
    with pytest.raises(ValueError, match="needs batch_size"):
        fit(
            net, loss, batches, optimizer=torch.optim.Adam(net.parameters()), epochs=1,
            num_data=N, prior=prior, moments="posterior", progress=False,
        )  # fmt: skip
