"""What a record holds, and what it costs."""

import math

import pytest
import torch
from fits import problem, trainer
from torch import nn

from swsmix import MixturePrior, Schedule
from swsmix.tables import Tables
from swsmix.training.history import History
from swsmix.training.recording import Recorder
from swsmix.training.rounds import RoundTrainer


def test_the_training_data_need_not_be_measured():
    _, _, _, go = trainer("adam")
    history = go(2, measure_train=False)
    assert all(math.isnan(v) for v in history.scalars["train_measure"])
    assert all(math.isnan(v) for v in history.scalars["objective"])
    assert not any(math.isnan(v) for v in history.scalars["validation_measure"])


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_a_record_reads_each_weight_once_in_one_pass_per_group(mode, monkeypatch):
    net, data, validation = problem()
    prior = MixturePrior(net, 3, groups="tensor", mode=mode)
    trainer = RoundTrainer(net, nn.MSELoss(), data, "cg", num_data=48, prior=prior)
    history, sizes = History(), []
    recorder = Recorder(
        trainer, train=data, validation=validation, measure=trainer.loss, history=history
    )
    once = Tables.value_and_moments

    def counted(tables, w):
        sizes.append(w.numel())
        return once(tables, w)

    monkeypatch.setattr(Tables, "value_and_moments", counted)
    for name in ("gradient", "full", "add_gradient_", "proximal_"):
        monkeypatch.setattr(Tables, name, None)
    recorder.record(0)
    assert sizes == [net[0].weight.numel(), net[3].weight.numel()] == [24, 6]
    assert len(history) == 1 and history.groups == ("0.weight", "3.weight")


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_a_record_holds_what_the_prior_says_one_by_one(mode):
    net, data, validation = problem()
    tau = {"0.weight": 2.0, "3.weight": 0.5}
    prior = MixturePrior(net, 3, groups="tensor", mode=mode, tau=tau)
    trainer = RoundTrainer(
        net, nn.MSELoss(), data, "cg", num_data=48, prior=prior, schedule=Schedule(tau=0.3)
    )
    history = History()
    Recorder(
        trainer, train=data, validation=validation, measure=nn.L1Loss(), history=history
    ).record(7)
    terms = prior.terms().values()
    x, y = data
    expected = {
        "epoch": 7,
        "step": 0,
        "tau": 0.3,
        "data_loss": nn.MSELoss()(net(x), y).item(),
        "nll": sum(each["nll"].item() for each in terms),
        "hyper_prior": sum(each["hyper_prior"].item() for each in terms),
        "train_measure": nn.L1Loss()(net(x), y).item(),
        "validation_measure": nn.L1Loss()(net(validation[0]), validation[1]).item(),
    }
    expected["objective"] = expected["data_loss"] + 0.3 / 48 * prior.penalty().item()
    written = {name: values[0] for name, values in history.scalars.items() if name != "seconds"}
    assert written == pytest.approx(expected, rel=1e-6)
    for group in prior.mixtures:
        assert torch.equal(history.stacked(group, "count")[0], prior.moments(group).count)


def test_the_time_of_a_resumed_history_goes_on():
    net, data, _ = problem()
    trainer = RoundTrainer(net, nn.MSELoss(), data, "cg", num_data=48)
    history = History({"seconds": [1000.0]})
    Recorder(trainer, train=None, validation=None, measure=trainer.loss, history=history).record(1)
    assert 1000.0 <= history.scalars["seconds"][-1] < 1100.0


def test_the_score_is_the_validation_measure_else_the_objective():
    net, data, validation = problem()
    trainer = RoundTrainer(net, nn.MSELoss(), data, "cg", num_data=48)
    for given, name in ((validation, "validation_measure"), (None, "objective")):
        history = History()
        recorder = Recorder(
            trainer, train=data, validation=given, measure=nn.L1Loss(), history=history
        )
        recorder.record(0)
        assert recorder.score == history.scalars[name][0]
