"""An attachment in gradient mode, where the optimiser moves the mixture too."""

import torch
from attaching import NUM_DATA, TAU, close, loss_of, problem

from swsmix import MixturePrior, Schedule


def test_in_gradient_mode_two_optimisers_equal_one():
    nets = []
    for split in (False, True):
        net, x, y = problem()
        prior = MixturePrior(net, 3, mode="gradient")
        if split:
            parts = [net.parameters(), prior.parameters()]
        else:
            parts = [[*net.parameters(), *prior.parameters()]]
        optimizers = [torch.optim.SGD(part, lr=0.01) for part in parts]
        attachment = prior.attach(optimizers, num_data=NUM_DATA, schedule=Schedule(tau=TAU))
        for _ in range(10):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(net, x, y).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert attachment.tick == 10
        nets.append((net, prior))
    close(nets[0][0], nets[1][0])
    close(nets[0][1], nets[1][1])


def test_in_gradient_mode_an_optimiser_without_the_priors_tensors_is_left_alone():
    net, x, y = problem()
    prior = MixturePrior(net, 3, mode="gradient")
    biases = [p for p in net.parameters() if p.ndim == 1]
    first = torch.optim.SGD(
        [*(p for p in net.parameters() if p.ndim > 1), *prior.parameters()], lr=0.01
    )
    second = torch.optim.SGD(biases, lr=0.01)
    prior.attach([first, second], num_data=NUM_DATA, schedule=Schedule())
    loss_of(net, x, y).backward()
    gradient = biases[0].grad.clone()
    first.step()
    second.step()
    assert torch.equal(biases[0].grad, gradient)


def test_in_gradient_mode_the_mixture_is_held_until_its_burn_in_ends():
    net, x, y = problem()
    prior = MixturePrior(net, 3, mode="gradient")
    optimizer = torch.optim.SGD([*net.parameters(), *prior.parameters()], lr=0.01)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule(em_start=3))
    moved = []
    for _ in range(5):
        mean = prior.mixtures["all"].mean.detach().clone()
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
        moved.append(not torch.equal(mean, prior.mixtures["all"].mean))
    assert moved == [False] * 3 + [True] * 2
