"""Whose step it is: the prior acts once per step, by the step that the optimiser really makes."""

import functools

import pytest
import torch
from loops import NUM_DATA, TAU, attached, by_hand, make, problem, same, train
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, RMSprop

from swsmix import MixturePrior, Schedule

# -- what decides about the step ----------------------------------------------------------------


class Sign(torch.optim.Adam):
    """Its class is Adam's, its step is not: there are no second moments."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])


class Inherited(torch.optim.Adam):
    """Adam's own step, under another name."""


class Relative(torch.optim.SGD):
    """Steps that are scaled by a thousandth of the weights' norm (as LARS has it)."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    scale = 1e-3 * float(p.norm() / p.grad.norm())
                    p.add_(p.grad, alpha=-group["lr"] * scale)


@pytest.mark.parametrize(
    ("kind", "update"),
    [(Sign, "gradient"), (Relative, "gradient"), (Inherited, "proximal")],
)
def test_the_optimisers_own_step_decides_about_the_update_not_its_class(kind, update):
    net, prior = make()
    optimizer = kind(net.parameters(), lr=1e-3)
    attachment = prior.attach(optimizer, num_data=100, schedule=Schedule(em_every=2))
    train(net, optimizer)
    assert attachment.update == update and attachment.tick == 5
    assert net.weight.isfinite().all()


def test_a_scheduler_that_wraps_the_step_changes_nothing():
    net, prior = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert prior.attach(optimizer, num_data=100, schedule=Schedule()).update == "proximal"


def test_sgd_with_momentum_one_has_no_finite_step_and_takes_the_gradient():
    net, prior = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=1.0)
    attachment = prior.attach(optimizer, num_data=100, schedule=Schedule())
    train(net, optimizer)
    assert attachment.update == "gradient" and net.weight.isfinite().all()


@pytest.mark.parametrize("spoil", ["momentum", "state"])
def test_a_step_that_becomes_unknown_falls_back_to_the_gradient_and_says_so_once(spoil):
    net, prior = make()
    kind = torch.optim.SGD if spoil == "momentum" else torch.optim.Adam
    options = {"momentum": 0.5} if spoil == "momentum" else {}
    optimizer = kind(net.parameters(), lr=1e-3, **options)
    attachment = prior.attach(optimizer, num_data=100, schedule=Schedule())
    train(net, optimizer, 2)
    assert attachment.update == "proximal"
    if spoil == "momentum":
        optimizer.param_groups[0]["momentum"] = 1.0
    else:  # an optimiser that drops its second moments after its step
        optimizer.register_step_post_hook(lambda *_: None)
        hook = torch.optim.Optimizer.register_step_post_hook
        attachment.remove()
        hook(optimizer, lambda o, *_: o.state[net.weight].pop("exp_avg_sq", None))
        attachment = prior.attach(optimizer, num_data=100, schedule=Schedule())
    with pytest.warns(UserWarning, match="not known or not finite") as said:
        train(net, optimizer, 1)
        if spoil == "momentum":
            train(net, optimizer, 2)
    assert len([w for w in said if "not finite" in str(w.message)]) == 1
    assert attachment.update == "gradient" and net.weight.isfinite().all()


# -- steps within steps -----------------------------------------------------------------------


def calling_its_parent(kind):
    """A class of its own whose step calls `super().step()`, as clipping subclasses do."""

    class Child(kind):
        @torch.no_grad()
        def step(self, closure=None):
            return super().step(closure)

    kind([nn.Parameter(torch.zeros(1))])  # now torch has put hooks around the parent's step too
    return Child


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", [SGD, AdamW, RMSprop])
def test_a_step_that_calls_its_parents_meets_the_prior_once(kind, depth):
    for _ in range(depth):
        kind = calling_its_parent(kind)
    make = functools.partial(kind, lr=1e-2)
    same(attached(make), by_hand(make), rtol=1e-9, atol=1e-12)


def test_a_step_that_raised_leaves_no_trace():
    def fails_once(optimizer, closure):
        def raising():
            raise RuntimeError

        with pytest.raises(RuntimeError):
            optimizer.step(raising)
        closure()
        optimizer.step()

    make = functools.partial(calling_its_parent(SGD), lr=0.05)
    same(attached(make, step=fails_once), by_hand(make), rtol=1e-9, atol=1e-12)


# -- whose step it is -------------------------------------------------------------------------


class Disguised(Adam):
    """A step of its own that carries Adam's name."""

    @functools.wraps(Adam.step)
    def step(self, closure=None):
        raise NotImplementedError


class Centred(Adam):
    """Adam's step on gradients of its own."""

    def _init_group(self, group, params, gradients, *rest):
        result = super()._init_group(group, params, gradients, *rest)
        gradients[:] = [g - g.mean() for g in gradients]
        return result


def scaled_by_a_wrapper(params):
    optimizer = SGD(params, lr=0.1)
    own = optimizer.step

    @functools.wraps(own)
    def twice(*args):
        own(*args)
        own(*args)

    optimizer.step = twice
    return optimizer


@pytest.mark.parametrize("make", [Disguised, Centred, scaled_by_a_wrapper])
def test_a_step_that_only_looks_like_adams_or_sgds_takes_the_gradient(make):
    net, _ = problem()
    assert (
        MixturePrior(net, 3).attach(make(net.parameters()), num_data=9, schedule=Schedule()).update
        == "gradient"
    )


def test_an_optimiser_that_comes_to_maximise_is_refused():
    net, loss = problem()
    optimizer = SGD(net.parameters(), lr=0.1)
    MixturePrior(net, 3).attach(optimizer, num_data=9, schedule=Schedule())
    optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.step()


def test_gradients_that_another_hook_clears_after_the_step_change_nothing():
    def clearing(params):
        optimizer = Adam(params, lr=0.01)
        optimizer.register_step_post_hook(lambda o, *_: o.zero_grad())
        return optimizer

    plain = attached(functools.partial(Adam, lr=0.01), update="proximal")
    by_closure = {"step": lambda optimizer, closure: optimizer.step(closure)}
    for options in ({}, by_closure):
        same(attached(clearing, update="proximal", **options), plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    "value", [torch.Tensor.item, lambda loss: (loss, "more"), lambda loss: None]
)
def test_a_closure_may_return_anything(value):
    class Own(SGD):
        @torch.no_grad()
        def step(self, closure=None):
            if closure is not None:
                with torch.enable_grad():
                    closure()
            return super().step()

    make = functools.partial(Own, lr=0.05)
    net = attached(make, step=lambda optimizer, closure: optimizer.step(lambda: value(closure())))
    same(net, by_hand(make), rtol=1e-9, atol=1e-12)


def test_in_gradient_mode_each_evaluation_of_a_closure_has_its_own_gradient():
    nets = []
    for hand in (False, True):
        net, loss = problem()
        prior = MixturePrior(net, 3, mode="gradient")
        weights = LBFGS(net.parameters(), lr=0.5, max_iter=5)
        mixture = SGD(prior.parameters(), lr=0.0)
        if not hand:
            prior.attach([weights, mixture], num_data=NUM_DATA, schedule=Schedule(tau=TAU))

        def closure(net=net, loss=loss, prior=prior, weights=weights, hand=hand):
            weights.zero_grad()
            value = loss(net) + (TAU / NUM_DATA * prior.penalty() if hand else 0.0)
            value.backward()
            return value

        for _ in range(4):
            weights.step(closure)
            mixture.step()
        nets.append(net)
    same(*nets, rtol=1e-7, atol=1e-9)


def test_in_gradient_mode_the_mixture_may_be_frozen():
    net, loss = problem()
    prior = MixturePrior(net, 3, mode="gradient")
    optimizer = SGD([*net.parameters(), *prior.parameters()], lr=1e-3)
    attachment = prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule())
    for p in prior.parameters():
        p.requires_grad_(False)
    loss(net).backward()
    optimizer.step()
    assert attachment.tick == 1


def test_an_expanded_gradient_is_added_to_as_its_copy():
    weights = []
    for expanded in (False, True):
        net, _ = problem()
        optimizer = SGD(net.parameters(), lr=0.1)
        MixturePrior(net, 3).attach(
            optimizer, num_data=NUM_DATA, schedule=Schedule(), update="gradient"
        )
        for p in net.parameters():
            grad = torch.full((), 0.01, dtype=p.dtype).expand(p.shape)
            p.grad = grad if expanded else grad.contiguous()
        optimizer.step()
        weights.append(net)
    same(*weights, rtol=1e-12, atol=1e-15)


def test_a_step_in_inference_mode_does_not_spoil_the_next():
    net, loss = problem()
    optimizer = SGD(net.parameters(), lr=0.1)
    attachment = MixturePrior(net, 3).attach(optimizer, num_data=NUM_DATA, schedule=Schedule())
    for inside in (True, False):
        optimizer.zero_grad()
        loss(net).backward()
        with torch.inference_mode(inside):
            optimizer.step()
    assert attachment.tick == 2
