"""What an ensemble says and what it refuses."""

import subprocess
import sys

import pytest
import torch
from ensembles import FLOAT, B, cases, everything, made, net
from torch import nn

from swsmix import MixturePrior, Schedule
from swsmix.diagnosis import PriorWarning
from swsmix.training.ensemble import fit_ensemble
from swsmix.training.ensemble.mixtures import Mixtures
from swsmix.training.ensemble.stacking import Stack
from swsmix.training.ensemble.trainers import RoundsOfAll


def test_the_prediction_the_spread_and_the_nearest_member():
    nets = [net(i) for i in range(3)]
    with torch.no_grad():
        for i, value in enumerate((0.0, 2.0, 10.0)):
            nets[i][2].weight.zero_()
            nets[i][2].bias.fill_(value)
    ensemble = fit_ensemble(nets, nn.functional.mse_loss, cases(), epochs=0, progress=False)
    mean, spread = ensemble.mean_prediction(cases()[0])
    torch.testing.assert_close(mean, torch.full_like(mean, 4.0))
    torch.testing.assert_close(spread, torch.full_like(mean, 28.0**0.5))
    assert ensemble.nearest(cases()[0]) == 1
    assert ensemble.nearest(cases()[0], decide=lambda p: p > 3.0) == 2
    assert ensemble.nearest(cases()[0], link=lambda p: (p - 1.0).clamp(0.0, 1.0)) == 1
    assert ensemble.measures(nn.functional.l1_loss, (cases()[0], torch.zeros(40, 1))).tolist() == [
        0,
        2,
        10,
    ]


def test_a_collapsed_member_is_named():
    nets = [net(seed) for seed in range(B)]
    priors = [MixturePrior(n, 1) for n in nets]
    with pytest.warns(PriorWarning, match=r"of 4 of 4 members \(0, 1, 2, 3\) has collapsed"):
        fit_ensemble(
            nets, nn.functional.mse_loss, cases(), epochs=40, priors=priors,
            schedule=Schedule(tau=20.0, em_every=1), progress=False,
        )  # fmt: skip


def test_a_member_that_is_no_longer_finite_is_named_and_nothing_changes():
    nets, priors = made()
    before = [everything(n, p) for n, p in zip(nets, priors, strict=True)]
    x, y = cases()
    data = [(x, y), (x, y), (x, torch.full_like(y, torch.inf)), (x, y)]
    with pytest.raises(FloatingPointError, match=r"of the members \[2\]"):
        fit_ensemble(nets, nn.functional.mse_loss, data, epochs=2, priors=priors, progress=False)
    for old, n, p in zip(before, nets, priors, strict=True):
        assert torch.equal(old, everything(n, p))


def batch_norm():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()


@pytest.mark.parametrize(
    ("nets", "options", "message"),
    [
        ([], {}, "at least one member"),
        ([net(0)] * 2, {}, "the same module is there twice"),
        ([net(0), net(1, frozen=True)], {}, "number 1, a Sequential, differs from number 0"),
        ([net(0), nn.Linear(3, 1).double()], {}, "differs from number 0"),
        ([batch_norm()], {}, "changes its own buffers"),
        ([net(0)], {"schedule": Schedule()}, "a schedule is for priors"),
        ([net(0)], {"resume": True}, "resume needs the folder"),
        ([net(0)], {"weights": torch.ones(1, 3)}, "case weights need the shape"),
        ([net(0)], {"data": [cases(), cases()]}, "one pair"),
        ([net(0), net(1)], {"data": [cases(), cases(9)]}, "one shape"),
        ([net(0)], {"update": "proximal"}, "follows the gradient"),
    ],
)
def test_what_does_not_fit_is_refused(nets, options, message):
    data = options.pop("data", cases())
    with pytest.raises(ValueError, match=message):
        fit_ensemble(nets, nn.functional.mse_loss, data, epochs=1, progress=False, **options)


def test_networks_that_share_a_parameter_are_refused():
    shared = nn.Linear(3, 4).double()
    nets = [nn.Sequential(shared, nn.Tanh(), nn.Linear(4, 1).double()) for _ in range(2)]
    with pytest.raises(ValueError, match="two of the networks share a parameter"):
        fit_ensemble(nets, nn.functional.mse_loss, cases(), epochs=1, progress=False)


def test_networks_that_cannot_be_stacked_are_refused_by_a_sentence():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(1, 2, batch_first=True)

        def forward(self, x):
            return self.cells(x[:, :, None])[0][:, -1, :1]

    nets = [Read().double() for _ in range(2)]
    with pytest.raises(ValueError, match="one by one with `fit`"):
        fit_ensemble(nets, nn.functional.mse_loss, cases(), epochs=1, progress=False)


@pytest.mark.parametrize(
    "weights",
    [
        torch.zeros(1, 40),
        -torch.ones(1, 40),
        torch.eye(1, 40) - 0.001,
        torch.full((1, 40), torch.nan),
    ],
)
def test_case_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="the case weights must be finite"):
        fit_ensemble(
            [net(0)], nn.functional.mse_loss, cases(), epochs=1, weights=weights, progress=False
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["trainer"].update(steps=-5),
        lambda s: s["trainer"].update(theta=s["trainer"]["theta"].long()),
        lambda s: s["trainer"]["mixtures"]["mixtures"]["0.weight"]["std"].neg_(),
        lambda s: s["trainer"]["mixtures"]["mixtures"]["2.weight"]["mixing"].fill_(5.0),
        lambda s: s["trainer"]["mixtures"]["running"]["0.weight"]["count"].fill_(-3.0),
        lambda s: s["records"].update(objective=torch.ones(2)),
        lambda s: s["trainer"]["entries"]["1"].update(entered=0),
        lambda s: s["trainer"]["entries"]["1"].update(done=9, entered=2),
    ],
)  # fmt: skip
def test_a_checkpoint_with_other_content_is_refused_by_its_name(change, tmp_path):
    def go(epochs, resume):
        nets, priors = made()
        return fit_ensemble(
            nets, nn.functional.mse_loss, cases(), epochs=epochs, priors=priors,
            run=tmp_path / "run", resume=resume, progress=False,
        )  # fmt: skip

    go(1, resume=False)
    (file,) = (tmp_path / "run").glob("checkpoint-*/training.pt")
    state = torch.load(file, weights_only=True)
    change(state["ensemble"])
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"training\.pt is of another ensemble, or damaged"):
        go(2, resume=True)


def test_priors_that_are_not_alike_are_refused():
    nets, priors = made()
    for change, message in (
        (lambda n: MixturePrior(n, 2, groups="tensor"), "numbers of components"),
        (lambda n: MixturePrior(n, 3), "groups"),
        (lambda n: MixturePrior(n, 3, groups="tensor", mode="gradient"), "mode"),
        (lambda n: priors[0], "belongs to another network"),
    ):
        mixed = [*priors[:-1], change(nets[-1])]
        with pytest.raises(ValueError, match=message):
            fit_ensemble(
                nets, nn.functional.mse_loss, cases(), epochs=1, priors=mixed, progress=False
            )


def test_every_step_of_a_line_search_lowers_each_members_objective():
    nets, priors = made()
    stack = Stack(nets, nn.functional.mse_loss, cases())
    trainer = RoundsOfAll(stack, Mixtures(priors, stack), [Schedule()] * B, 3)

    def objective():
        tau = torch.ones(B, dtype=FLOAT)
        return trainer.objective(trainer.theta, trainer.phi, trainer.everyone, tau)[0]

    for number in range(1, 20):
        before = objective()
        trainer.epoch(number)
        assert (objective() <= before + 1e-9 * before.abs()).all()


def test_a_progress_bar_is_on_standard_error_alone():
    code = (
        "import torch\nfrom swsmix.training.ensemble import fit_ensemble\n"
        "nets = [torch.nn.Linear(1, 1) for _ in range(2)]\nx = torch.ones(4, 1)\n"
        "fit_ensemble(nets, torch.nn.functional.mse_loss, (x, x), epochs=2, progress='two nets')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "two nets" in done.stderr and "±" in done.stderr and not done.stdout
