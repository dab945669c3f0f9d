"""The built-in problems of `swsmix train`: data, network, loss and recipe of each.

The recipes were chosen on validation data taken from the training data, that of CIFAR-10 without
any trial; the test data are only measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from swsmix.attach import Update
from swsmix.em import HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.noise import GaussianNoise
from swsmix.problems import cifar10, data, mnist, nets
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Batch, Loss

Name = Literal["sunspots", "shift", "mnist", "cifar10"]
NETS: dict[str, tuple[str, ...]] = {
    "sunspots": ("12-8-1",),
    "shift": ("20-10-1",),
    "mnist": ("lenet-300-100", "lenet-5-caffe"),
    "cifar10": ("resnet-20", "wrn-16-4"),
}
"""Problem -> its networks, the default first."""


@dataclass(frozen=True)
class Dense:
    """How a network is trained before the prior comes; then its batch norms are folded.

    Attributes:
        name: of the network.
        epochs: of SGD with momentum under one cycle of the learning rate.
        peak_lr: its highest learning rate.
        weight_decay: of SGD.
    """

    name: str
    epochs: int = 30
    peak_lr: float = 0.2
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Problem:
    """A data set with a network and the recipe that trains it under the prior.

    Attributes:
        train: training data (x, y).
        validation: data held out of the training data, for choices.
        test: data that are only measured at the end.
        make_net: generator -> network.
        make_loss: () -> the mean negative log likelihood.
        measure: (prediction, target) -> the literature's error measure; lower is better.
        measure_name: its name and unit.
        epochs: the number of epochs, or of rounds of the full-batch method.
        iterations: the number of iterations per round.
        lr: Adam's learning rate; None for full-batch L-BFGS.
        batch_size: Adam's batch size.
        num_components: K.
        initial: K -> the mixture to start from; None spreads the means over the weights' range.
        update: how the prior moves the weights (Adam only); None for the default.
        augment: (inputs, generator=) -> inputs changed anew in each epoch (Adam only), or None.
        dense: the training before the prior comes, and the folding of batch norms; None for none.
        average: the ensemble's prediction from the members' (b, n, ...), on the scale on which they
            are averaged and back.
        hyper: the hyper-prior.
        schedule: tau, EM and annealing.
        decay_stds: stds of the Gaussian prior of the weight-decay baseline; the best on validation
            is taken.
    """

    train: Batch
    validation: Batch
    test: Batch
    make_net: Callable[[torch.Generator], nn.Module]
    make_loss: Callable[[], nn.Module]
    measure: Loss
    measure_name: str
    epochs: int
    num_components: int
    schedule: Schedule
    hyper: HyperPrior
    decay_stds: Sequence[float]
    iterations: int = 20
    lr: float | None = None
    batch_size: int = 128
    initial: Callable[[int], GaussianMixture] | None = None
    update: Update | None = None
    augment: Callable[..., Tensor] | None = None
    dense: Dense | None = None
    average: Callable[[Tensor], Tensor] = lambda outputs: outputs.mean(0)


def load_problem(
    name: Name, *, net: str | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Problem:
    """A built-in problem with its recipe.

    Args:
        name: `"sunspots"` (12-8-1, regression), `"shift"` (20-10-1), `"mnist"` or `"cifar10"`.
        net: `"lenet-300-100"` (default) or `"lenet-5-caffe"` for MNIST, `"resnet-20"` (default) or
            `"wrn-16-4"` for CIFAR-10.
        seed: seed of the shift problem's cases.
        dtype: dtype of data and network.

    Raises:
        ValueError: if there is no such problem or network.

    Example:
        >>> load_problem("sunspots").measure_name
        'arv (1535)'
    """
    if name not in NETS:
        raise ValueError(f"data must be one of {list(NETS)}; got {name!r}")
    if net is not None and net not in NETS[name]:
        raise ValueError(f"the networks for {name} are {list(NETS[name])}; got {net!r}")
    if name == "sunspots":
        return _sunspots(dtype)
    if name == "shift":
        return _shift(seed, dtype)
    if name == "mnist":
        return _mnist(net or "lenet-300-100", dtype)
    return _cifar10(net or "resnet-20", dtype)


def _sunspots(dtype: torch.dtype) -> Problem:
    series = data.sunspots(dtype=dtype)
    x, y = series.split("train")

    def arv(prediction: Tensor, target: Tensor) -> Tensor:
        # As data.arv, with a tensor as its result.
        return (prediction - target).square().mean() * series.scale**2 / data.VARIANCE_1535

    return Problem(
        train=(x[:169], y[:169]),
        validation=(x[169:], y[169:]),  # 1881-1920
        test=series.split("test"),
        make_net=lambda generator: nets.sunspot_net(generator=generator, dtype=dtype),
        make_loss=lambda: GaussianNoise(0.1).to(dtype),
        measure=arv,
        measure_name="arv (1535)",
        epochs=60,
        num_components=8,
        schedule=Schedule(
            start=1, warmup=10, em_every=1, std_start=0.5, std_end=0.01, anneal_start=20, anneal=30
        ),
        hyper=HyperPrior(std=0.05, std_count=1.0),
        decay_stds=(0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0),
    )


def _shift(seed: int, dtype: torch.dtype) -> Problem:
    x, y = data.shift(1300, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    parts = [(x[a:b], y[a:b]) for a, b in ((0, 100), (100, 300), (300, 1300))]
    return Problem(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        make_net=lambda generator: nets.shift_net(generator=generator, dtype=dtype),
        make_loss=nn.BCEWithLogitsLoss,
        measure=lambda logit, y: 100.0 * ((logit > 0) != (y > 0.5)).double().mean(),
        measure_name="errors (%)",
        epochs=60,
        iterations=40,
        num_components=10,
        # The mixture starts broad and fixed: EM on the small initial weights would collapse it.
        initial=lambda k: GaussianMixture(
            [1 / k] * k,
            torch.linspace(-2, 2, k, dtype=torch.float32, device="cpu"),
            [0.5] * k,
        ),
        schedule=Schedule(tau=0.3, em_start=20, em_every=1, em_rate=0.1),
        hyper=HyperPrior(std=0.5, std_count=3.0),
        average=lambda logits: logits.sigmoid().mean(0).logit(),
        decay_stds=(0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0),
    )


def _mnist(net: str, dtype: torch.dtype) -> Problem:
    digits = mnist.mnist_tensors(mnist.mnist(), dtype=dtype)
    make = nets.lenet_300_100 if net == "lenet-300-100" else nets.lenet_5_caffe
    steps = len(digits.x_train) // 128  # in an epoch
    return Problem(
        train=(digits.x_train, digits.y_train),
        validation=(digits.x_validation, digits.y_validation),
        test=(digits.x_test, digits.y_test),
        make_net=lambda generator: make(generator=generator, dtype=dtype),
        make_loss=nn.CrossEntropyLoss,
        measure=lambda logits, y: 100.0 * (logits.argmax(-1) != y).double().mean(),
        measure_name="errors (%)",
        epochs=5,
        num_components=16,
        lr=1e-3,
        schedule=Schedule(
            tau=0.01, start=steps, em_every=50,
            std_start=0.05, std_end=0.002, anneal_start=steps, anneal=3 * steps,
        ),
        hyper=HyperPrior(std=0.01, std_count=1.0),
        average=lambda logits: logits.softmax(-1).mean(0).log(),
        decay_stds=(0.1, 0.3, 1.0),
    )  # fmt: skip


def _cifar10(net: str, dtype: torch.dtype) -> Problem:
    published = cifar10.cifar10()
    held_out = len(published.x_train) // 10
    images = cifar10.cifar10_tensors(published, num_validation=held_out, dtype=dtype)
    make = nets.resnet20 if net == "resnet-20" else nets.wrn
    steps = -(-len(images.x_train) // 128)  # in an epoch
    return Problem(
        train=(images.x_train, images.y_train),
        validation=(images.x_validation, images.y_validation),
        test=(images.x_test, images.y_test),
        make_net=lambda generator: make(generator=generator, dtype=dtype),
        make_loss=nn.CrossEntropyLoss,
        measure=lambda logits, y: 100.0 * (logits.argmax(-1) != y).double().mean(),
        measure_name="errors (%)",
        epochs=10,
        num_components=16,
        lr=5e-4,  # Adam at 2e-3 destroys a folded network in its first step
        schedule=Schedule(
            tau=0.01, warmup=steps, em_every=50,
            std_start=0.03, std_end=0.002, anneal_start=steps, anneal=8 * steps,
        ),
        hyper=HyperPrior(std=0.01, std_count=1.0),
        augment=cifar10.jitter,
        dense=Dense(net),
        average=lambda logits: logits.softmax(-1).mean(0).log(),
        decay_stds=(),
    )  # fmt: skip
