"""The units of work: one pretrained network, or one compressed network with its file.

Everything here reads the training images alone, but for `measure`, which a unit calls once, after
its file is written; `explore.py` never lets it see the test images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swsmix import HyperPrior, MixturePrior, Schedule, fit, load_run, snap_
from swsmix.codec import encode, load_compressed
from swsmix.compression import save_compressed
from swsmix.compression.recipe import Compressed, Recipe, compress_
from swsmix.compression.snap import bits_per_weight, merge_components, snap_to_grid
from swsmix.compression.transforms import fold_dead_neurons_, same_outputs, sort_neurons_
from swsmix.mixture import GaussianMixture
from swsmix.problems import nets
from swsmix.problems.mnist import mnist
from swsmix.training.evaluation import evaluate
from swsmix.training.history import History
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
NUM_VALIDATION = 10_000


@dataclass(frozen=True)
class Setting:
    """One way to compress one network.

    Attributes:
        name: of the setting.
        net: `"lenet-300-100"` or `"lenet-5-caffe"`.
        shift: the augmentation: images are shifted by up to so many pixels; 0 is none.
        dropout: of the input pixels, while training.
        recipe: of `compress_`; None for the paper's own single phase.
        batch_size: images per step.
        pretrain_epochs: epochs before the prior comes.
        retrain_epochs: of the single phase.
        retrain_tau: the prior's strength in it.
        bias_bits: 8 puts the biases on a grid of 8 bits; None keeps them exactly.
        biases: whether the biases are under the prior too, instead.
        tau: factors of tau by tensor; 1 where there is none.
        distil: the share of the loss that learns from the dense network's answers; 0 is none.
        portrait: whether seed 0 is kept for the figures.
    """

    name: str
    net: str
    shift: int = 0
    dropout: float = 0.0
    recipe: Recipe | None = None
    batch_size: int = 256
    pretrain_epochs: int = 20
    retrain_epochs: int = 30
    retrain_tau: float = 0.003
    bias_bits: int | None = 8
    biases: bool = False
    tau: tuple[tuple[str, float], ...] = ()
    distil: float = 0.0
    portrait: bool = False

    @property
    def pretraining(self) -> str:
        """What the pretrained network depends on, beside the seed."""
        return f"{self.net}-shift{self.shift}-dropout{self.dropout:g}"


class Images:
    """Batches of MNIST, shuffled anew each epoch, shifted and with dropped pixels if asked for.

    With a teacher, the targets are the label and the teacher's ten logits. The generator's state
    goes into the checkpoints of `fit`.
    """

    def __init__(
        self, x: Tensor, y: Tensor, setting: Setting, seed: int, teacher: nn.Module | None = None
    ) -> None:
        self.x, self.y, self.dataset = x, y, x  # `fit` counts the examples of `dataset`
        self.setting, self.teacher = setting, teacher
        self.generator = torch.Generator().manual_seed(seed)
        s = setting.shift
        self.windows = nn.functional.pad(x, (s, s, s, s)).unfold(1, 28, 1).unfold(2, 28, 1)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-len(self.x) // self.setting.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        n, generator = len(self.x), self.generator
        order = torch.randperm(n, generator=generator)
        offset = torch.randint(2 * self.setting.shift + 1, (n, 2), generator=generator)
        for rows in order.split(self.setting.batch_size):
            x = self.windows[rows, offset[rows, 0], offset[rows, 1]]
            if self.setting.dropout:
                keep = torch.rand(x.shape, generator=generator) >= self.setting.dropout
                x = x * keep / (1.0 - self.setting.dropout)
            yield x, self.y[rows] if self.teacher is None else self._taught(x, self.y[rows])

    @torch.no_grad()
    def _taught(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.teacher is not None
        return torch.cat([y[:, None].float(), self.teacher(x).float()], dim=1)


def errors(logits: Tensor, target: Tensor) -> Tensor:
    """Wrong answers in percent."""
    return 100.0 * (logits.argmax(-1) != target).double().mean()


def training_images(seed: int, subset: int | None) -> tuple[tuple[Tensor, Tensor], ...]:
    """The 50,000 images to train on and the 10,000 to validate on, drawn anew for each seed."""
    digits = mnist()
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(1000 + seed))
    x, y = digits.x_train.float() / 255, digits.y_train
    train, validation = order[NUM_VALIDATION:], order[:NUM_VALIDATION]
    if subset is not None:
        train, validation = train[:subset], validation[:subset]
    return (x[train], y[train]), (x[validation], y[validation])


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
        scratch: where the pretrained network is, and checkpoints and file go.
        results: where the tensors of the figures go.
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
        done = compress_(
            net, distilled(setting.distil), images, recipe=setting.recipe, run=run, resume=True,
            seed=seed, include="*" if setting.biases else None, tau=tau_of(net, setting),
            **options,
        )  # fmt: skip
    state, transformed = smallest(setting, net, done, validation[0][:1000])
    file = scratch / "files" / f"{setting.name}-seed{seed}.sws"
    file.parent.mkdir(parents=True, exist_ok=True)
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
    setting: Setting, net: nn.Module, done: Compressed, images: Tensor
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
            if name in done.index or setting.bias_bits is None
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


def sizes(decoded: dict[str, Tensor], done: Compressed, size: int) -> dict[str, Any]:
    """The three units of compression, and what the coders start from."""
    parameters = sum(t.numel() for t in decoded.values())
    nonzero = {n: int((decoded[n] != 0).sum()) for n in done.index}
    bits = {n: bits_per_weight(j) for n, j in done.index.items()}
    return {
        "float32_bytes": 4 * parameters,
        "ratio": 4 * parameters / size,
        "nonzero": nonzero,
        "weights": {n: decoded[n].numel() for n in done.index},
        "nonzero_percent": 100.0
        * sum(nonzero.values())
        / sum(decoded[n].numel() for n in done.index),
        "entropy_bits_a_weight": bits,
        "values": {n: len(decoded[n].unique()) for n in done.index},
        "han_ratio": han_ratio(decoded, done),
    }


def han_ratio(decoded: dict[str, Tensor], done: Compressed, run_bits: int = 5) -> float:
    """Compression in the format of Han et al. (2015), as we read Ullrich et al.

    Each non-zero weight costs its codebook index and its distance to the one before, both Huffman
    coded; a distance above 2^run_bits - 1 costs a filler; the codebook and the biases are float32.

    Returns:
        Float32 bits of the whole network over the bits of the format.
    """
    total = 0.0
    for name, t in decoded.items():
        if name not in done.index:
            total += 32.0 * t.numel()
            continue
        flat = t.reshape(-1)
        at = flat.nonzero().reshape(-1)
        gaps = torch.diff(at, prepend=at.new_tensor([-1])) - 1
        longest = 2**run_bits - 1
        fillers = gaps // (longest + 1)
        values, which = flat[at].unique(return_inverse=True)
        distances = torch.cat([gaps % (longest + 1), gaps.new_full((int(fillers.sum()),), longest)])
        codes = torch.cat([which, which.new_full((int(fillers.sum()),), len(values))])
        total += huffman_bits(codes) + huffman_bits(distances) + 32.0 * (len(values) + 1)
    return 32.0 * sum(t.numel() for t in decoded.values()) / total


def huffman_bits(symbols: Tensor) -> float:
    """The bits of a Huffman code of the symbols, its table not counted."""
    import heapq

    heap = torch.bincount(symbols)[torch.bincount(symbols) > 0].tolist() if len(symbols) else []
    if len(heap) == 1:
        return float(heap[0])
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return float(total)


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
    error_rates = {}
    for name, state in (("dense", dense), ("compressed", decoded)):
        net = NETS[setting.net]()
        net.load_state_dict(state)
        for part, data in parts.items():
            error_rates[f"{name}_{part}_error_percent"] = evaluate(net, errors, data)
    return error_rates


def keep_for_figures(
    setting: Setting,
    seed: int,
    results: Path,
    dense: dict[str, Tensor],
    retrained: dict[str, Tensor],
    decoded: dict[str, Tensor],
    done: Compressed,
) -> None:
    """What the figures draw: histories; weights before, retrained, decoded (20,000 per tensor)."""
    if seed or not setting.portrait:
        return
    tensors: dict[str, Tensor] = {}
    for name in done.index:
        states = {"before": dense, "retrained": retrained, "after": decoded}
        size = dense[name].numel()
        rows = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:20_000]
        for when, state in states.items():
            # Small tensors whole and in their order.
            flat = state[name].reshape(-1)
            tensors[f"{when}/{name}"] = (flat if size <= 20_000 else flat[rows]).half()
    for group, mixture in done.prior.mixtures.items():
        for what in ("mixing", "mean", "std"):
            tensors[f"{what}/{group}"] = getattr(mixture, what).detach().clone()
    for phase, history in done.histories.items():
        thin = History(history.scalars, history.series, {})
        for key, t in thin.to_tensors().items():
            tensors[f"history/{phase}/{key}"] = t.float().contiguous()
    file = results / f"{setting.name}.safetensors"
    with replacing(file) as temporary:
        save_file(tensors, temporary)
