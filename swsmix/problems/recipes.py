"""The built-in problems of `swsmix train`: data, network, loss and a recipe for each.

The recipes were chosen on validation data taken from the training data; the test data are only
measured. All go through the public `fit`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from swsmix.attach import Update
from swsmix.compression.snap import bits_per_weight, snap_, within_share
from swsmix.em import HyperPrior
from swsmix.mixture import GaussianMixture
from swsmix.noise import GaussianNoise
from swsmix.prior import MixturePrior, Mode
from swsmix.problems import data, mnist, nets
from swsmix.schedule import Schedule
from swsmix.training.evaluation import Batch, Loss, evaluate
from swsmix.training.fitting import fit
from swsmix.training.history import History

Name = Literal["sunspots", "shift", "mnist"]


@dataclass(frozen=True)
class Problem:
    """A data set with a network and the recipe that trains it under the prior.

    Attributes:
        train: training data (x, y).
        validation: held out of the training data.
        test: measured at the end, never used for a choice.
        make_net: generator -> network.
        make_loss: -> the mean negative log likelihood.
        measure: (prediction, target) -> what the field reports, lower is better.
        measure_name: its name and unit.
        epochs: epochs, or rounds of the full-batch method.
        iterations: iterations in a round.
        lr: Adam's learning rate; None for full-batch L-BFGS.
        batch_size: for Adam.
        num_components: K.
        initial: K -> the mixture to start from; None spreads the means over the weights' range.
        update: how the prior moves the weights (Adam only); None for the default.
        hyper: the hyper-prior.
        schedule: tau, EM and annealing.
        decay_stds: the Gaussian stds among which weight decay is chosen on validation.
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


def load_problem(
    name: Name, *, net: str | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Problem:
    """A built-in problem with its recipe.

    Args:
        name: `"sunspots"` (12-8-1, regression), `"shift"` (20-10-1) or `"mnist"`.
        net: `"lenet-300-100"` (default) or `"lenet-5-caffe"` for MNIST.
        seed: draws the shift problem's cases.
        dtype: of data and network.

    Returns:
        The problem.

    Raises:
        ValueError: if there is no such problem or network.

    Example:
        >>> load_problem("sunspots").measure_name
        'arv (1535)'
    """
    own = {
        "sunspots": ("12-8-1",),
        "shift": ("20-10-1",),
        "mnist": ("lenet-300-100", "lenet-5-caffe"),
    }
    if name not in own:
        raise ValueError(f"data must be one of {list(own)}; got {name!r}")
    if net is not None and net not in own[name]:
        raise ValueError(f"the networks for {name} are {list(own[name])}; got {net!r}")
    if name == "sunspots":
        return _sunspots(dtype)
    if name == "shift":
        return _shift(seed, dtype)
    return _mnist(net or "lenet-300-100", dtype)


def _sunspots(dtype: torch.dtype) -> Problem:
    series = data.sunspots(dtype=dtype)
    x, y = series.split("train")

    def arv(prediction: Tensor, target: Tensor) -> Tensor:
        # data.arv's formula, on tensors of the network's scale.
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
        # A broad, fixed mixture first: EM on the small initial weights would collapse at once.
        initial=lambda k: GaussianMixture([1 / k] * k, torch.linspace(-2, 2, k), [0.5] * k),
        schedule=Schedule(tau=0.3, em_start=20, em_every=1, em_rate=0.1),
        hyper=HyperPrior(std=0.5, std_count=3.0),
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
        decay_stds=(0.1, 0.3, 1.0),
    )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a trained problem came to.

    Attributes:
        net: the trained network, a plain module; snapped it is not.
        prior: its prior.
        history: the history.
        rows: name -> measure on `train`, `validation` and `test`, for the network, the snapped
            network, and weight decay.
        facts: further numbers, each named with its unit.
    """

    net: nn.Module
    prior: MixturePrior
    history: History
    rows: dict[str, dict[str, float]]
    facts: dict[str, float]


def train(
    problem: Problem,
    *,
    seed: int = 0,
    mode: Mode = "em",
    device: str = "cpu",
    run: str | None = None,
    resume: bool = False,
    progress: bool | str = True,
    baseline: bool = True,
    baseline_progress: bool = True,
    callback: Callable[[int, History], None] | None = None,
) -> Outcome:
    """Train a problem under its recipe, and the same network under weight decay beside it.

    Args:
        problem: from `load_problem`, changed by `dataclasses.replace` as you like.
        seed: of the initial weights and the order of the batches.
        mode: `"em"` or `"gradient"`.
        device: where to train.
        run: a folder for checkpoints.
        resume: continue from it.
        progress: show a progress bar; a string is its label.
        baseline: train the weight-decay networks too.
        baseline_progress: show a progress bar for each of those.
        callback: as in `fit`.

    Returns:
        The outcome.
    """
    problem = replace(
        problem,
        train=_to(problem.train, device),
        validation=_to(problem.validation, device),
        test=_to(problem.test, device),
    )
    net = problem.make_net(torch.Generator().manual_seed(seed)).to(device)
    prior = MixturePrior(
        net,
        problem.num_components,
        mode=mode,
        method="spread",
        initial=None if problem.initial is None else problem.initial(problem.num_components),
        hyper=problem.hyper,
        seed=seed,
    )
    _, start = _snapped(problem, net, prior)
    history = _fit(
        problem, net, prior, problem.schedule, seed,
        run=run, resume=resume, progress=progress, callback=callback,
    )  # fmt: skip
    snapped, end = _snapped(problem, net, prior)
    rows = {
        "soft weight-sharing": measures(problem, net),
        "the same, snapped to its centres": snapped,
    }
    facts = {
        f"{name}, {when}": x
        for when, f in (("start", start), ("end", end))
        for name, x in f.items()
    }
    facts["clusters (components that claim a weight)"] = sum(
        float(history.num_clusters(g)[-1]) for g in history.groups
    )
    if baseline:
        std, decayed = _weight_decay(problem, seed, baseline_progress)
        rows[f"weight decay, std {std:g}, by validation"] = decayed
    return Outcome(net, prior, history, rows, facts)


def measures(problem: Problem, net: nn.Module) -> dict[str, float]:
    """The measure of a network on the three parts of the data.

    Returns:
        `"train"`, `"validation"` and `"test"`.
    """
    parts = {"train": problem.train, "validation": problem.validation, "test": problem.test}
    return {name: evaluate(net, problem.measure, part) for name, part in parts.items()}


def gaussian_prior(net: nn.Module, std: float) -> MixturePrior:
    """Weight decay as the mixture of one fixed component N(0, std^2): R(w) = w.w / (2 std^2) + c.

    Returns:
        A prior that EM leaves alone.
    """
    prior = MixturePrior(net, 1, zero=True)
    (mixture,) = prior.mixtures.values()
    mixture.std.fill_(std)
    mixture.pinned_std.fill_(True)
    return prior


def _weight_decay(problem: Problem, seed: int, progress: bool) -> tuple[float, dict[str, float]]:
    found: list[tuple[float, float, dict[str, float]]] = []
    total = len(problem.decay_stds)
    for number, std in enumerate(problem.decay_stds, 1):
        label = f"weight decay, std {std:g} ({number} of {total})"
        net = problem.make_net(torch.Generator().manual_seed(seed)).to(problem.train[0].device)
        schedule = Schedule(em_every=problem.schedule.em_every)
        shown = label if progress else False
        _fit(problem, net, gaussian_prior(net, std), schedule, seed, progress=shown)
        result = measures(problem, net)
        found.append((result["validation"], std, result))
    _, std, result = min(found, key=lambda entry: entry[0])
    return std, result


def _fit(
    problem: Problem,
    net: nn.Module,
    prior: MixturePrior,
    schedule: Schedule,
    seed: int,
    **more: Any,
) -> History:
    loss = problem.make_loss().to(problem.train[0].device)
    optimizer: Any = "l-bfgs"
    if problem.lr is not None:
        groups = [{"params": [*net.parameters(), *loss.parameters()]}]
        if prior.mode == "gradient":
            groups.append({"params": [*prior.parameters()]})
        optimizer = torch.optim.Adam(groups, lr=problem.lr)
    return fit(
        net,
        loss,
        problem.train,
        optimizer=optimizer,
        epochs=problem.epochs,
        prior=prior,
        schedule=schedule,
        update=problem.update,
        batch_size=problem.batch_size,
        iterations=problem.iterations,
        validation=problem.validation,
        measure=problem.measure,
        seed=seed,
        **more,
    )


def _snapped(
    problem: Problem, net: nn.Module, prior: MixturePrior
) -> tuple[dict[str, float], dict[str, float]]:
    """The measures with each weight on its centre, and how far the histogram has collapsed."""
    shares = [(within_share(m, prior.flat_weights(g)), g) for g, m in prior.mixtures.items()]
    before = copy.deepcopy(net.state_dict())
    index = torch.cat([j.reshape(-1) for j in snap_(prior).values()])
    rows = measures(problem, net)
    values = sum(len(prior.flat_weights(g).unique()) for g in prior.mixtures)
    net.load_state_dict(before)
    sizes = {g: len(prior.flat_weights(g)) for g in prior.mixtures}
    within = sum(share * sizes[g] for share, g in shares) / sum(sizes.values())
    return rows, {
        "within-cluster / total variance": within,
        "bits a weight after snapping": bits_per_weight(index),
        "distinct values after snapping": values,
        f"validation {problem.measure_name} after snapping": rows["validation"],
    }


def _to(part: Batch, device: str) -> Batch:
    return part[0].to(device), part[1].to(device)
