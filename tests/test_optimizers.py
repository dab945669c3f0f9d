"""Optimisers and wrappers of every kind: the prior acts once a step, or says why not."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop

from swsmix import MixturePrior, Schedule

NUM_DATA, TAU, EM_EVERY = 50, 0.3, 3


def problem():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return net, lambda net: 0.5 * (net(x) - torch.sin(x.sum(1, keepdim=True))).square().mean()


def attached(make, steps=7, update="gradient", step=None):
    net, loss = problem()
    prior = MixturePrior(net, 3)
    optimizer = make(net.parameters())
    attachment = prior.attach(
        optimizer, num_data=NUM_DATA, tau=TAU, em_every=EM_EVERY, update=update
    )

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    for _ in range(steps):
        if step is not None:
            step(optimizer, closure)
        else:
            closure()
            optimizer.step()
    assert attachment.tick == steps
    return net


def by_hand(make, steps=7):
    """The penalty in the loss, EM after the step; the optimiser in the loop is the same."""
    net, loss = problem()
    prior = MixturePrior(net, 3)
    optimizer = make(net.parameters())
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (loss(net) + TAU / NUM_DATA * prior.penalty()).backward()
        optimizer.step()
        if step % EM_EVERY == 0:
            prior.em_step_()
    return net


def same(a, b, **tolerance):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


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
    assert MixturePrior(net, 3).attach(make(net.parameters()), num_data=9).update == "gradient"


def test_an_optimiser_that_comes_to_maximise_is_refused():
    net, loss = problem()
    optimizer = SGD(net.parameters(), lr=0.1)
    MixturePrior(net, 3).attach(optimizer, num_data=9)
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
            prior.attach([weights, mixture], num_data=NUM_DATA, tau=TAU)

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
    attachment = prior.attach(optimizer, num_data=NUM_DATA)
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
        MixturePrior(net, 3).attach(optimizer, num_data=NUM_DATA, update="gradient")
        for p in net.parameters():
            grad = torch.full((), 0.01, dtype=p.dtype).expand(p.shape)
            p.grad = grad if expanded else grad.contiguous()
        optimizer.step()
        weights.append(net)
    same(*weights, rtol=1e-12, atol=1e-15)


def test_a_step_in_inference_mode_does_not_spoil_the_next():
    net, loss = problem()
    optimizer = SGD(net.parameters(), lr=0.1)
    attachment = MixturePrior(net, 3).attach(optimizer, num_data=NUM_DATA)
    for inside in (True, False):
        optimizer.zero_grad()
        loss(net).backward()
        with torch.inference_mode(inside):
            optimizer.step()
    assert attachment.tick == 2


# -- wrappers ---------------------------------------------------------------------------------


class Bare:
    """A wrapper with a step and nothing else."""

    def __init__(self, inner):
        self.kept = inner

    def step(self):
        for inner in self.kept.values() if isinstance(self.kept, dict) else [self.kept]:
            inner.step()


class Slotted:
    __slots__ = ("_kept",)

    def __init__(self, inner):
        self._kept = inner

    def step(self):
        self._kept.step()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: Bare(Bare(Bare(inner))),
        Slotted,
        lambda inner: Bare({"all": inner}),
        lambda inner: {"all": inner},
    ],
    ids=["three bare ones", "slots", "keeps a mapping", "a mapping"],
)
def test_what_steps_is_found_however_it_is_kept(wrap):
    net, loss = problem()
    inner = SGD(net.parameters(), lr=0.1)
    attachment = MixturePrior(net, 3).attach(wrap(inner), num_data=NUM_DATA)
    inner.step()
    assert attachment.tick == 1


def test_wrappers_that_refer_to_each_other_are_searched_once():
    net, _ = problem()
    inner = outer = SGD(net.parameters(), lr=0.1)
    first = None
    for _ in range(40):  # two paths through each: 2^40 in all
        outer = Bare({"one": outer, "other": outer})
        first = first or outer
    first.kept["back"] = outer
    assert MixturePrior(net, 3).attach(outer, num_data=9)._optimizers == [inner]


def test_a_wrapper_steps_itself_where_its_inner_one_holds_a_part():
    class Sharded(Optimizer):  # as ZeRO has it: the other tensors are another process's
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})
            held = self.param_groups[0]["params"]
            self.optim, self.rest = SGD(held[:2], lr=lr), SGD(held[2:], lr=lr)
            self.rest = self.rest.step

        def step(self, closure=None):
            self.optim.step()
            self.rest()

    make = functools.partial(Sharded, lr=0.05)
    same(attached(make), by_hand(make), rtol=1e-9, atol=1e-12)


def test_an_optimiser_of_float32_copies_is_refused():
    net, _ = problem()
    copies = [nn.Parameter(p.detach().float()) for p in net.parameters()]
    with pytest.raises(TypeError, match="not of copies of them in float32"):
        MixturePrior(net, 3).attach(Bare(SGD(copies, lr=0.1)), num_data=9)


def test_an_optimiser_that_was_never_initialised_is_refused():
    class Own(Optimizer):
        def __init__(self, params):
            self.param_groups = [{"params": list(params)}]

    net, _ = problem()
    with pytest.raises(TypeError, match=r"Own has no hooks.*super\(\).__init__"):
        MixturePrior(net, 3).attach(Own(net.parameters()), num_data=9)


# -- a clock that stands still ------------------------------------------------------------------


def run(net, loss, optimizer, passes=40):
    for _ in range(passes):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()


def raise_in_a_step(net, optimizer):
    def raising():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        optimizer.step(raising)


@pytest.mark.parametrize(
    "before",
    [
        lambda net, optimizer: None,
        lambda net, optimizer: net[0].weight.requires_grad_(False),
        lambda net, optimizer: net[0].register_forward_hook(lambda *out: out[2].detach()),
        raise_in_a_step,
    ],
    ids=["nothing", "the first is frozen", "the first is not used", "a step that raised"],
)
def test_another_optimiser_than_the_attached_one_is_noticed(before):
    net, loss = problem()
    attached_to = SGD(net.parameters(), lr=0.01)
    MixturePrior(net, 3).attach(attached_to, num_data=9)
    before(net, attached_to)
    with pytest.warns(UserWarning, match=r"\['SGD'\] was not called") as said:
        run(net, loss, SGD(net.parameters(), lr=0.01))
    assert len(said) == 1


def test_any_one_of_several_that_never_steps_is_noticed():
    for absent in (0, 1):
        net, loss = problem()
        both = [SGD(net[0].parameters(), lr=0.01), Adam(net[2].parameters(), lr=0.01)]
        MixturePrior(net, 3).attach(both, num_data=9)
        with pytest.warns(UserWarning, match=type(both[absent]).__name__):
            run(net, loss, both[1 - absent])


def test_a_new_optimiser_with_a_new_attachment_is_no_reason_to_warn():
    net, loss = problem()
    prior = MixturePrior(net, 3)
    for lr in (0.01, 0.001):
        optimizer = SGD(net.parameters(), lr=lr)
        attachment = prior.attach(optimizer, num_data=9)
        run(net, loss, optimizer)
    assert attachment.tick == 40


def test_closures_before_the_prior_enters_are_no_reason_to_warn():
    net, loss = problem()
    optimizer = LBFGS(net.parameters(), lr=0.01, max_iter=40, tolerance_change=0)
    MixturePrior(net, 3).attach(optimizer, num_data=9, schedule=Schedule(start=5))

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)


# -- parameters that become others ------------------------------------------------------------


@pytest.mark.parametrize("when", ["before attach", "after attach"])
def test_parameters_tied_after_the_prior_was_made_are_refused(when):
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    prior = MixturePrior(net, 3, groups="tensor")
    optimizer = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"tied after.*'1.weight': '0.weight'"):
        if when == "after attach":
            prior.attach(optimizer, num_data=9)
        net[1].weight = net[0].weight
        if when == "before attach":
            prior.attach(optimizer, num_data=9)
        net(torch.randn(3, 6)).sum().backward()
        optimizer.step()


def test_weights_pruned_after_attach_are_refused_with_the_remedy():
    net, loss = problem()
    optimizer = SGD(net.parameters(), lr=0.1)
    MixturePrior(net, 3).attach(optimizer, num_data=9)
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    loss(net).backward()
    with pytest.raises(ValueError, match=r"no longer has.*0\.weight.*make the prior again"):
        optimizer.step()


def test_the_factors_of_a_low_rank_parametrization_are_refused():
    class LowRank(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(2, 6)), nn.Parameter(torch.ones(6, 2))

        def forward(self, w):
            return w + self.b @ self.a

    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[0].weight.requires_grad_(False)
    parametrize.register_parametrization(net[0], "weight", LowRank())
    with pytest.raises(ValueError, match=r"0\.a.*LowRank of 0\.weight"):
        MixturePrior(net, 3)


def test_a_name_with_brackets_is_its_own_pattern():
    net = nn.ModuleDict({"[cls]": nn.Linear(6, 6), "c": nn.Linear(6, 6)})
    assert MixturePrior(net, 3, include="[[]cls].weight").selection.names == ("[cls].weight",)
    assert MixturePrior(net, 3, include="[cls].weight").selection.names == (
        "[cls].weight",
        "c.weight",
    )
