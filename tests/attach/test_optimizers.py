"""What steps, in wrappers of any kind, and a clock that stands still."""

import functools
import warnings

import pytest
import torch
from loops import NUM_DATA, attached, by_hand, make, problem, same, train
from torch import nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from swsmix import MixturePrior, Schedule

# -- what steps ------------------------------------------------------------------------------------


class SAM(torch.optim.Optimizer):
    """Two half-steps of its own around a base optimiser; `step` is never called."""

    def __init__(self, params, base, **options):
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def second_step(self):
        self.base_optimizer.step()

    def step(self, closure=None):
        raise NotImplementedError


class Wrapper:
    """Not an optimiser: keeps one under any name."""

    def __init__(self, inner):
        self._inner = inner
        self.param_groups = inner.param_groups

    def zero_grad(self):
        self._inner.zero_grad()

    def step(self):
        self._inner.step()


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_optimiser_that_steps_is_found_at_any_depth(depth):
    net, prior = make()
    inner = optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(depth):
        optimizer = Wrapper(optimizer)
    attachment = prior.attach(optimizer, num_data=100, schedule=Schedule())
    assert attachment._optimizers == [inner]
    train(net, optimizer)
    assert attachment.tick == 5


def test_a_wrapper_of_two_optimisers_ticks_once_a_step():
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20))
    prior = MixturePrior(net, 4)
    both = type("Both", (), {})()
    both.optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in net]
    attachment = prior.attach(both, num_data=100, schedule=Schedule())
    for _ in range(3):
        net(torch.randn(8, 30)).square().mean().backward()
        for each in both.optimizers:
            each.step()
    assert attachment.tick == 3


def test_the_step_that_is_never_called_is_found_in_the_base_optimiser():
    net, prior = make()
    optimizer = SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    attachment = prior.attach(optimizer, num_data=10, schedule=Schedule(em_every=2))
    for _ in range(6):
        net(torch.randn(8, 30)).square().mean().backward()
        optimizer.second_step()
    assert attachment.tick == 6


class Silent(torch.optim.Optimizer):
    """Moves its weights by a method of its own."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        raise NotImplementedError

    @torch.no_grad()
    def move(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)


def test_an_attachment_that_never_ticks_while_its_weights_move_says_so_once():
    net, prior = make()
    optimizer = Silent(net.parameters())
    prior.attach(optimizer, num_data=10, schedule=Schedule())
    with pytest.warns(UserWarning, match=r"the step of \['Silent'\] was not called") as said:
        for _ in range(100):
            optimizer.zero_grad()
            net(torch.randn(8, 30)).square().mean().backward()
            optimizer.move()
    assert len(said) == 1


def test_accumulated_gradients_and_many_closures_are_no_reason_to_warn():
    net, prior = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = prior.attach(optimizer, num_data=10, schedule=Schedule())
    for _ in range(70):  # one step after many backward passes
        net(torch.randn(8, 30)).square().mean().backward()
    optimizer.step()
    attachment.remove()
    lbfgs = torch.optim.LBFGS(net.parameters(), max_iter=60)
    prior.attach(lbfgs, num_data=10, schedule=Schedule())

    def closure():
        lbfgs.zero_grad()
        loss = (net.weight - 3).square().sum().sqrt() + net.bias.square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)


def test_what_is_no_optimiser_is_refused():
    _, prior = make()
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer.*got object"):
        prior.attach(object(), num_data=10, schedule=Schedule())


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
    attachment = MixturePrior(net, 3).attach(wrap(inner), num_data=NUM_DATA, schedule=Schedule())
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
    assert MixturePrior(net, 3).attach(outer, num_data=9, schedule=Schedule())._optimizers == [
        inner
    ]


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
        MixturePrior(net, 3).attach(Bare(SGD(copies, lr=0.1)), num_data=9, schedule=Schedule())


def test_an_optimiser_that_was_never_initialised_is_refused():
    class Own(Optimizer):
        def __init__(self, params):
            self.param_groups = [{"params": list(params)}]

    net, _ = problem()
    with pytest.raises(TypeError, match=r"Own has no hooks.*super\(\).__init__"):
        MixturePrior(net, 3).attach(Own(net.parameters()), num_data=9, schedule=Schedule())


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
    MixturePrior(net, 3).attach(attached_to, num_data=9, schedule=Schedule())
    before(net, attached_to)
    with pytest.warns(UserWarning, match=r"\['SGD'\] was not called") as said:
        run(net, loss, SGD(net.parameters(), lr=0.01))
    assert len(said) == 1


def test_any_one_of_several_that_never_steps_is_noticed():
    for absent in (0, 1):
        net, loss = problem()
        both = [SGD(net[0].parameters(), lr=0.01), Adam(net[2].parameters(), lr=0.01)]
        MixturePrior(net, 3).attach(both, num_data=9, schedule=Schedule())
        with pytest.warns(UserWarning, match=type(both[absent]).__name__):
            run(net, loss, both[1 - absent])


def test_a_new_optimiser_with_a_new_attachment_is_no_reason_to_warn():
    net, loss = problem()
    prior = MixturePrior(net, 3)
    for lr in (0.01, 0.001):
        optimizer = SGD(net.parameters(), lr=lr)
        attachment = prior.attach(optimizer, num_data=9, schedule=Schedule())
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


def test_a_schedule_that_starts_late_still_ticks():
    net, prior = make()
    optimizer = torch.optim.Adam(net.parameters())
    attachment = prior.attach(optimizer, num_data=10, schedule=Schedule(start=50))
    train(net, optimizer, 40)
    assert attachment.tick == 40


def test_the_warning_comes_at_the_sixteenth_backward_pass_and_says_so():
    net, prior = make()
    attachment = prior.attach(SGD(net.parameters(), lr=0.1), num_data=100)
    other = SGD(net.parameters(), lr=0.1)

    def moves():
        sum(p.square().sum() for p in net.parameters()).backward()
        other.step()

    for _ in range(15):
        moves()  # a warning is an error here
    with pytest.warns(UserWarning, match="at tick 0 for 16 backward passes"):
        moves()
    attachment.remove()
