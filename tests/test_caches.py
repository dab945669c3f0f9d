"""Caches follow the mixture, and do not travel."""

import copy
import io
import pickle

import pytest
import torch
from loops import make, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from swsmix import MixturePrior, Schedule
from swsmix.em import log_hyper_prior
from swsmix.prior import built_from, mixture_prior

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


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.mixture.std.data.mul_(3.0),
        lambda state: state.mixture.mean.add_(1e-3),
        lambda state: state.mixture.pinned_std.fill_(True),
        lambda state: state.hyper_std.data.mul_(2.0),
        lambda state: state.hyper_concentration.add_(1.0),
    ],
)
def test_the_hyper_prior_is_evaluated_once_for_each_change(change, inference, monkeypatch):
    _, prior = make()
    (state,), calls = prior.groups.values(), []
    monkeypatch.setattr(
        mixture_prior, "log_hyper_prior", lambda *of: calls.append(0) or log_hyper_prior(*of)
    )
    for _ in range(3):
        prior.penalty()
    prior.evaluate()
    assert len(calls) == 1
    with torch.inference_mode(inference):
        change(state)
    found = prior.terms()["all"]["hyper_prior"]
    assert len(calls) == 2 and found == -log_hyper_prior(state.mixture, state.hyper).to(found)


def test_the_hyper_prior_of_a_mixture_that_has_become_trainable_has_a_graph():
    _, prior = make()
    prior.penalty()
    (mixture,) = prior.mixtures.values()
    mixture.trainable_()
    for _ in range(2):
        found = prior.terms()["all"]["hyper_prior"]
        assert found.requires_grad
        assert found == -log_hyper_prior(mixture, prior.hyper_priors["all"]).to(found)
        with torch.no_grad():
            for p in mixture.parameters():
                p.add_(0.1)


class Asked(TorchDispatchMode):
    """The operations that would wait for a GPU: those whose answer Python reads."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in {"equal", "_local_scalar_dense", "is_nonzero"}:
            self.waited.append(func)
        return func(*args, **kwargs or {})


def test_who_does_not_wait_for_a_gpu_sees_what_the_counters_see_and_the_rest_a_call_later(
    monkeypatch,
):
    monkeypatch.setattr(built_from, "_is_on_gpu", lambda t: True)
    monkeypatch.setattr(built_from, "_recorded", lambda t: Ready())
    _, prior = make()
    mixture = prior.mixtures["all"]
    first = prior.tables_of("all", wait=False)
    with Asked() as asked:
        assert prior.tables_of("all", wait=False) is first
    assert not asked.waited
    prior.em_step_()
    second = prior.tables_of("all", wait=False)
    assert second is not first
    mixture.std.data.mul_(2.0)
    assert prior.tables_of("all", wait=False) is second  # not yet
    assert prior.tables_of("all", wait=False) is not second
    mixture.std.data.mul_(2.0)
    third = prior.tables_of("all", wait=False)
    assert prior.tables_of("all") is not third  # who waits sees it at once


class Ready:
    def query(self):
        return True


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
    attachment = prior.attach(
        torch.optim.SGD(net.parameters(), lr=0.1), num_data=10, schedule=Schedule()
    )
    with pytest.raises(TypeError, match="bound to its optimiser"):
        copied(attachment)


def test_an_attached_optimiser_can_be_copied_and_loses_its_hooks():
    net, prior = make()
    optimizer = torch.optim.Adam(net.parameters())
    attachment = prior.attach(optimizer, num_data=10, schedule=Schedule())
    train(net, optimizer, 2)
    copy.deepcopy(optimizer)
    assert attachment.tick == 2
