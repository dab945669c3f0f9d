"""The units of work: one pretrained network, or one compressed network with its file.

Everything here reads the training images alone, but for `measure`, which a unit calls once, after
its file is written; `explore.py` never lets it see the test images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from papers.ullrich2017.images import Images, training_images
from papers.ullrich2017.kept import keep_for_figures
from papers.ullrich2017.settings import Setting
from papers.ullrich2017.sizes import sizes
from swsmix import HyperPrior, MixturePrior, Schedule, fit, load_run, snap_
from swsmix.codec import encode, load_compressed
from swsmix.compression import save_compressed
from swsmix.compression.merging import merge_components
from swsmix.compression.recipe import Compressed, compress_
from swsmix.compression.snap import snap_to_grid
from swsmix.compression.targets import Target
from swsmix.compression.transforms import fold_dead_neurons_, same_outputs, sort_neurons_
from swsmix.mixture import GaussianMixture
from swsmix.problems import nets
from swsmix.problems.mnist import mnist
from swsmix.training.evaluation import evaluate
from swsmix.training.runs import replacing

NETS = {"lenet-300-100": nets.lenet_300_100, "lenet-5-caffe": nets.lenet_5_caffe}
# Layers whose neurons the next one alone takes, and the activation between them.
PAIRS = {
    "lenet-300-100": (("fc1", "fc2", torch.relu), ("fc2", "fc3", torch.relu)),
    "lenet-5-caffe": (
        ("conv1", "conv2", nn.Identity()),
        ("conv2", "fc1", nn.Identity()),
        ("fc1", "fc2", torch.relu),
    ),
}


def errors(logits: Tensor, target: Tensor) -> Tensor:
    """Wrong answers in percent."""
    return 100.0 * (logits.argmax(-1) != target).double().mean()


def network(setting: Setting, seed: int) -> nn.Module:
    """The network; the convolutional one trains in bfloat16 and in the faster memory format."""
    net = NETS[setting.net](generator=torch.Generator().manual_seed(seed))
    if setting.net == "lenet-5-caffe":
        net = net.to(memory_format=torch.channels_last)
        net.forward = torch.autocast("cpu", torch.bfloat16)(net.forward)
    return net


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mean negative log likelihood, in float32 in any case."""
    return nn.functional.cross_entropy(logits.float(), target)


def distilled(share: float, temperature: float = 3.0) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of Hinton, Vinyals & Dean (2015): the labels, and the teacher's softened answers.

    Returns:
        A function of logits and of what `Images` yields with a teacher, or of plain labels.
    """

    def both(logits: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 1:
            return loss(logits, target)
        soft = (target[:, 1:] / temperature).softmax(1)
        ours = nn.functional.log_softmax(logits.float() / temperature, 1)
        taught = -(soft * ours).sum(1).mean() * temperature**2
        return (1.0 - share) * loss(logits, target[:, 0].long()) + share * taught

    return both


def dense_file(setting: Setting, seed: int, scratch: Path) -> Path:
    """Where the pretrained network is kept."""
    return scratch / "pretrained" / f"{setting.pretraining}-seed{seed}.safetensors"


def pretrain(setting: Setting, seed: int, scratch: Path, subset: int | None) -> dict[str, Any]:
    """Train a dense network and keep it in `dense_file`.

    Returns:
        Its settings and its validation error.
    """
    train, validation = training_images(seed, subset)
    net = network(setting, seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    epochs = setting.pretrain_epochs
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, 1e-4)
    run = scratch / "runs" / f"{setting.pretraining}-seed{seed}"
    history = fit(
        net, loss, Images(*train, setting, seed), optimizer=optimizer, epochs=epochs,
        validation=validation, measure=errors, measure_train=False, lr_scheduler=scheduler,
        run=run, resume=True, progress=False,
    )  # fmt: skip
    file = dense_file(setting, seed, scratch)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({n: t.contiguous() for n, t in net.state_dict().items()}, temporary)
    return {
        "kind": "pretrained",
        "net": setting.net,
        "shift": setting.shift,
        "dropout": setting.dropout,
        "seed": seed,
        "epochs": epochs,
        "validation_error_percent": history.scalars["validation_measure"][-1],
    }


def compress(
    setting: Setting,
    seed: int,
    scratch: Path,
    results: Path,
    subset: int | None,
    *,
    test: bool = True,
) -> dict[str, Any]:
    """Compress a pretrained network, write its file, read it back, and measure what came back.

    Args:
        setting: how.
        seed: of the split, the batches and k-means.
        scratch: where the pretrained network is, and checkpoints go.
        results: where the file and the tensors of the figures go.
        subset: so many images only.
        test: whether to read the test images, at the very end.

    Returns:
        Errors, sizes and shares.

    Raises:
        RuntimeError: if the file does not decode to what was written.
    """
    train, validation = training_images(seed, subset)
    net = network(setting, seed)
    net.load_state_dict(load_file(dense_file(setting, seed, scratch)))
    dense = copy.deepcopy(net.state_dict())
    teacher = None
    if setting.distil:
        teacher = network(setting, seed).requires_grad_(False)
        teacher.load_state_dict(dense)
    images = Images(*train, setting, 7919 + seed, teacher)
    run = scratch / "runs" / f"{setting.name}-seed{seed}"
    options: dict[str, Any] = {"measure": errors, "validation": validation, "progress": False}
    if setting.recipe is None:
        done = as_published(net, images, setting, run, options)
    else:
        options |= {
            "recipe": setting.recipe, "run": run, "resume": True, "seed": seed,
            "include": "*" if setting.biases else None, "tau": tau_of(net, setting),
        }  # fmt: skip
        done = to_limit(net, images, setting, options)
    state, transformed = smallest(setting, net, done.index, validation[0][:1000])
    file = results / f"{setting.name}-seed{seed}.sws"
    size = save_compressed(file, state)
    decoded = load_compressed(file)
    if any(not torch.equal(decoded[n], t) for n, t in state.items()):
        raise RuntimeError(f"{file} does not decode to the network that was written")
    last = run if setting.recipe is None else run / "quantise"
    retrained = load_run(last).network
    keep_for_figures(setting, seed, results, dense, retrained, decoded, done)
    return {
        "kind": "compressed",
        "setting": setting.name,
        "net": setting.net,
        "shift": setting.shift,
        "dropout": setting.dropout,
        "distil": setting.distil,
        "limit_percent": setting.limit,
        "limit_points": setting.points,
        "seed": seed,
        "recipe": None if setting.recipe is None else asdict(setting.recipe),
        "retrain_tau": None if setting.recipe is not None else setting.retrain_tau,
        "batch_size": setting.batch_size,
        "bias_bits": setting.bias_bits,
        "biases_under_prior": setting.biases,
        "transformed": transformed,
        "size_bytes": size,
        **sizes(decoded, done, size),
        "validation_error_by_phase": {
            phase: history.scalars["validation_measure"][-1]
            for phase, history in done.histories.items()
        },
        **measure(setting, dense, decoded, validation, subset, test=test),
    }


def smallest(
    setting: Setting, net: nn.Module, index: Mapping[str, Tensor], images: Tensor
) -> tuple[dict[str, Tensor], bool]:
    """The snapped network as it is, or with dead neurons folded and neurons sorted, if smaller.

    Returns:
        The state_dict, and whether it was transformed.
    """
    plain = {n: t.detach().contiguous() for n, t in net.state_dict().items()}
    before, after = NETS[setting.net](), NETS[setting.net]()
    before.load_state_dict(plain)
    after.load_state_dict(plain)
    for layer, following, activation in PAIRS[setting.net]:
        fold_dead_neurons_(after, layer, following, activation)
        sort_neurons_(after, layer, following)
    same_outputs(before, after, [images], tolerance=1e-4)
    states = [
        {
            name: t
            if name in index or setting.bias_bits is None
            else snap_to_grid(t, setting.bias_bits)
            for name, t in network.state_dict().items()
        }
        for network in (before, after)
    ]
    files = [len(encode(state)) for state in states]
    chosen = int(files[1] < files[0])
    return states[chosen], bool(chosen)


def tau_of(net: nn.Module, setting: Setting) -> float | dict[str, float]:
    """The factor of tau for each tensor."""
    given = dict(setting.tau)
    return {name: given.get(name, 1.0) for name, _ in net.named_parameters()} if given else 1.0


def to_limit(
    net: nn.Module, images: Images, setting: Setting, options: dict[str, Any]
) -> Compressed:
    """`compress_` with the setting's target, if it has one: a limit, or points above the start.

    Phases that end with more than these points are not made again with a weaker prior: what they
    end with is the target then, and they are continued from their run.
    """

    def validated() -> float:
        return evaluate(net, errors, options["validation"])

    taught, start, target = distilled(setting.distil), validated(), None
    if setting.limit is not None:
        target = Target(measure_increase=max(setting.limit - start, 0.0))
    elif setting.points is not None:
        dense = copy.deepcopy(net.state_dict())
        compress_(net, taught, images, **options)
        target = Target(measure_increase=max(setting.points, validated() - start))
        net.load_state_dict(dense)
    return compress_(net, taught, images, target=target, **options)


def as_published(
    net: nn.Module, images: Images, setting: Setting, run: Path, options: dict[str, Any]
) -> Compressed:
    """The paper's single phase: one mixture of 17 for all layers, moved by gradient.

    Learning rates, hyper-priors and pi_0 are the authors' published tutorial's; so is the default
    of tau, where the paper's text and its code differ.

    Returns:
        As `compress_`.
    """
    components = 17
    first = torch.arange(components) == 0
    mixture = GaussianMixture(
        torch.where(first, 0.99, 0.01 / (components - 1)),
        torch.cat([torch.zeros(1), torch.linspace(-0.6, 0.6, components - 1)]),
        torch.full((components,), 0.25),
        pinned_mixing=first,
        pinned_mean=first,
    )
    # Gamma(5e3, 2) on the zero component's precision, Gamma(250, .1) on the others'.
    hyper = HyperPrior(
        concentration=1.0, std=0.02, std_count=torch.where(first, 1e4, 500.0).double()
    )
    prior = MixturePrior(net, initial=mixture, hyper=hyper, mode="gradient")
    (trainable,) = prior.mixtures.values()
    rate = {"mean": 1e-4, "std": 3e-3, "mixing": 3e-3}
    groups = [{"params": list(net.parameters()), "lr": 5e-4}]
    for name, p in trainable.named_parameters():
        (what,) = (w for w in rate if f".{w}." in name)
        groups.append({"params": [p], "lr": rate[what]})
    schedule = Schedule(tau=setting.retrain_tau)
    history = fit(
        net, loss, images, optimizer=torch.optim.Adam(groups), epochs=setting.retrain_epochs,
        prior=prior, schedule=schedule, run=run, resume=True, measure_train=False, **options,
    )  # fmt: skip
    merged = merge_components(trainable.plain_copy(), prior.flat_weights("all")).mixture
    prior = MixturePrior(net, initial=merged)
    return Compressed(prior, snap_(prior, distortion=0.0), {"retrain": history})


def measure(
    setting: Setting,
    dense: dict[str, Tensor],
    decoded: dict[str, Tensor],
    validation: tuple[Tensor, Tensor],
    subset: int | None,
    *,
    test: bool,
) -> dict[str, float]:
    """Errors in float32 of the dense network and of the one read back from the file, in percent."""
    parts = {"validation": validation}
    if test:
        digits = mnist()
        parts["test"] = digits.x_test[:subset].float() / 255, digits.y_test[:subset]
    return {
        f"{name}_{part}_error_percent": errors_of(setting, state, data)
        for name, state in (("dense", dense), ("compressed", decoded))
        for part, data in parts.items()
    }


def errors_of(setting: Setting, state: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> float:
    """Errors in float32 of a network, in percent."""
    net = NETS[setting.net]()
    net.load_state_dict(state)
    return evaluate(net, errors, data)
