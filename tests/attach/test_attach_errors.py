"""Attachments that cannot be are refused, with the reason and what to do."""

import pytest
import torch
from attaching import loss_of, problem

from swsmix import MixturePrior, Schedule


def test_a_tensor_of_the_prior_in_no_optimiser_is_an_error():
    net, *_ = problem()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"in no attached optimiser: \['2.weight'\]"):
        MixturePrior(net, 3).attach(optimizer, num_data=10, schedule=Schedule())


def test_gradient_mode_without_the_mixtures_in_an_optimiser_is_an_error():
    net, *_ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'params': prior.parameters\(\)"):
        MixturePrior(net, 3, mode="gradient").attach(optimizer, num_data=10, schedule=Schedule())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_data": 0}, "num_data must be positive; got 0"),
        ({"num_data": 1, "tau": -0.5}, "tau must be finite and at least 0"),
        ({"num_data": 1, "em_every": 0}, "em_every must be at least 1"),
        ({"num_data": 1, "tau": 1.0, "schedule": Schedule()}, "inside the schedule"),
    ],
)
def test_impossible_attachments_are_refused_with_the_reason(options, message):
    net, *_ = problem()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        prior.attach(optimizer, **options)


def test_the_proximal_step_names_the_optimisers_it_knows():
    net, *_ = problem()
    optimizer = torch.optim.RMSprop(net.parameters())
    with pytest.raises(ValueError, match=r"Adam or AdamW.*got RMSprop: use update='gradient'"):
        MixturePrior(net, 3).attach(optimizer, num_data=1, schedule=Schedule(), update="proximal")
    MixturePrior(net, 3).attach(optimizer, num_data=1, schedule=Schedule(), update="gradient")


def test_a_second_attachment_to_the_same_optimiser_is_refused_until_the_first_is_removed():
    net, *_ = problem()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="act twice"):
        prior.attach([optimizer, optimizer], num_data=1, schedule=Schedule())
    first = prior.attach(optimizer, num_data=1, schedule=Schedule())
    with pytest.raises(ValueError, match="act twice"):
        prior.attach(optimizer, num_data=1, schedule=Schedule())
    first.remove()
    prior.attach(optimizer, num_data=1, schedule=Schedule())


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_an_optimiser_that_maximises_is_refused(update):
    net, *_ = problem()
    optimizer = torch.optim.SGD([{"params": net.parameters(), "maximize": True}], lr=0.1)
    with pytest.raises(ValueError, match="maximize=True"):
        MixturePrior(net, 3).attach(optimizer, num_data=1, schedule=Schedule(), update=update)


def test_a_parameter_replaced_behind_the_optimisers_back_is_an_error():
    net, x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    MixturePrior(net, 3).attach(optimizer, num_data=1, schedule=Schedule())
    net[0].weight = torch.nn.Parameter(net[0].weight.detach().clone())
    loss_of(net, x, y).backward()
    with pytest.raises(ValueError, match=r"in no attached optimiser: \['0.weight'\]"):
        optimizer.step()
