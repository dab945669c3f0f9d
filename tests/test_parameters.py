"""Parameters of every kind: the prior sees them, or an error says why not."""

import warnings

import pytest
import torch
from loops import problem, train
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import SGD

from swsmix import MixturePrior, Schedule

# -- gradients and memory ----------------------------------------------------------------------


def dense_and_sparse(attached, steps):
    """The weights of an embedding after some steps, by its gradients' layout."""
    weights = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net = nn.Embedding(50, 16, sparse=sparse)
        optimizer = attached(net)
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.tensor([1, 2])).square().sum().backward()
            optimizer.step()
        weights.append(net.weight.detach().clone())
    return weights


def test_sparse_gradients_act_as_the_same_dense_ones_on_trainable_mixtures():
    def attached(net):
        prior = MixturePrior(net, 4, mode="gradient")
        optimizer = torch.optim.SGD([*net.parameters(), *prior.parameters()], lr=1e-2)
        prior.attach(optimizer, num_data=100, schedule=Schedule())
        return optimizer

    dense, sparse = dense_and_sparse(attached, 2)
    torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize(
    ("kind", "update"),
    [
        (torch.optim.SGD, "gradient"),
        (torch.optim.SGD, "proximal"),
        (torch.optim.Adagrad, "gradient"),  # its effective step is not known
    ],
)
def test_sparse_gradients_act_as_the_same_dense_ones(kind, update):
    def attached(net):
        optimizer = kind(net.parameters(), lr=1e-2)
        MixturePrior(net, 4).attach(
            optimizer, num_data=100, schedule=Schedule(em_every=2), update=update
        )
        return optimizer

    dense, sparse = dense_and_sparse(attached, 4)
    torch.testing.assert_close(sparse, dense)


def test_sparse_adam_cannot_take_the_priors_dense_gradient_and_it_is_said():
    net = nn.Embedding(50, 16, sparse=True)
    optimizer = torch.optim.SparseAdam(net.parameters(), lr=1e-2)
    MixturePrior(net, 4).attach(optimizer, num_data=100, schedule=Schedule())
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
        MixturePrior(net, 4).attach(
            optimizer, num_data=10, schedule=Schedule(em_every=2), update=update
        )
        train(net, optimizer)
        weights.append(net.weight.detach().clone())
    torch.testing.assert_close(weights[1], weights[0])


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


# -- parameters that become others ------------------------------------------------------------


@pytest.mark.parametrize("when", ["before attach", "after attach"])
def test_parameters_tied_after_the_prior_was_made_are_refused(when):
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    prior = MixturePrior(net, 3, groups="tensor")
    optimizer = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"tied after.*'1.weight': '0.weight'"):
        if when == "after attach":
            prior.attach(optimizer, num_data=9, schedule=Schedule())
        net[1].weight = net[0].weight
        if when == "before attach":
            prior.attach(optimizer, num_data=9, schedule=Schedule())
        net(torch.randn(3, 6)).sum().backward()
        optimizer.step()


def test_weights_pruned_after_attach_are_refused_with_the_remedy():
    net, loss = problem()
    optimizer = SGD(net.parameters(), lr=0.1)
    MixturePrior(net, 3).attach(optimizer, num_data=9, schedule=Schedule())
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
