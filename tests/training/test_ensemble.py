"""Networks side by side: each member is what it would be alone."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from swsmix import GaussianNoise, HyperPrior, MixturePrior, Schedule, fit, load_run
from swsmix.diagnosis import PriorWarning
from swsmix.training.ensemble import fit_ensemble
from swsmix.training.ensemble.mixtures import Mixtures
from swsmix.training.ensemble.stacking import Stack
from swsmix.training.ensemble.trainers import RoundsOfAll

FLOAT = torch.float64
B = 4


def net(seed, dtype=FLOAT, frozen=False):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    made[0].bias.requires_grad_(not frozen)
    return made


def cases(num=40, dtype=FLOAT, seed=0):
    x = torch.randn(num, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x, torch.sin(x.sum(1, keepdim=True))


def made(mode="em", groups="tensor", dtype=FLOAT, k=3, **options):
    nets = [net(seed, dtype, **options) for seed in range(B)]
    hypers = [HyperPrior(std=0.05 + 0.1 * i, std_count=2.0) for i in range(B)]
    priors = [
        MixturePrior(n, k, mode=mode, groups=groups, method="spread", hyper=h)
        for n, h in zip(nets, hypers, strict=True)
    ]
    return nets, priors


def everything(net, prior=None, loss=None):
    """All numbers of a member as one vector."""
    modules = [m for m in (net, prior, loss) if isinstance(m, nn.Module)]
    tensors = [t for m in modules for t in m.state_dict().values()]
    return torch.cat([t.detach().reshape(-1).double() for t in tensors]).nan_to_num(-1.0)


# -- the parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own_data", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_data_term_and_its_gradient_are_each_networks(own_data, frozen):
    nets, _ = made(frozen=frozen)
    losses = [GaussianNoise(0.2 + 0.1 * i).to(FLOAT) for i in range(B)]
    data = [cases(seed=i) for i in range(B)] if own_data else cases()
    stack = Stack(nets, losses, data)
    rows = torch.tensor([2, 0])
    value, gradient = stack.value_and_gradient(stack.theta()[rows], rows)
    for place, i in enumerate(rows.tolist()):
        x, y = data[i] if own_data else data
        total = len(x) * losses[i](nets[i](x), y)
        moving = [p for p in [*nets[i].parameters(), *losses[i].parameters()] if p.requires_grad]
        grads = torch.autograd.grad(total, moving)
        torch.testing.assert_close(value[place], total.detach())
        torch.testing.assert_close(gradient[place], torch.cat([g.reshape(-1) for g in grads]))


def test_a_case_weight_of_0_leaves_the_case_out_and_of_2_counts_it_twice():
    nets, _ = made()
    x, y = cases(6)
    weights = torch.ones(B, 6, dtype=FLOAT)
    weights[1, 4:], weights[2, 0] = 0.0, 2.0
    stack = Stack(nets, nn.functional.mse_loss, (x, y), weights=weights)
    found = stack.value(stack.theta())
    assert stack.num_data().tolist() == [6.0, 4.0, 7.0, 6.0]
    for i, rows in enumerate(([*range(6)], [0, 1, 2, 3], [0, *range(6)], [*range(6)])):
        expected = len(rows) * nn.functional.mse_loss(nets[i](x[rows]), y[rows])
        torch.testing.assert_close(found[i], expected.detach())


@pytest.mark.parametrize("mode", ["em", "gradient"])
@pytest.mark.parametrize("groups", ["tensor", "global"])
def test_the_penalty_and_its_gradients_are_each_priors(mode, groups):
    nets, priors = made(mode, groups)
    stack = Stack(nets, nn.functional.mse_loss, cases())
    mixtures = Mixtures(priors, stack)
    rows = torch.tensor([3, 1])
    theta, phi = stack.theta()[rows], mixtures.phi()[rows]
    value, by_theta, by_phi = mixtures.penalty(theta, phi, rows)
    for place, i in enumerate(rows.tolist()):
        penalty = priors[i].penalty()
        penalty.backward()
        torch.testing.assert_close(value[place], penalty.detach())
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in nets[i].parameters()]
        torch.testing.assert_close(by_theta[place], torch.cat([s.reshape(-1) for s in slopes]))
        own = [
            getattr(m.parametrizations, name)[0] and m.parametrizations[name].original.grad
            for m in priors[i].mixtures.values()
            for name in (("mixing", "mean", "std") if mode == "gradient" else ())
        ]
        torch.testing.assert_close(by_phi[place], torch.cat([*own, theta[0, :0]]))


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_an_em_step_is_each_priors_and_leaves_the_others_as_they_are(rate):
    nets, priors = made()
    stack = Stack(nets, nn.functional.mse_loss, cases())
    mixtures = Mixtures(priors, stack)
    twins = [copy.deepcopy(prior) for prior in priors]
    for step in range(3):
        moves = [True, step != 1, False, True]
        rates = torch.tensor([rate * m for m in moves], dtype=FLOAT)
        mixtures.em_step_(stack.theta(), rates)
        for i, twin in enumerate(twins):
            if moves[i]:
                for p, q in zip(twin._model[0].parameters(), nets[i].parameters(), strict=True):
                    p.data.copy_(q.data)
                twin.em_step_(rate)
    mixtures.write_()
    for prior, twin in zip(priors, twins, strict=True):
        torch.testing.assert_close(everything(prior), everything(twin), rtol=1e-9, atol=1e-12)


# -- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "update"), [("em", "gradient"), ("em", "proximal"), ("gradient", None)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_under_adam_each_member_is_that_of_fit(mode, update, dtype):
    nets, priors = made(mode, dtype=dtype)
    loss = GaussianNoise(0.3).to(dtype)
    data, schedule = (
        cases(dtype=dtype),
        Schedule(tau=0.5, start=3, warmup=5, em_every=4, em_rate=0.6),
    )
    alone = []
    for i in range(B):
        (own, prior), own_loss = (copy.deepcopy((nets[i], None))[0], None), copy.deepcopy(loss)
        prior = MixturePrior(
            own,
            3,
            mode=mode,
            groups="tensor",
            method="spread",
            hyper=HyperPrior(std=0.05 + 0.1 * i, std_count=2.0),
        )
        parameters = [*own.parameters(), *own_loss.parameters()]
        parameters += [*prior.parameters()] if mode == "gradient" else []
        fit(
            own, own_loss, data, optimizer=torch.optim.Adam(parameters, lr=0.01), epochs=4,
            prior=prior, schedule=schedule, update=update, batch_size=16, seed=5, progress=False,
        )  # fmt: skip
        alone.append(everything(own, prior, own_loss))
    ensemble = fit_ensemble(
        nets, loss, data, optimizer="adam", epochs=4, priors=priors, schedule=schedule,
        update=update, lr=0.01, batch_size=16, seed=5, progress=False,
    )  # fmt: skip
    for i in range(B):
        found = everything(ensemble.models[i], ensemble.priors[i], ensemble.losses[i])
        tolerance = 1e-8 if dtype == FLOAT else 2e-3
        torch.testing.assert_close(found, alone[i], rtol=tolerance, atol=tolerance)
    assert len(ensemble.histories[0]) == 5


@pytest.mark.parametrize("optimizer", ["adam", "l-bfgs"])
def test_without_a_schedule_each_prior_enters_when_its_own_loss_has_fallen(optimizer):
    nets, priors = made()
    x, y = cases()
    data = [(x, y), (x, 0.01 * y), (x, y), (x, 3.0 * y)]
    ensemble = fit_ensemble(
        nets, nn.functional.mse_loss, data, optimizer=optimizer, epochs=200, priors=priors,
        lr=0.02, batch_size=10, iterations=5, seed=1, progress=False,
    )  # fmt: skip
    taus = torch.tensor([h.scalars["tau"] for h in ensemble.histories])
    entered = [(tau > 0).nonzero()[0].item() for tau in taus if (tau > 0).any()]
    assert len(entered) > 1 and min(entered) > 1
    ceilings = [0.003 * 40 / sum(p.numel() for p in (n[0].weight, n[2].weight)) for n in nets]
    assert (taus.amax(1) <= torch.tensor(ceilings) * (1 + 1e-6)).all()
    if optimizer == "adam":  # the steps are those of `fit`
        own = net(3)
        prior = MixturePrior(
            own, 3, groups="tensor", method="spread", hyper=HyperPrior(std=0.35, std_count=2.0)
        )
        alone = fit(
            own, nn.functional.mse_loss, data[3], epochs=200, prior=prior,
            optimizer=torch.optim.Adam(own.parameters(), 0.02), batch_size=10, seed=1,
            progress=False,
        )  # fmt: skip
        assert alone.scalars["tau"] == pytest.approx(ensemble.histories[3].scalars["tau"])


def test_from_an_automatic_start_members_split_and_merge_as_those_of_fit_do():
    data, schedule, moved = cases(), Schedule(tau=0.02, start=20, em_every=5), 0
    nets = [net(seed) for seed in range(B)]
    with torch.no_grad():  # half of the weights are two values: a start with something to move
        for n in nets:
            n[0].weight[:, :2] = 0.4 * n[0].weight[:, :2].sign()
    alone = copy.deepcopy(nets)
    priors = [MixturePrior(n, 6) for n in nets]
    ensemble = fit_ensemble(
        nets, nn.functional.mse_loss, data, optimizer="adam", epochs=20, priors=priors, lr=0.02,
        schedule=schedule, batch_size=16, seed=2, progress=False,
    )  # fmt: skip
    for i, own in enumerate(alone):
        prior = MixturePrior(own, 6)
        twin = copy.deepcopy(prior.mixtures["all"])
        fit(
            own, nn.functional.mse_loss, data, optimizer=torch.optim.Adam(own.parameters(), 0.02),
            epochs=20, prior=prior, schedule=schedule, batch_size=16, seed=2, progress=False,
        )  # fmt: skip
        moved += not torch.equal(twin.mean, prior.mixtures["all"].mean)
        found = everything(ensemble.models[i], ensemble.priors[i])
        torch.testing.assert_close(found, everything(own, prior), rtol=1e-6, atol=1e-6)
    assert moved


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_rounds_of_all_are_rounds_of_each_alone(mode):
    """Members do not see each other: with and without neighbours they end at the same place."""
    schedules = [Schedule(tau=0.1 * (i + 1), warmup=2, em_start=i, em_every=1 + i % 2, em_rate=0.7,
                          std_start=1.0, std_end=0.1, anneal=4) for i in range(B)]  # fmt: skip
    nets, priors = made(mode)
    together = fit_ensemble(
        nets, GaussianNoise(0.3), cases(), epochs=5, iterations=7, priors=priors,
        schedule=schedules, progress=False,
    )  # fmt: skip
    for i in (0, 3):
        own, their = made(mode)
        alone = fit_ensemble(
            [own[i]], GaussianNoise(0.3), cases(), epochs=5, iterations=7, priors=[their[i]],
            schedule=schedules[i], progress=False,
        )  # fmt: skip
        one = everything(alone.models[0], alone.priors[0], alone.losses[0])
        other = everything(together.models[i], together.priors[i], together.losses[i])
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_histories_and_the_objective_are_those_of_the_members_at_the_end():
    nets, priors = made()
    x, y = cases()
    ensemble = fit_ensemble(
        nets, GaussianNoise(0.3), (x, y), epochs=3, priors=priors, schedule=Schedule(tau=0.5),
        validation=cases(seed=1), measure=nn.functional.mse_loss, progress=False,
    )  # fmt: skip
    for i, history in enumerate(ensemble.histories):
        state = ensemble.priors[i].evaluate()
        data = ensemble.losses[i](ensemble.models[i](x), y).item()
        last = {name: values[-1] for name, values in history.scalars.items()}
        assert last["data_loss"] == pytest.approx(data)
        assert last["objective"] == pytest.approx(data + 0.5 / len(x) * state.penalty.item())
        assert last["objective"] * len(x) == pytest.approx(ensemble.objective[i].item())
        measured = ensemble.measures(nn.functional.mse_loss, cases(seed=1))[i].item()
        assert last["validation_measure"] == pytest.approx(measured)
        for g, mixture in ensemble.priors[i].mixtures.items():
            torch.testing.assert_close(history.stacked(g, "mean")[-1], mixture.mean)


@pytest.mark.parametrize("optimizer", ["l-bfgs", "adam"])
@pytest.mark.parametrize("mode", ["em", "gradient"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_resumed_ensemble_has_the_same_bits(first, optimizer, mode, tmp_path):
    def go(epochs, **options):
        nets, priors = made(mode)
        return fit_ensemble(
            nets, GaussianNoise(0.3), cases(), optimizer=optimizer, epochs=epochs, priors=priors,
            schedule=Schedule(tau=0.3, em_every=1, em_rate=0.5), batch_size=16, progress=False,
            **options,
        )  # fmt: skip

    whole = go(4)
    go(first, run=tmp_path / "run")
    resumed = go(4, run=tmp_path / "run", resume=True)
    for a, b in ((whole, resumed),):
        for i in range(B):
            one = everything(a.models[i], a.priors[i], a.losses[i])
            assert torch.equal(one, everything(b.models[i], b.priors[i], b.losses[i]))
            one, other = (e.histories[i].to_tensors() for e in (a, b))
            for name in one.keys() - {"scalars/seconds"}:
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)
    saved = load_run(tmp_path / "run")
    assert saved.epoch == 4 and len(saved.history) == 5
    middle = resumed.models[resumed.middle].state_dict()
    assert all(torch.equal(t, saved.network[n]) for n, t in middle.items())


def test_another_or_a_damaged_checkpoint_is_refused_by_its_name(tmp_path):
    def go(path, resume=True, **options):
        nets, priors = made(**options)
        return fit_ensemble(
            nets, nn.functional.mse_loss, cases(), epochs=2, priors=priors, run=path,
            progress=False, resume=resume,
        )  # fmt: skip

    path = tmp_path / "run"
    go(path, resume=False)
    with pytest.raises(FileExistsError, match="already holds a run"):
        go(path, resume=False)
    with pytest.raises(ValueError, match=r"training\.pt is of another ensemble"):
        go(path, k=2)
    with pytest.raises(ValueError, match=r"training\.pt is of another ensemble"):
        go(path, groups="global")
    one = net(0)
    fit(one, nn.functional.mse_loss, cases(), optimizer="l-bfgs", epochs=1, run=tmp_path / "one",
        progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="of one network, not of an ensemble"):
        go(tmp_path / "one")
    (file,) = path.glob("checkpoint-*/training.pt")
    state = torch.load(file, weights_only=True)
    state["ensemble"]["trainer"]["theta"][0, 0] = torch.nan
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"training\.pt is of another.*`theta` needs finite"):
        go(path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"training\.pt is damaged"):
        go(path)


def test_the_middle_member_is_the_fifth_of_ten_by_validation():
    nets = [net(i) for i in range(10)]
    ensemble = fit_ensemble(
        nets, nn.functional.mse_loss, cases(), epochs=1, validation=cases(seed=3), progress=False
    )
    measures = ensemble.measures(nn.functional.mse_loss, cases(seed=3))
    assert measures[ensemble.middle] == measures.sort().values[4]


# -- what it says --------------------------------------------------------------------------------


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
    "weights", [torch.zeros(1, 40), -torch.ones(1, 40), torch.full((1, 40), torch.nan)]
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
