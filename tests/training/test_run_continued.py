"""A run is continued with what it was made with; another optimiser may well take its state."""

import re

import pytest
import torch
from fits import problem
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from swsmix import GaussianNoise, MixturePrior, fit, load_run


class Wrapper(Optimizer):
    """As that of Accelerate: the optimiser is in an attribute."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


MADE = {
    "Adam": lambda ps: Adam(ps, lr=0.01),
    "AdamW": lambda ps: AdamW(ps, lr=0.01),
    "NAdam": lambda ps: NAdam(ps, lr=0.01),
    "RMSprop": lambda ps: RMSprop(ps, lr=0.01),
    "SGD": lambda ps: SGD(ps, lr=0.01),
    "wrapped Adam": lambda ps: Wrapper(Adam(ps, lr=0.01)),
    "'l-bfgs'": "l-bfgs",
    "'cg'": "cg",
}


def go(path, epochs, name, *, scheduler=None, prior=True, noise=True, **options):
    net, data, _ = problem()
    loss = GaussianNoise(0.3) if noise else nn.MSELoss()
    made = MADE[name]
    optimizer = made if isinstance(made, str) else made([*net.parameters(), *loss.parameters()])
    return net, fit(
        net, loss, data, optimizer=optimizer, epochs=epochs, run=path, progress=False,
        lr_scheduler=None if scheduler is None else scheduler(optimizer), iterations=3,
        prior=MixturePrior(net, 3) if prior else None, **options,
    )  # fmt: skip


def refused(path, name, **options):
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="was trained with") as caught:
        go(path, 2, name, resume=True, **options)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == files
    assert re.search("continue it with the same, or train in another folder", str(caught.value))
    return str(caught.value)


PAIRS = [(a, b) for a in MADE for b in MADE if a.split()[-1] != b.split()[-1] and "wr" not in a]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of one epoch by each optimiser."""
    folder = tmp_path_factory.mktemp("made")
    for name in MADE:
        go(folder / name, 1, name)
    return folder


@pytest.mark.parametrize(("was", "now"), PAIRS)
def test_another_optimiser_is_an_error_that_names_both(made, was, now):
    said = refused(made / was, now)
    assert f"the optimizer {was};" in said
    assert f"got the optimizer {now.split()[-1]}:" in said


@pytest.mark.parametrize("name", MADE)
def test_the_same_optimiser_goes_on(tmp_path, name):
    go(tmp_path, 1, name)
    net, history = go(tmp_path, 2, name, resume=True)
    whole, _ = go(None, 2, name)
    assert len(history) == 3
    assert all(map(torch.equal, net.parameters(), whole.parameters()))


def test_a_wrapper_is_no_other_optimiser(tmp_path):
    go(tmp_path, 1, "Adam")
    go(tmp_path, 2, "wrapped Adam", resume=True)
    assert len(go(tmp_path, 3, "Adam", resume=True)[1]) == 4


def steps(optimizer):
    return StepLR(optimizer, 1)


def decays(optimizer):
    return ExponentialLR(optimizer, 0.5)


PARTS = [
    ({"scheduler": steps}, {}, "the lr_scheduler StepLR; got no lr_scheduler"),
    ({}, {"scheduler": steps}, "no lr_scheduler; got the lr_scheduler StepLR"),
    ({"scheduler": steps}, {"scheduler": decays}, "StepLR; got the lr_scheduler ExponentialLR"),
    ({}, {"prior": False}, "a prior; got no prior"),
    ({"prior": False}, {}, "no prior; got a prior"),
    ({}, {"noise": False}, "a loss with parameters; got no loss with parameters"),
]


ANY = [("Adam", *part) for part in PARTS] + [("'cg'", *part) for part in PARTS[3:]]


@pytest.mark.parametrize(("name", "before", "after", "said"), ANY)
def test_a_part_that_is_dropped_added_or_of_another_class_is_an_error(
    tmp_path, name, before, after, said
):
    go(tmp_path, 1, name, **before)
    assert said in refused(tmp_path, name, **after)


def without_names(path):
    """As an older version wrote it."""
    file = load_run(path, resumable=True).folder / "training.pt"
    state = torch.load(file, weights_only=True)
    del state["job"]["made_with"]
    torch.save(state, file)


@pytest.mark.parametrize(("was", "now"), [("Adam", "'l-bfgs'"), ("'cg'", "Adam")])
def test_of_an_older_run_the_kind_of_training_is_told(tmp_path, was, now):
    go(tmp_path, 1, was)
    without_names(tmp_path)
    said = refused(tmp_path, now)
    assert "an optimiser of torch" in said and "the optimizer 'l-bfgs' or 'cg'" in said
    assert len(go(tmp_path, 2, was, resume=True)[1]) == 3


def test_a_name_that_is_none_is_a_broken_field(tmp_path):
    go(tmp_path, 1, "Adam")
    file = load_run(tmp_path, resumable=True).folder / "training.pt"
    state = torch.load(file, weights_only=True)
    state["job"]["made_with"]["optimizer"] = 3
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"`job.made_with.optimizer`: needs a name, got 3"):
        go(tmp_path, 2, "Adam", resume=True)


def test_a_loader_without_the_generator_of_the_run_is_refused(tmp_path):
    def trained(generator, **options):
        net, rows = nn.Linear(3, 1), TensorDataset(torch.ones(8, 3), torch.ones(8, 1))
        loader = DataLoader(rows, batch_size=4, shuffle=True, generator=generator)
        fit(
            net, nn.functional.mse_loss, loader, optimizer=SGD(net.parameters(), lr=0.1),
            run=tmp_path / "run", progress=False, **options,
        )  # fmt: skip

    trained(torch.Generator(), epochs=1)
    with pytest.raises(ValueError, match="a generator of its own, this one has none: pass"):
        trained(None, epochs=2, resume=True)
    trained(torch.Generator(), epochs=2, resume=True)
