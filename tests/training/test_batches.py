"""Training over mini-batches: their order, the learning rate, what the optimiser must hold."""

import contextlib
import copy

import pytest
import torch
from fits import problem, trainer
from torch import nn

from swsmix import GaussianNoise, MixturePrior, Schedule, fit
from swsmix.training.batches import BatchTrainer


def test_a_data_loader_resumes_bit_for_bit_too(tmp_path):
    def make(run, epochs, resume=False):
        net, (x, y), _ = problem()
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), 16, shuffle=True,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        prior = MixturePrior(net, 3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        fit(net, nn.MSELoss(), loader, optimizer=optimizer, epochs=epochs, prior=prior,
            progress=False, run=run, resume=resume)  # fmt: skip
        return net

    whole = make(tmp_path / "a", 4)
    make(tmp_path / "b", 2)
    again = make(tmp_path / "b", 4, resume=True)
    assert all(
        torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_the_same_seed_gives_the_same_network_and_another_another():
    results = []
    for seed in (0, 0, 1):
        net, _, _, go = trainer("adam", seed=seed)
        torch.manual_seed(0)
        go(2)
        results.append(net[0].weight.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_training_has_dropout_and_measuring_has_not():
    net, data, _ = problem(dropout=0.9)
    seen = {True: 0, False: 0}
    net[2].register_forward_hook(lambda m, *_: seen.update({m.training: seen[m.training] + 1}))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    net.eval()  # fit sets it right, and evaluation leaves it as it was
    history = fit(net, nn.MSELoss(), data, optimizer=optimizer, epochs=2, progress=False)
    assert seen == {True: 2, False: 3}
    assert len(set(history.scalars["data_loss"])) == 1  # no noise in what is measured


def test_each_epoch_has_an_order_of_its_own():
    net, (x, y), _ = problem()
    orders = []

    def loss(prediction, target):
        if net.training:
            orders.append(target.flatten().tolist())
        return (prediction - target).square().mean()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    fit(net, loss, (x, y), optimizer=optimizer, epochs=2, batch_size=48, progress=False)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("kind", ["step", "plateau"])
def test_the_learning_rate_follows_its_scheduler(kind):
    net, data, _ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    schedulers = torch.optim.lr_scheduler
    if kind == "step":
        scheduler = schedulers.StepLR(optimizer, 1, gamma=0.1)
    else:
        scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9)
    frozen = nn.Linear(1, 1)
    optimizer.add_param_group({"params": frozen.parameters(), "lr": 1.0})
    optimizer.param_groups[0]["lr"] = 1e-3
    fit(
        net,
        nn.MSELoss(),
        data,
        optimizer=optimizer,
        epochs=2,
        lr_scheduler=scheduler,
        progress=False,
    )
    assert optimizer.param_groups[0]["lr"] < 1e-3


def test_a_loss_with_parameters_wants_them_in_the_optimiser():
    net, data, _ = problem()
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match=r"\*loss.parameters\(\)"):
        fit(net, GaussianNoise(), data, optimizer=optimizer, epochs=1, progress=False)


@pytest.mark.parametrize("fails", [False, True])
def test_the_optimiser_is_free_of_the_prior_afterwards(fails):
    net, data, _ = problem()
    prior, optimizer = MixturePrior(net, 3), torch.optim.SGD(net.parameters(), lr=0.01)

    def interrupt(epoch, history):
        if fails:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        fit(net, nn.MSELoss(), data, optimizer=optimizer, epochs=1, prior=prior, progress=False,
            callback=interrupt)  # fmt: skip
    prior.attach(
        optimizer, num_data=48, schedule=Schedule()
    ).remove()  # a second attachment would be refused


def batch_trainer(optimizer):
    net, data, _ = problem()
    return BatchTrainer(net, nn.MSELoss(), data, optimizer(net), num_data=len(data[0]))


@pytest.mark.parametrize("damage", ["shape", "name", "kind", "betas"])
def test_a_resumed_state_that_the_optimiser_cannot_use_is_named(damage):
    def adam():
        return batch_trainer(lambda net: torch.optim.Adam(net.parameters(), lr=0.01))

    whole = adam()
    whole.epoch(1)
    state = copy.deepcopy(whole.state_dict())
    moments = state["optimizer"]["state"][0]
    if damage == "shape":
        moments["exp_avg"] = torch.zeros(3, 1, 2, 5)
    elif damage == "name":
        moments["other"] = moments.pop("exp_avg_sq")
    elif damage == "kind":
        moments["exp_avg_sq"] = 7
    else:
        state["optimizer"]["param_groups"][0]["betas"] = (0.9,)
    again = adam()
    with pytest.raises(ValueError, match=r"does not fit|damaged|has the shape"):
        again.load_state_dict(state)
        again.epoch(2)


def test_a_failing_optimiser_is_not_blamed_on_a_training_state():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyError("its own")

    made = batch_trainer(lambda net: Broken(net.parameters(), lr=0.01))
    with pytest.raises(KeyError, match="its own"):
        made.epoch(1)
