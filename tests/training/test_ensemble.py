"""Networks side by side: each member is trained as it would be alone."""

import copy

import pytest
import torch
from ensembles import FLOAT, B, cases, everything, made, net
from torch import nn

from swsmix import GaussianNoise, HyperPrior, MixturePrior, Schedule, fit, load_run
from swsmix.training.ensemble import fit_ensemble


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


@pytest.mark.parametrize(("optimizer", "epochs"), [("adam", 80), ("l-bfgs", 20)])
def test_without_a_schedule_each_prior_enters_when_its_own_loss_has_fallen(optimizer, epochs):
    nets, priors = made()
    x, y = cases()
    data = [(x, y), (x, 0.01 * y), (x, y), (x, 3.0 * y)]
    ensemble = fit_ensemble(
        nets, nn.functional.mse_loss, data, optimizer=optimizer, epochs=epochs, priors=priors,
        lr=0.05, batch_size=10, iterations=5, seed=1, progress=False,
    )  # fmt: skip
    taus = torch.tensor([h.scalars["tau"] for h in ensemble.histories])
    entered = [(tau > 0).nonzero()[0].item() for tau in taus if (tau > 0).any()]
    assert len(entered) > 1 and min(entered) > 1
    ceilings = [0.003 * 40 / sum(p.numel() for p in (n[0].weight, n[2].weight)) for n in nets]
    assert (taus.amax(1) <= torch.tensor(ceilings) * (1 + 1e-6)).all()
    if optimizer == "adam":  # the steps are those of `fit`
        own = net(1)
        prior = MixturePrior(
            own, 3, groups="tensor", method="spread", hyper=HyperPrior(std=0.15, std_count=2.0)
        )
        alone = fit(
            own, nn.functional.mse_loss, data[1], epochs=epochs, prior=prior,
            optimizer=torch.optim.Adam(own.parameters(), 0.05), batch_size=10, seed=1,
            progress=False,
        )  # fmt: skip
        assert alone.scalars["tau"] == pytest.approx(ensemble.histories[1].scalars["tau"])
        assert alone.scalars["tau"][-1] > 0


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


@pytest.mark.parametrize(
    ("first", "optimizer", "mode"),  # every two of them together
    [(0, "l-bfgs", "em"), (0, "adam", "gradient"), (2, "l-bfgs", "gradient"), (2, "adam", "em")],
)
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
