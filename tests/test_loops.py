"""Anyone's loop: the prior works, or an error or a warning says why not."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from swsmix import MixturePrior, Schedule


def make(seed=0, **options):
    torch.manual_seed(seed)
    net = nn.Linear(30, 20)
    return net, MixturePrior(net, 4, **options)


def train(net, optimizer, steps=5, seed=1):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 30)).square().mean().backward()
        optimizer.step()


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
    attachment = prior.attach(optimizer, num_data=100, em_every=2)
    train(net, optimizer)
    assert attachment.update == update and attachment.tick == 5
    assert net.weight.isfinite().all()


def test_a_scheduler_that_wraps_the_step_changes_nothing():
    net, prior = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert prior.attach(optimizer, num_data=100).update == "proximal"


def test_sgd_with_momentum_one_has_no_finite_step_and_takes_the_gradient():
    net, prior = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=1.0)
    attachment = prior.attach(optimizer, num_data=100)
    train(net, optimizer)
    assert attachment.update == "gradient" and net.weight.isfinite().all()


@pytest.mark.parametrize("spoil", ["momentum", "state"])
def test_a_step_that_becomes_unknown_falls_back_to_the_gradient_and_says_so_once(spoil):
    net, prior = make()
    kind = torch.optim.SGD if spoil == "momentum" else torch.optim.Adam
    options = {"momentum": 0.5} if spoil == "momentum" else {}
    optimizer = kind(net.parameters(), lr=1e-3, **options)
    attachment = prior.attach(optimizer, num_data=100)
    train(net, optimizer, 2)
    assert attachment.update == "proximal"
    if spoil == "momentum":
        optimizer.param_groups[0]["momentum"] = 1.0
    else:  # an optimiser that drops its second moments after its step
        optimizer.register_step_post_hook(lambda *_: None)
        hook = torch.optim.Optimizer.register_step_post_hook
        attachment.remove()
        hook(optimizer, lambda o, *_: o.state[net.weight].pop("exp_avg_sq", None))
        attachment = prior.attach(optimizer, num_data=100)
    with pytest.warns(UserWarning, match="not known or not finite") as said:
        train(net, optimizer, 1)
        if spoil == "momentum":
            train(net, optimizer, 2)
    assert len([w for w in said if "not finite" in str(w.message)]) == 1
    assert attachment.update == "gradient" and net.weight.isfinite().all()


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
    attachment = prior.attach(optimizer, num_data=100)
    assert attachment._optimizers == [inner]
    train(net, optimizer)
    assert attachment.tick == 5


def test_a_wrapper_of_two_optimisers_ticks_once_a_step():
    net = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20))
    prior = MixturePrior(net, 4)
    both = type("Both", (), {})()
    both.optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in net]
    attachment = prior.attach(both, num_data=100)
    for _ in range(3):
        net(torch.randn(8, 30)).square().mean().backward()
        for each in both.optimizers:
            each.step()
    assert attachment.tick == 3


def test_the_step_that_is_never_called_is_found_in_the_base_optimiser():
    net, prior = make()
    optimizer = SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    attachment = prior.attach(optimizer, num_data=10, em_every=2)
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
    prior.attach(optimizer, num_data=10)
    with pytest.warns(UserWarning, match=r"the step of \['Silent'\] was not called") as said:
        for _ in range(100):
            optimizer.zero_grad()
            net(torch.randn(8, 30)).square().mean().backward()
            optimizer.move()
    assert len(said) == 1


def test_accumulated_gradients_and_many_closures_are_no_reason_to_warn():
    net, prior = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = prior.attach(optimizer, num_data=10)
    for _ in range(70):  # one step after many backward passes
        net(torch.randn(8, 30)).square().mean().backward()
    optimizer.step()
    attachment.remove()
    lbfgs = torch.optim.LBFGS(net.parameters(), max_iter=60)
    prior.attach(lbfgs, num_data=10)

    def closure():
        lbfgs.zero_grad()
        loss = (net.weight - 3).square().sum().sqrt() + net.bias.square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)


def test_what_is_no_optimiser_is_refused():
    _, prior = make()
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer.*got object"):
        prior.attach(object(), num_data=10)


# -- caches ----------------------------------------------------------------------------------------


def own_nll(prior):
    (group, mixture), *_ = prior.mixtures.items()
    return -mixture.log_prob(prior.flat_weights(group)).double().sum()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda prior, newer: prior.load_state_dict(newer.state_dict()),
        lambda prior, newer: prior.mixtures["all"].mean.data.copy_(newer.mixtures["all"].mean),
        lambda prior, newer: prior.mixtures["all"].std.data.mul_(3.0),
        lambda prior, newer: setattr(prior.mixtures["all"], "mean", newer.mixtures["all"].mean),
    ],
)
@pytest.mark.parametrize(
    "copied",
    [
        lambda prior: prior,
        copy.deepcopy,
        lambda prior: pickle.loads(pickle.dumps(prior)),
        copy.copy,
    ],
)
def test_the_penalty_follows_the_mixture_however_it_was_changed(change, copied, inference):
    _, prior = make()
    prior.em_step_()
    prior.penalty()
    newer = copy.deepcopy(prior)
    for _ in range(50):
        newer.em_step_()
    kept = copied(prior)
    kept.penalty()
    with torch.inference_mode(inference):
        change(kept, newer)
    assert torch.isclose(kept.terms()["all"]["nll"].double(), own_nll(kept), rtol=1e-5)


def test_a_pickle_is_about_as_large_as_the_network_and_the_mixture():
    net = nn.Linear(200, 200)
    prior = MixturePrior(net, 16)
    prior.penalty().backward()
    prior.em_step_()
    size = len(pickle.dumps(prior))
    file = io.BytesIO()
    torch.save(prior, file)
    net.zero_grad()
    alone = sum(p.numel() * p.element_size() for p in net.parameters())
    assert max(size, len(file.getvalue())) < 2.1 * alone + 50_000  # weights and their gradients


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_attachment_refuses_to_be_copied(copied):
    net, prior = make()
    attachment = prior.attach(torch.optim.SGD(net.parameters(), lr=0.1), num_data=10)
    with pytest.raises(TypeError, match="bound to its optimiser"):
        copied(attachment)


def test_an_attached_optimiser_can_be_copied_and_loses_its_hooks():
    net, prior = make()
    optimizer = torch.optim.Adam(net.parameters())
    attachment = prior.attach(optimizer, num_data=10)
    train(net, optimizer, 2)
    copy.deepcopy(optimizer)
    assert attachment.tick == 2


# -- gradients and memory ----------------------------------------------------------------------


def test_sparse_gradients_act_as_the_same_dense_ones_on_trainable_mixtures():
    weights = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net = nn.Embedding(50, 16, sparse=sparse)
        prior = MixturePrior(net, 4, mode="gradient")
        optimizer = torch.optim.SGD([*net.parameters(), *prior.parameters()], lr=1e-2)
        prior.attach(optimizer, num_data=100)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.tensor([1, 2])).square().sum().backward()
            optimizer.step()
        weights.append(net.weight.detach().clone())
    torch.testing.assert_close(weights[1], weights[0])


@pytest.mark.parametrize("update", ["gradient", "proximal"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_act_as_the_same_dense_ones(kind, update):
    if kind is torch.optim.Adagrad and update == "proximal":
        pytest.skip("Adagrad's effective step is not known")
    weights = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net = nn.Embedding(50, 16, sparse=sparse)
        optimizer = kind(net.parameters(), lr=1e-2)
        MixturePrior(net, 4).attach(optimizer, num_data=100, update=update, em_every=2)
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.tensor([1, 2])).square().sum().backward()
            optimizer.step()
        weights.append(net.weight.detach().clone())
    torch.testing.assert_close(weights[1], weights[0])


def test_sparse_adam_cannot_take_the_priors_dense_gradient_and_it_is_said():
    net = nn.Embedding(50, 16, sparse=True)
    optimizer = torch.optim.SparseAdam(net.parameters(), lr=1e-2)
    MixturePrior(net, 4).attach(optimizer, num_data=100)
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only"):
        optimizer.step()


LAYOUTS = {
    "columns of a larger tensor": lambda w: torch.cat([w, w], 1)[:, : w.shape[1]],
    "every second row": lambda w: w.repeat_interleave(2, 0)[::2],
    "transposed": lambda w: w.t().contiguous().t(),
    "expanded storage, reversed axes": lambda w: w[None].contiguous()[0],
}


@pytest.mark.parametrize("update", ["gradient", "proximal"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_layout_of_a_parameter_does_not_matter(layout, kind, update):
    weights = []
    for arrange in (lambda w: w, LAYOUTS[layout]):
        torch.manual_seed(0)
        net = nn.Linear(30, 20)
        net.weight = nn.Parameter(arrange(net.weight.detach()))
        optimizer = kind(net.parameters(), lr=1e-2)
        MixturePrior(net, 4).attach(optimizer, num_data=10, update=update, em_every=2)
        train(net, optimizer)
        weights.append(net.weight.detach().clone())
    torch.testing.assert_close(weights[1], weights[0])


# -- defaults of the user's ------------------------------------------------------------------------


def test_a_prior_made_in_inference_mode_trains_like_any_other():
    net, _ = make()
    with torch.inference_mode():
        prior = MixturePrior(net, 3)
        prior.penalty()
        prior.em_step_()
    prior.penalty().backward()
    prior.em_step_()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    prior.attach(optimizer, num_data=100, em_every=1)
    train(net, optimizer, 3)
    assert net.weight.isfinite().all()


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64])
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def results(net, **options):
    prior = MixturePrior(net, 5, zero=True, zero_mixing=0.9, **options)
    prior.em_step_()
    mixture = prior.mixtures["all"]
    return [mixture.mixing, mixture.mean, mixture.std, prior.penalty().detach()]


@pytest.mark.parametrize("method", ["quantiles", "kmeans", "spread"])
def test_the_default_dtype_changes_no_number(method, default_dtype):
    torch.manual_seed(0)
    net = nn.Linear(64, 64, dtype=torch.float32)
    there = results(net, method=method)
    torch.set_default_dtype(torch.float32)
    for a, b in zip(there, results(net, method=method), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_the_default_device_changes_no_number():
    net, _ = make()
    here = results(net)
    torch.set_default_device("meta")
    try:
        there = results(net)
    finally:
        torch.set_default_device(None)
    for a, b in zip(there, here, strict=True):
        assert torch.equal(a, b)


# -- parameters without usable values --------------------------------------------------------------


def test_a_lazy_module_is_refused_until_it_has_seen_a_batch():
    net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match="call the model once"):
        MixturePrior(net, 3)
    net(torch.randn(2, 5))
    assert MixturePrior(net, 3).selection.names == ("0.weight", "2.weight")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_weights_are_refused_by_name(dtype):
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].weight = nn.Parameter(net[1].weight.detach().to(dtype), requires_grad=True)
    with pytest.raises(TypeError, match=r"1\.weight is torch.float8.*exclude="):
        MixturePrior(net, 4)
    assert MixturePrior(net, 4, exclude="1.*").selection.names == ("0.weight",)


def test_weights_without_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"weight is on the meta device.*to_empty"):
        MixturePrior(nn.Linear(8, 8, device="meta"), 3)


def old_norm(make):
    def made():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and still met
            return make(nn.Linear(20, 20))

    return made


COMPUTED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(20, 20)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(20, 20)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(20, 20)),
    "old weight_norm": old_norm(nn.utils.weight_norm),
    "old spectral_norm": old_norm(nn.utils.spectral_norm),
    "prune": lambda: prune.l1_unstructured(nn.Linear(20, 20), "weight", amount=0.5),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_the_network_computes_is_refused_with_the_remedy(kind):
    net = nn.Sequential(COMPUTED[kind](), nn.Linear(20, 20))
    with pytest.raises(ValueError, match=r"computes its weights.*exclude=.*include="):
        MixturePrior(net, 4)
    assert MixturePrior(net, 4, exclude="0.*").selection.names == ("1.weight",)
    names = [n for n, p in net.named_parameters() if n.startswith("0.") and p.ndim == 2]
    assert MixturePrior(net, 4, include=names).selection.names == tuple(names)  # asked for


def test_after_removing_the_parametrization_the_prior_sees_the_weight():
    net = nn.Sequential(COMPUTED["weight_norm"]())
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    assert MixturePrior(net, 4).selection.names == ("0.weight",)


def test_a_schedule_that_starts_late_still_ticks():
    net, prior = make()
    optimizer = torch.optim.Adam(net.parameters())
    attachment = prior.attach(optimizer, num_data=10, schedule=Schedule(start=50))
    train(net, optimizer, 40)
    assert attachment.tick == 40
