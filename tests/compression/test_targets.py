"""Compressing to a target: the bound holds, the size is met, what is not met is named."""

import copy
import math

import pytest
import torch
from classifiers import pretrained
from torch import nn

from swsmix import MixturePrior, Schedule, fit
from swsmix.codec import encode
from swsmix.compression import (
    Recipe,
    Target,
    TargetError,
    compress_,
    load_compressed,
    save_compressed,
)
from swsmix.compression.multiplier import LedSchedule, Multiplier
from swsmix.compression.phases import Job
from swsmix.compression.search import _Search
from swsmix.compression.spending import entropy_bytes
from swsmix.training.history import History

SHORT = Recipe(
    num_components=5, sparsify_epochs=8, quantise_epochs=4, finetune_epochs=1, em_every=10,
    sparsify_lr=5e-3, quantise_lr=3e-3, finetune_lr=5e-4,
)  # fmt: skip
loss = nn.functional.cross_entropy


def errors(logits, target):
    """In percent."""
    return 100.0 * (logits.argmax(-1) != target).double().mean()


def problem(seed=0):
    """Ten of thirty inputs matter, unequally, and a pretrained network knows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 30, generator=generator)
    score = (x[:, :10] * torch.linspace(0.2, 1.0, 10)).sum(1) + x[:, 0] * x[:, 1]
    y = (score + 0.3 * torch.randn(1000, generator=generator) > 0).long()
    return pretrained(x, y, generator, hidden=24, num_train=600, steps=80)


def compressed(net, data, validation, target, **options):
    options = {"recipe": SHORT, "batch_size": 30, "progress": False, "measure": errors, **options}
    return compress_(net, loss, data, target=target, validation=validation, **options)


def score(net, function, data):
    with torch.no_grad():
        return function(net.eval()(data[0]), data[1]).item()


def reread(net, done, folder):
    """The network as its file has it, and the file's size."""
    size = save_compressed(folder / "net.sws", net, done.prior)
    assert size == (folder / "net.sws").stat().st_size
    again = copy.deepcopy(net)
    again.load_state_dict(load_compressed(folder / "net.sws"))
    return again, size


@pytest.mark.parametrize(
    ("target", "function"),
    [(Target(loss_increase=0.03), loss), (Target(measure_increase=2.0), errors)],
    ids=["loss", "errors"],
)
def test_a_bound_is_met_by_the_network_in_the_file_and_most_of_it_is_used(
    target, function, tmp_path
):
    net, data, validation = problem()
    before = score(net, function, validation)
    done = compressed(net, data, validation, target)
    again, size = reread(net, done, tmp_path)
    after = score(again, function, validation)
    assert after <= before + target.allowed + 1e-6
    assert after >= before + 0.75 * target.allowed - 1e-6
    assert done.reached.start == pytest.approx(before, rel=1e-6)
    assert done.reached.value == pytest.approx(after, rel=1e-6)
    assert done.reached.used == pytest.approx((after - before) / target.allowed, abs=1e-4)
    assert done.reached.size_bytes == size
    assert any(step.value == done.reached.value for step in done.reached.path)


@pytest.mark.parametrize("asked", [250, 700, 1450])
def test_a_file_takes_what_was_asked_for_but_for_five_percent(asked, tmp_path):
    net, data, validation = problem()
    done = compressed(net, data, validation, Target(size_bytes=asked))
    again, size = reread(net, done, tmp_path)
    assert 0.95 * asked <= size <= asked
    assert done.reached.size_bytes == size
    assert done.reached.value == pytest.approx(score(again, loss, validation), rel=1e-6)


def test_a_size_above_what_many_values_take_is_said(tmp_path):
    net, data, validation = problem()
    with pytest.warns(
        UserWarning, match=r"bytes that were asked for.*save the weights as they are"
    ):
        done = compressed(net, data, validation, Target(size_bytes=10**6))
    assert done.reached.size_bytes == reread(net, done, tmp_path)[1] < 0.95e6


def test_a_size_that_is_not_met_names_the_nearest_and_leaves_the_network(tmp_path):
    net, data, validation = problem()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        TargetError, match=r"size_bytes=20 was not met.*bytes.*larger size"
    ) as error:
        compressed(net, data, validation, Target(size_bytes=20))
    nearest = error.value.nearest
    assert f"{nearest.size_bytes:,} bytes" in str(error.value)
    assert save_compressed(tmp_path / "near.sws", error.value.state) == nearest.size_bytes
    sizes = [step.size_bytes for step in nearest.path if step.size_bytes is not None]
    assert nearest.size_bytes == min(sizes) > 20
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_a_bound_that_is_not_met_is_tried_ever_more_gently_and_the_nearest_is_named(monkeypatch):
    kept, keep = [], _Search.keep
    monkeypatch.setattr(
        _Search, "keep", lambda *a, **more: kept.append(keep(*a, **more)) or kept[-1]
    )
    teacher, data, validation = problem()
    with torch.no_grad():  # any change of the weights is a loss
        exact = [(x, teacher(x)) for x, _ in (data, validation)]
    with pytest.raises(TargetError, match="loss_increase=1e-12 was not met") as error:
        compress_(
            copy.deepcopy(teacher), nn.functional.mse_loss, exact[0], recipe=SHORT, progress=False,
            target=Target(loss_increase=1e-12), validation=exact[1],
        )  # fmt: skip
    near, net = error.value.nearest, copy.deepcopy(teacher)
    net.load_state_dict(error.value.state)
    assert near.value == pytest.approx(score(net, nn.functional.mse_loss, exact[1]), rel=1e-5)
    snapped = {s.phase: s.value for s in near.path if not s.phase.startswith("sparsify")}
    trials = [f"{kind}{trial}" for trial in ("", "-2", "-3") for kind in ("snap", "snap-finely")]
    assert list(snapped) == [*trials, "snap-given"]
    assert near.value == snapped["snap-given"] == min(snapped.values()) > 0.0
    taus = {s.phase: s.multiplier for s in reversed(near.path)}  # of the first epoch
    assert taus["sparsify"] > taus["sparsify-2"] > taus["sparsify-3"] > taus["snap-given"] == 0.0
    for each in kept:  # of what is not encoded the clusters' entropy and the other tensors
        size = len(encode(each.state))
        assert 0.7 * size - 40 <= each.bytes <= size


def test_biases_take_fewer_bits_only_where_the_bound_allows_it():
    net, x = nn.Linear(4, 2), torch.eye(4)
    with torch.no_grad():
        net.weight.copy_(torch.eye(4)[:2])
        net.bias.copy_(torch.tensor([1 / 3, 100 / 7]))
    exact, index = net.bias.detach().clone(), {"weight": net.weight.long()}
    validation = x, net(x).detach()
    job = Job(
        net, nn.functional.mse_loss, validation, SHORT, {"weight": net.weight}, {"weight": 1.0},
        1, {}, {"validation": validation}, None, 0,
    )  # fmt: skip
    kept = _Search(job, Target(loss_increase=1e-9), job.loss).keep("", index, 0.0, 0.0)
    assert kept.value == 0.0 and torch.equal(kept.state["bias"], exact)
    assert kept.bytes == entropy_bytes(index) + exact.nbytes
    kept = _Search(job, Target(loss_increase=9.0), job.loss).keep("", index, 0.0, 0.0)
    assert kept.value > 0.0 and not torch.equal(kept.state["bias"], exact)
    assert entropy_bytes(index) < kept.bytes < entropy_bytes(index) + exact.nbytes


def test_the_same_seed_gives_the_same_bits_and_an_interrupted_call_resumes(tmp_path):
    class InterruptError(Exception):
        pass

    steps = 0

    def broken(prediction, target):
        nonlocal steps
        steps += torch.is_grad_enabled()
        if steps == 20 * 5:  # amid the first phase
            raise InterruptError
        return loss(prediction, target)

    straight, data, validation = problem()
    first = compressed(straight, data, validation, Target(loss_increase=0.03))
    net, _, _ = problem()
    before = copy.deepcopy(net.state_dict())
    options = {
        "target": Target(loss_increase=0.03), "recipe": SHORT, "batch_size": 30, "progress": False,
        "measure": errors, "validation": validation, "run": tmp_path / "run",
    }  # fmt: skip
    with pytest.raises(InterruptError):
        compress_(net, broken, data, **options)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    second = compress_(net, loss, data, resume=True, **options)
    assert second.reached == first.reached
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in straight.state_dict().items())


@pytest.mark.parametrize(
    "given",
    [{}, {"loss_increase": 0.1, "size_bytes": 3}, {"loss_increase": 0.1, "measure_increase": 0.1}],
)
def test_a_target_is_exactly_one(given):
    with pytest.raises(ValueError, match="exactly one of loss_increase, measure_increase and size"):
        Target(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_increase": -0.1}, "at least 0; got -0.1"),
        ({"measure_increase": math.inf}, "finite"),
        ({"loss_increase": math.nan}, "finite"),
        ({"size_bytes": 0}, "at least 1; got 0"),
    ],
)
def test_impossible_targets_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Target(**given)


def test_a_target_needs_validation_data_and_a_bound_on_the_measure_needs_the_measure():
    net, data, validation = problem()
    with pytest.raises(ValueError, match=r"pass validation=\(x, y\)"):
        compressed(net, data, None, Target(loss_increase=0.1))
    with pytest.raises(ValueError, match="measure_increase needs the measure"):
        compressed(net, data, validation, Target(measure_increase=0.1), measure=None)


def test_the_multiplier_rises_below_the_bound_and_falls_above_it():
    multiplier = Multiplier(1.0, 0.5, start=2.0, allowance=0.1, goal=0.7, least=0.01)
    history = History(scalars={"validation_measure": [2.0]})
    taus = []
    for epoch, value in enumerate([2.0, 2.0, 2.07, 2.3, 2.3, math.inf, 2.0, 2.0, 2.0, 2.0, 2.0], 1):
        history.scalars["validation_measure"].append(value)
        multiplier.follow(epoch, history)
        taus.append(multiplier.tau)
    assert 1.0 < taus[0] < taus[1] < taus[2]
    assert taus[2] > taus[3] > taus[4] > taus[5]
    assert taus[-1] > taus[-2]
    assert all(
        abs(math.log(b / a)) <= 2.0 * 0.5 + 1e-9 for a, b in zip(taus[:-1], taus[1:], strict=True)
    )


@pytest.mark.parametrize(
    ("used", "room"), [(0.0, 0.7), (1.0, 0.2), (-3.0, 1.0), (9.0, -2.0), (math.nan, -2.0)]
)
def test_an_epoch_moves_log_tau_by_the_rate_times_the_room_of_half_its_value(used, room):
    multiplier = Multiplier(0.5, 0.1, start=2.0, allowance=0.2, goal=0.7, least=0.01)
    multiplier.follow(1, History(scalars={"validation_measure": [2.0, 2.0 + 0.2 * used]}))
    assert math.log(multiplier.tau / 0.5) == pytest.approx(0.1 * room)


def led(epochs, folder):
    """A run under a multiplier, continued where the folder has one; tau of each epoch."""
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    net = nn.Linear(5, 1)
    multiplier = Multiplier(1e-3, 0.5, start=1.0, allowance=0.5, goal=0.7, least=1e-5)
    multiplier.resume(folder)
    history = fit(
        net, nn.functional.mse_loss, (x, x[:, :1]), validation=(x, x[:, :1]), epochs=epochs,
        optimizer=torch.optim.Adam(net.parameters(), 0.05), prior=MixturePrior(net, 2), run=folder,
        schedule=LedSchedule(tau=1.0, em_every=1, multiplier=multiplier), resume=True,
        callback=multiplier.follow, progress=False, batch_size=20,
    )  # fmt: skip
    return multiplier, history.scalars["tau"][1:]


def test_a_multiplier_leads_tau_and_resumes_where_the_interrupted_run_left_it(tmp_path):
    whole, taus = led(6, tmp_path / "whole")
    assert taus[0] == 1e-3 and len(set(taus)) == 6
    led(3, tmp_path / "parts")
    parts, again = led(6, tmp_path / "parts")
    assert again == taus and (parts.tau, parts.mean) == (whole.tau, whole.mean)


def test_a_schedule_without_a_multiplier_is_the_schedule():
    led, plain = (kind(tau=0.3, start=2, warmup=5) for kind in (LedSchedule, Schedule))
    assert [led.tau_at(tick) for tick in range(9)] == [plain.tau_at(tick) for tick in range(9)]
