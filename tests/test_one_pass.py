"""The penalty, its gradient, the EM step and reports share one pass over the weights."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, tables
from swsmix.tables import Tables, uncompiled
from swsmix.tables.passes import DIRECT, IN_ALL


@pytest.fixture
def passes(monkeypatch):
    """The calls of tables that pass over weights, by name."""
    called = []
    for name in ("full", "value_and_moments", "gradient", "add_gradient_"):
        method = getattr(Tables, name)

        def counted(*args, name=name, method=method, **kwargs):
            called.append(name)
            return method(*args, **kwargs)

        monkeypatch.setattr(Tables, name, counted)
    return called


def prior_of(**options):
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
    return net, MixturePrior(net, 4, method="quantiles", **options)


def test_penalty_backward_and_em_step_are_one_pass(passes):
    _, prior = prior_of()
    prior.penalty().backward()
    prior.em_step_()
    assert passes == ["full"]


def test_reports_after_it_need_no_other(passes):
    _, prior = prior_of(groups="tensor")
    prior.penalty().backward()
    prior.evaluate(), prior.terms(), prior.moments("0.weight")
    assert passes == ["full", "full"]  # one per group


def test_without_gradients_none_is_made(passes):
    _, prior = prior_of()
    with torch.no_grad():
        prior.penalty()
    prior.penalty()
    assert passes == ["value_and_moments"]


def change_data(w):
    w.data.reshape(-1)[5] += 0.1


def change_in_inference_mode(w):
    with torch.inference_mode():
        w.reshape(-1)[5] += 0.1


def change_two_by_as_much(w):
    flat = w.data.reshape(-1)
    flat[0], flat[1] = 0.6, 0.8


@pytest.mark.parametrize("change", [change_data, change_in_inference_mode, change_two_by_as_much])
def test_weights_that_changed_in_any_way_are_passed_over_again(change):
    net, prior = prior_of()
    net[0].weight.data.reshape(-1)[:2] = torch.tensor([0.55, 0.85])
    before = prior.penalty()
    change(net[0].weight)
    after = prior.penalty()
    assert after == copy.deepcopy(prior).penalty() != before  # the copy has no pass to share


def test_zeros_that_go_are_noticed():
    net, prior = prior_of()
    net[0].weight.data[5:] = 0.0
    prior.penalty()
    net[0].weight = nn.Parameter(net[0].weight.detach()[:5].clone())
    assert sum(m.count.sum() for m in prior.evaluate().moments.values()).round() == 150 + 200


def test_a_pass_in_inference_mode_serves_training_too(passes):
    net, prior = prior_of()
    with torch.inference_mode():
        before = prior.evaluate().penalty
    penalty = prior.penalty()
    penalty.backward()
    assert penalty.detach() == before and net[0].weight.grad.isfinite().all()
    assert passes == ["value_and_moments", "gradient"]


def test_what_is_kept_of_a_pass_is_no_part_of_a_graph():
    net, prior = prior_of()
    net.double()
    prior.penalty()
    for last in prior.last_passes.values():
        assert not any(each.value.requires_grad for each in last.sums)


def test_weights_in_16_bits_of_a_batch_have_gradients():
    pi, mu, sd = torch.full((2, 3), 1 / 3), torch.randn(2, 3), torch.ones(2, 3)
    w = torch.randn(2, 50).half().requires_grad_()
    tables.neg_log_prior(w, pi, mu, sd).sum().backward()
    exact = tables.BatchTables(pi, mu, sd).gradient(w.detach().double())
    assert torch.allclose(w.grad.double(), exact, atol=2e-3)


def test_a_mixture_that_changed_is_passed_over_again(passes):
    _, prior = prior_of()
    with torch.no_grad():
        before = prior.penalty()
        prior.mixtures["all"].std.data *= 1.5
        assert prior.penalty() != before
    assert passes == ["value_and_moments"] * 2


@pytest.mark.parametrize("mode", ["em", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_the_same_from_a_shared_pass(mode, dtype):
    net, prior = prior_of(mode=mode)
    net.to(dtype)
    wanted = [net[0].weight, net[1].weight, *prior.parameters()]
    first = torch.autograd.grad(prior.penalty(), wanted)
    penalty = prior.penalty()  # of the same weights: the pass before
    again = torch.autograd.grad(3.0 * penalty, wanted, retain_graph=True)
    once_more = torch.autograd.grad(3.0 * penalty, wanted)
    prior.last_passes.clear()
    fresh = torch.autograd.grad(3.0 * prior.penalty(), wanted)
    for one, other, third, alone in zip(first, again, once_more, fresh, strict=True):
        assert torch.allclose(3.0 * one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5)
        assert torch.equal(other, third) and torch.equal(other, alone)


def test_the_gradient_of_a_new_pass_can_be_asked_for_twice():
    net, prior = prior_of()
    penalty = prior.penalty()
    one = torch.autograd.grad(penalty, net[0].weight, retain_graph=True)[0].clone()
    assert torch.allclose(torch.autograd.grad(2.0 * penalty, net[0].weight)[0], 2.0 * one)


def test_copies_do_not_take_the_pass_along():
    _, prior = prior_of()
    prior.penalty()
    assert prior.last_passes and not copy.deepcopy(prior).last_passes


@pytest.mark.parametrize("context", [nullcontext, uncompiled])
def test_a_mixture_of_few_weights_in_all_has_no_cells_where_loops_are_compiled(context):
    net = nn.Sequential(nn.Linear(150, 100, bias=False), nn.Linear(100, 500, bias=False))
    few, many = (MixturePrior(net, 10, include=i, method="quantiles") for i in ("0.weight", "*"))
    assert DIRECT < 10 * 15_000 <= IN_ALL < 10 * 65_000
    mixture, w = few.mixtures["all"], net[0].weight.detach()
    many.mixtures["all"].load_state_dict(mixture.state_dict())
    exact = tables.direct(mixture.mixing, mixture.mean, mixture.std).gradient(w)
    with context():
        for prior, has_cells in ((few, context is uncompiled), (many, True)):
            table = prior.tables_of("all")
            bound = (1e-5 if has_cells else 1e-6) * (exact.abs() + 1e3)
            assert bool(((table.gradient(w) - exact).abs() <= bound).all())
            assert ("cells" in vars(table.passes)) == has_cells
