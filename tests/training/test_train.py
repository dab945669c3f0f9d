import math
from inspect import unwrap

import pytest
import torch
from torch import nn

from swsmix import GaussianNoise, HyperPrior, MixturePrior, Schedule, fit, load_run


def problem(seed=0, dropout=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 4, generator=generator)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.1 * torch.randn(64, 1, generator=generator)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net, (x[:48], y[:48]), (x[48:], y[48:])


def trainer(method, mode="em", **options):
    """A net with all that belongs to it, and how to fit it for some epochs."""
    net, data, validation = problem(dropout=0.2 if method == "adam" else 0.0)
    loss = GaussianNoise(0.3)
    prior = MixturePrior(net, 3, mode=mode)
    optimizer, more = method, {"iterations": 8}
    if method == "adam":
        groups = [*net.parameters(), *loss.parameters(), *prior.parameters()]
        optimizer = torch.optim.Adam(groups, lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        more = {"batch_size": 10, "lr_scheduler": scheduler}
    schedule = Schedule(tau=0.5, warmup=2, em_every=2, em_rate=0.7)

    def go(epochs, **extra):
        return fit(
            net, loss, data, optimizer=optimizer, epochs=epochs, prior=prior, schedule=schedule,
            validation=validation, progress=False, **more, **options, **extra,
        )  # fmt: skip

    return net, prior, loss, go


METHODS = [
    ("adam", "em"),
    ("adam", "gradient"),
    ("l-bfgs", "em"),
    ("l-bfgs", "gradient"),
    ("cg", "em"),
]


@pytest.mark.parametrize(("method", "mode"), METHODS)
def test_the_objective_falls_and_the_history_tells_the_terms(method, mode):
    _, prior, _, go = trainer(method, mode)
    history = go(6)
    scalars = history.scalars
    assert len(history) == 7 and scalars["epoch"] == [0, 1, 2, 3, 4, 5, 6]
    assert scalars["objective"][-1] < scalars["objective"][0]
    for i in range(7):
        total = scalars["data_loss"][i] + scalars["tau"][i] / 48 * (
            scalars["nll"][i] + scalars["hyper_prior"][i]
        )
        assert scalars["objective"][i] == pytest.approx(total, rel=1e-5, abs=1e-5)
    assert history.stacked("all", "count").sum(1).tolist() == pytest.approx([30.0] * 7)
    assert history.stacked("all", "bin_counts").sum(1).tolist() == [30.0] * 7
    torch.testing.assert_close(
        history.stacked("all", "mean")[-1], prior.mixtures["all"].mean.detach().double()
    )


@pytest.mark.parametrize(("method", "mode"), METHODS)
def test_half_the_epochs_then_resume_equals_all_of_them_bit_for_bit(method, mode, tmp_path):
    torch.manual_seed(5)
    whole, prior, loss, go = trainer(method, mode)
    history = go(6)
    torch.manual_seed(5)
    trainer(method, mode)[3](3, run=tmp_path / "run")
    torch.manual_seed(77)  # a fresh process has another global state
    again, other_prior, other_loss, go_on = trainer(method, mode)
    with torch.no_grad():
        again[0].weight.add_(1.0)  # and another network
    other = go_on(6, run=tmp_path / "run", resume=True)
    for a, b in ((whole, again), (prior, other_prior), (loss, other_loss)):
        for key, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[key]) or value.isnan().all(), key
    for name in set(history.scalars) - {"seconds"}:
        torch.testing.assert_close(
            torch.tensor(history.scalars[name]), torch.tensor(other.scalars[name]), rtol=0, atol=0
        )
    assert torch.equal(history.stacked("all", "std"), other.stacked("all", "std"))


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


def test_without_a_prior_it_trains_on_the_data_alone():
    net, data, _ = problem()
    history = fit(net, nn.MSELoss(), data, optimizer="l-bfgs", epochs=3, progress=False)
    assert history.groups == () and history.scalars["data_loss"][-1] < 0.3
    assert history.scalars["objective"] == history.scalars["data_loss"]


def linear():
    """A linear problem, where full-batch training really converges."""
    _, (x, y), _ = problem()
    net = nn.Linear(4, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, 0.4, -0.3, -0.2]]))
    return net, x.double(), y.double()


def test_full_batch_training_ends_where_data_and_prior_balance():
    net, x, y = linear()
    loss = GaussianNoise(0.3).double()
    prior = MixturePrior(net, 2, hyper=HyperPrior(std=0.1))
    options = {"optimizer": "l-bfgs", "iterations": 50, "epochs": 60, "progress": False}
    fit(net, loss, (x, y), prior=prior, **options)
    objective = len(x) * loss(net(x), y) + prior.penalty()
    gradient = torch.autograd.grad(objective, [*net.parameters(), *loss.parameters()])
    (pull,) = torch.autograd.grad(prior.penalty(), net.weight)
    assert pull.abs().max() > 0.1  # the prior does pull there
    assert max(g.abs().max() for g in gradient) < 1e-3 * pull.abs().max()
    mean = prior.mixtures["all"].mean.clone()
    prior.em_step_()
    torch.testing.assert_close(prior.mixtures["all"].mean, mean, atol=1e-5, rtol=0)


def test_learned_noise_is_the_root_mean_squared_residual_at_the_optimum():
    net, x, y = linear()
    loss = GaussianNoise(1.0).double()
    fit(net, loss, (x, y), optimizer="l-bfgs", iterations=50, epochs=2, progress=False)
    rms = (net(x) - y).square().mean().sqrt().item()
    assert loss.std == pytest.approx(rms, rel=1e-5)


def test_gaussian_noise_is_torchs_gaussian_likelihood():
    loss = GaussianNoise(0.7)
    a, b = torch.randn(9, generator=torch.Generator().manual_seed(0)), torch.zeros(9)
    expected = -torch.distributions.Normal(a, 0.7).log_prob(b).mean()
    torch.testing.assert_close(loss(a, b), expected)
    with pytest.raises(ValueError, match=r"one shape; got \(9,\) and \(3, 3\)"):
        loss(a, b.view(3, 3))


def test_early_stopping_returns_the_best_network_by_validation(tmp_path):
    net, data, _ = problem()
    values = iter([9.0, 5.0, 3.0, 4.0, 4.0, 4.0, 1.0])
    seen = {}

    def measure(prediction, target):
        if len(target) == 48:
            return torch.tensor(0.0)
        seen["net"] = {k: v.clone() for k, v in net.state_dict().items()}
        value = next(values)
        if value == 3.0:
            seen["best"] = seen["net"]
        return torch.tensor(value)

    validation = (data[0][:5], data[1][:5])
    history = fit(
        net, nn.MSELoss(), data, optimizer="l-bfgs", iterations=2, epochs=50,
        prior=MixturePrior(net, 3), validation=validation, measure=measure, patience=3,
        run=tmp_path, progress=False,
    )  # fmt: skip
    assert history.scalars["epoch"] == [0, 1, 2, 3, 4, 5, 5]  # the last is the net gone back to
    assert all(torch.equal(v, seen["best"][k]) for k, v in net.state_dict().items())
    assert torch.equal(load_run(tmp_path).network["0.weight"], net[0].weight)


@pytest.mark.parametrize("resumed", [False, True])
def test_early_stopping_goes_back_with_mixture_and_noise_resumed_or_not(resumed, tmp_path):
    def scripted(run, epochs, resume=False):
        net, data, validation = problem()
        loss, prior = GaussianNoise(0.5), MixturePrior(net, 3)
        states = []

        def measure(prediction, target):
            if len(target) != 16:
                return torch.tensor(0.0)
            states.append([m.state_dict() for m in (net, prior, loss)])
            states[-1] = [{k: v.clone() for k, v in s.items()} for s in states[-1]]
            # Best at epoch 2, whatever the network.
            best = loss.std == pytest.approx(stds[2]) if len(stds) == 7 else False
            return torch.tensor(0.0 if best else 1.0)

        def note(epoch, history):
            if not fixed:
                stds.append(loss.std)

        fixed = len(stds) == 7
        if not fixed:
            stds[:] = [loss.std]
        history = fit(
            net, loss, data, optimizer="l-bfgs", iterations=3, epochs=epochs, prior=prior,
            validation=validation, measure=measure, patience=3 if fixed else None, run=run,
            resume=resume, callback=note, progress=False,
        )  # fmt: skip
        return loss, prior, history

    stds = []
    scripted(None, 6)  # where the noise stands after each epoch
    if resumed:
        scripted(tmp_path, 4)
    loss, prior, history = scripted(tmp_path if resumed else None, 50, resume=resumed)
    assert loss.std == pytest.approx(stds[2])
    last = {k: v[-1] for k, v in history.scalars.items()}
    assert last["epoch"] == 5 and last["validation_measure"] == 0.0
    assert last["data_loss"] == pytest.approx(history.scalars["data_loss"][2])
    torch.testing.assert_close(
        prior.mixtures["all"].mean.double(), history.stacked("all", "mean")[2]
    )


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


def test_ctrl_c_in_a_full_batch_round_leaves_no_line_search_point():
    net, (x, y), _ = problem()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    calls = []

    def loss(prediction, target):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return (prediction - target).square().mean()

    with pytest.raises(KeyboardInterrupt):
        fit(net, loss, (x, y), optimizer="l-bfgs", epochs=1, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_run_folder_is_not_overwritten(tmp_path):
    *_, go = trainer("l-bfgs")
    go(1, run=tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        trainer("l-bfgs")[3](1, run=tmp_path)
    trainer("l-bfgs")[3](3, run=tmp_path, resume=True)
    with pytest.raises(ValueError, match="done 3 epochs already; got epochs=2"):
        trainer("l-bfgs")[3](2, run=tmp_path, resume=True)


def test_ctrl_c_leaves_a_checkpoint_from_which_training_goes_on(tmp_path):
    def interrupt(epoch, history):
        if epoch == 2:
            raise KeyboardInterrupt

    *_, go = trainer("adam")
    with pytest.raises(KeyboardInterrupt):
        go(5, run=tmp_path, callback=interrupt)
    assert load_run(tmp_path).epoch == 2
    *_, again = trainer("adam")
    assert len(again(5, run=tmp_path, resume=True)) == 6


def test_a_divergence_is_an_error_that_keeps_the_last_checkpoint(tmp_path):
    net, data, _ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e20)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(net, nn.MSELoss(), data, optimizer=optimizer, epochs=5, run=tmp_path, progress=False)
    assert all(torch.isfinite(v).all() for v in load_run(tmp_path).network.values())


def test_progress_is_shown_and_can_be_turned_off(capfd):
    net, data, _ = problem()
    for progress in (True, False):
        fit(net, nn.MSELoss(), data, optimizer="l-bfgs", epochs=2, prior=MixturePrior(net, 3),
            progress=progress)  # fmt: skip
        assert ("2/2" in capfd.readouterr().out) == progress


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "newton"}, "'l-bfgs' or 'cg'; got 'newton'"),
        ({"patience": 3}, "wants validation data"),
        ({"resume": True}, "run folder in run="),
        ({"data": [problem()[1]]}, "num_data"),
        ({"data": iter([]), "num_data": 3}, "two tensors"),
        ({"data": (torch.zeros(4, 4), torch.zeros(3, 1))}, "one length; got 4 and 3"),
        ({"patience": 0}, "at least 1 epoch"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)}, "holds no parameter"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    net, data, _ = problem()
    arguments = {"data": data, "optimizer": "l-bfgs", "epochs": 1, "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        unwrap(fit)(net, nn.MSELoss(), arguments.pop("data"), **arguments)


def test_a_loss_with_parameters_wants_them_in_the_optimiser():
    net, data, _ = problem()
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match=r"\*loss.parameters\(\)"):
        fit(net, GaussianNoise(), data, optimizer=optimizer, epochs=1, progress=False)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_noise_wants_a_positive_std(std):
    with pytest.raises(ValueError, match="std must be positive"):
        GaussianNoise(std)


def test_the_training_data_need_not_be_measured():
    _, _, _, go = trainer("adam")
    history = go(2, measure_train=False)
    assert all(math.isnan(v) for v in history.scalars["train_measure"])
    assert all(math.isnan(v) for v in history.scalars["objective"])
    assert not any(math.isnan(v) for v in history.scalars["validation_measure"])
