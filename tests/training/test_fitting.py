"""fit: records, checkpoints, early stopping, progress; the same for both trainers."""

from inspect import unwrap

import pytest
import torch
from fits import METHODS, problem, trainer
from torch import nn

from swsmix import GaussianNoise, MixturePrior, Schedule, fit, load_run
from swsmix.training.batches import BatchTrainer
from swsmix.training.rounds import RoundTrainer


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


def test_without_a_prior_it_trains_on_the_data_alone():
    net, data, _ = problem()
    history = fit(net, nn.MSELoss(), data, optimizer="l-bfgs", epochs=3, progress=False)
    assert history.groups == () and history.scalars["data_loss"][-1] < 0.3
    assert history.scalars["objective"] == history.scalars["data_loss"]


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


def test_a_loss_that_is_nan_before_any_step_names_the_data():
    net, (x, y), _ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(FloatingPointError, match="nan or inf in the data"):
        fit(net, nn.MSELoss(), (x * torch.nan, y), optimizer=optimizer, epochs=5, progress=False)


@pytest.mark.parametrize("method", ["adam", "l-bfgs"])
def test_fit_is_its_trainers_epochs_one_after_the_other(method):
    net, (x, y), _ = problem()
    by_hand, _, _ = problem()
    mean_square, schedule = nn.MSELoss(), Schedule(tau=0.5, em_every=2)

    def parts(of):
        adam = torch.optim.Adam(of.parameters(), lr=0.01)
        return MixturePrior(of, 3), adam if method == "adam" else method

    prior, optimizer = parts(net)
    history = fit(net, mean_square, (x, y), optimizer=optimizer, epochs=3, prior=prior,
                  schedule=schedule, batch_size=10, iterations=4, progress=False)  # fmt: skip
    prior, optimizer = parts(by_hand)
    shared = {"num_data": len(x), "prior": prior, "schedule": schedule}
    if method == "adam":
        trainer = BatchTrainer(by_hand, mean_square, (x, y), optimizer, batch_size=10, **shared)
    else:
        trainer = RoundTrainer(by_hand, mean_square, (x, y), method, iterations=4, **shared)
    for epoch in (1, 2, 3):
        trainer.epoch(epoch)
        trainer.adapt_rate(0.0)
    trainer.close()
    assert all(
        torch.equal(p, q) for p, q in zip(net.parameters(), by_hand.parameters(), strict=True)
    )
    assert history.scalars["step"][-1] == trainer.steps == trainer.tick


def test_progress_is_shown_on_standard_error_and_can_be_turned_off(capfd):
    net, data, _ = problem()
    for progress in (True, "a label", False):
        fit(net, nn.MSELoss(), data, optimizer="l-bfgs", epochs=2, prior=MixturePrior(net, 3),
            progress=progress)  # fmt: skip
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("2/2" in shown.err and "objective" in shown.err) == (progress is not False)
        assert ("a label" in shown.err) == (progress == "a label")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "newton"}, "'l-bfgs' or 'cg'; got 'newton'"),
        ({"patience": 3}, "needs validation data"),
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
