"""The main paths of the package with fixed inputs: the same digests are wanted in any environment.

The network and the data are the user's and name their dtype and device; what swsmix makes of them
must not depend on defaults, modes, threads or the process.
"""

import dataclasses
import hashlib
import io
import warnings

import numpy as np
import torch
from torch import nn

from swsmix import (
    GaussianMixture,
    GaussianNoise,
    HyperPrior,
    MixturePrior,
    Schedule,
    fit,
    initial_mixture,
    load_run,
)

FLOAT = torch.float32


def digest(value):
    """A short hash of tensors, bytes, numbers, and containers of them; dtypes count."""
    return hashlib.sha256(_encoded(value)).hexdigest()[:12]


def _encoded(value):
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{tuple(value.shape)}".encode() + raw
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"".join(str(k).encode() + _encoded(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return b"".join(_encoded(v) for v in value)
    if dataclasses.is_dataclass(value):
        return _encoded(vars(value))
    if not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"no digest of {type(value).__name__}")  # a repr would show the defaults
    return repr(value).encode()


def numbers(shape, seed, scale=0.4):
    """Normal numbers by numpy, whose defaults torch's cannot touch."""
    drawn = scale * np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32))


def network(dtype=FLOAT):
    """6-12-3, under 108 weights."""
    options = {"dtype": dtype, "device": "cpu"}
    net = nn.Sequential(nn.Linear(6, 12, **options), nn.Tanh(), nn.Linear(12, 3, **options))
    with torch.no_grad():
        for seed, p in enumerate(net.parameters()):
            p.copy_(numbers(p.shape, seed))
    return net


def data():
    """64 cases, three classes."""
    x = numbers((64, 6), 10, scale=1.0)
    return x, x[:, :3].argmax(1)


def train(net, optimizer, steps=6):
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def prior_parts():
    """Every start, penalty, gradient, moments, the EM step, regions, the distribution."""
    found = {}
    for name, options in {
        "plain": {},
        "spike": {"zero": True, "zero_mixing": 0.9},
        "quantiles": {"method": "quantiles"},
        "kmeans": {"method": "kmeans", "groups": "tensor"},
        "gradient": {"mode": "gradient"},
    }.items():
        net = network()
        prior = MixturePrior(net, 5, **options)
        penalty = prior.penalty()
        penalty.backward()
        found[name] = [penalty, [p.grad for p in net.parameters()], prior.evaluate().moments]
        if prior.mode == "em":
            prior.em_step_()
        found[name] += [prior.state_dict()]
    return found


def mixture_parts():
    """A mixture by itself."""
    from swsmix.tables.regions import decision_regions

    mixture = GaussianMixture([0.9, 0.05, 0.05], [0.0, -0.4, 0.4], [0.05, 0.1, 0.1])
    w = numbers(5000, 3)
    source = torch.Generator().manual_seed(0)
    regions = decision_regions(mixture)
    return [
        mixture.log_prob(w), mixture.responsibilities(w), mixture.sample(9, generator=source),
        mixture.distribution().log_prob(w), regions.boundaries, regions.assign(w),
        initial_mixture(w, 5).state_dict(),
        initial_mixture(w, 5, method="kmeans").state_dict(),
    ]  # fmt: skip


def attached():
    """Proximal, gradient and mode-gradient training by the user's own loop."""
    found = []
    for kind, options in (
        (torch.optim.Adam, {"lr": 1e-2}),
        (torch.optim.SGD, {"lr": 1e-1, "momentum": 0.9}),
        (torch.optim.RMSprop, {"lr": 1e-2}),
    ):
        net = network()
        prior = MixturePrior(net, 4)
        optimizer = kind(net.parameters(), **options)
        schedule = Schedule(tau=0.5, em_start=2, em_every=2)
        attachment = prior.attach(optimizer, num_data=64, schedule=schedule)
        train(net, optimizer)
        found += [net.state_dict(), prior.state_dict(), attachment.update, attachment.tick]
    return found


def trained(folder):
    """A run, interrupted after one epoch and resumed, and one by l-bfgs with a learned noise."""
    x, y = data()

    def go(epochs, resume):
        net = network()
        prior = MixturePrior(net, 4)
        history = fit(
            net, nn.functional.cross_entropy, (x, y), epochs=epochs, prior=prior, resume=resume,
            optimizer=torch.optim.Adam(net.parameters(), lr=1e-2), batch_size=16,
            validation=(x, y), run=folder / "run", progress=False,
        )  # fmt: skip
        return [net.state_dict(), prior.state_dict(), _of(history)]

    go(1, False)
    found = go(2, True)
    loaded = load_run(folder / "run")
    found += [loaded.network, loaded.prior, _of(loaded.history)]
    net, noise = network(), GaussianNoise(0.3)
    prior = MixturePrior(net, 3)
    history = fit(
        net, noise, (x, x[:, :3] ** 2), optimizer="l-bfgs", epochs=2, iterations=3, prior=prior,
        progress=False,
    )  # fmt: skip
    return [*found, net.state_dict(), noise.state_dict(), _of(history)]


def _of(history):
    return {k: v for k, v in history.to_tensors().items() if "seconds" not in k and "time" not in k}


def compressed(folder):
    """compress_, a file of it and back."""
    from swsmix.compression import Recipe, compress_, load_compressed, save_compressed

    x, y = data()
    net = network()
    short = Recipe(num_components=4, sparsify_epochs=1, quantise_epochs=1, finetune_epochs=1)
    done = compress_(
        net, nn.functional.cross_entropy, (x, y), recipe=short, batch_size=32, progress=False
    )
    save_compressed(folder / "net.sws", net, done.prior)
    found = [net.state_dict(), done.prior.state_dict(), done.index]
    found += [(folder / "net.sws").read_bytes(), load_compressed(folder / "net.sws")]
    return found


def snapped(folder):
    """What needs no gradient: EM, values, merging, assignment, snapping, data-free codebooks."""
    from swsmix.compression import (
        assign,
        merge_components,
        quantize,
        quantize_state,
        save_compressed,
        snap_,
        snapping_report,
    )

    few = quantize_state(network().state_dict(), 4, zero=True)
    found = [{n: (q.codebook, q.index) for n, q in few.items()}]
    net = network()
    prior = MixturePrior(net, 6, zero=True)
    for _ in range(3):
        prior.em_step_()
    mixture = prior.mixtures["all"]
    w = net[0].weight.detach()
    merged = merge_components(mixture, w)
    found += [merged.mixture.state_dict(), assign(mixture, w)]
    found += [{n: (q.codebook, q.index) for n, q in quantize(prior).items()}]
    found += [str(snapping_report(net, prior))]
    found += [snap_(prior), net.state_dict()]
    save_compressed(folder / "snapped.sws", net, prior)
    return [*found, (folder / "snapped.sws").read_bytes()]


def inspected(folder):
    """Checkpoints of three kinds inspected, as text, page and figures (files of bytes)."""
    from safetensors.torch import save_file

    from swsmix.inspection import draw_figures, html_page
    from swsmix.inspection.inspect import inspect

    torch.save(network().state_dict(), folder / "net.pt")
    save_file(network().state_dict(), folder / "net.safetensors")
    found = []
    for name in ("net.pt", "net.safetensors", "net.sws", "run"):
        seen = inspect(folder / name)
        found += [[g.mixture.state_dict() for g in seen.groups], [g.claimed for g in seen.groups]]
        found += [html_page(seen).replace(str(folder), ""), _printed(seen)]
    pictures = list(draw_figures(inspect(folder / "run")))
    return [*found, [_drawn(picture.figure) for picture in pictures]]


def _printed(seen):
    from rich.console import Console

    from swsmix.inspection import terminal

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(seen))
    return console.export_text().replace(str(seen.path.parent), "")


def _drawn(figure):
    """The numbers that a figure holds."""
    return [
        [np.asarray(line.get_xydata(), dtype=float) for line in axes.get_lines()]
        for axes in figure.axes
    ]


def posterior(folder):
    """The joint density, NUTS, a guide by SVI, its draws saved, read, predicted and judged."""
    from swsmix.bayes import Joint, Posterior, clusters, fit_guide, loo, sample

    x = numbers((12, 6), 20, scale=1.0)
    y = x[:, :3].sin()
    found, hyper = [], HyperPrior(mean=0.0, mean_count=0.1, std=0.2, std_count=3.0)
    for dtype in (torch.float64, FLOAT):
        net = network(dtype)
        inputs, targets = x.to(dtype), y.to(dtype)
        joint = Joint(net, MixturePrior(net, 3, hyper=hyper), inputs, targets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short chains diverge, the prior is untrained
            drawn = sample(joint, chains=1, draws=4, warmup=20, max_depth=3, progress=False)
            guide = fit_guide(
                joint, epochs=2, batch_size=6, draws=60, mixture_every=2, progress=False
            )
            for each in (drawn, guide):
                each.save(folder / "posterior.safetensors")
                again = Posterior.load(folder / "posterior.safetensors")
                prediction = again.predict(net, inputs, quantiles=(0.1, 0.9))
                found += [again.z, list(again.mixture()), again.weights(), again.noise_std]
                found += [prediction.mean, prediction.quantiles, vars(clusters(again))]
        score = guide.log_likelihood(net, inputs, targets)
        found += [score, loo(score).elpd]
    return found


def plotted():
    """Every figure of tensors and weights."""
    from swsmix import plots

    w, mixture = numbers(400, 5), GaussianMixture([0.5, 0.5], [0.0, 0.3], [0.1, 0.2])
    many = numbers(30_000, 6)
    figures = [
        plots.clusters(w, mixture), plots.responsibilities(mixture, w),
        plots.before_after(w, 0.5 * w, mixture), plots.before_after(many, 0.5 * many, mixture),
        plots.hinton(w[:20].view(4, 5)), plots.layers({"a": w, "b": 2 * w}, mixture),
    ]  # fmt: skip
    return [_drawn(figure) for figure in figures]


def guide():
    """The guide alone, in float32."""
    from swsmix.bayes import Joint, fit_guide

    hyper = HyperPrior(mean=0.0, mean_count=0.1, std=0.2, std_count=3.0)
    net, x = network(), numbers((12, 6), 20, scale=1.0)
    joint = Joint(net, MixturePrior(net, 3, hyper=hyper), x, x[:, :3].sin())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the prior is untrained
        return fit_guide(joint, epochs=1, batch_size=6, draws=3, progress=False).z


def used(prior):
    """What a process makes of a prior that it was given."""
    found = [prior.penalty(), prior.evaluate().moments]
    prior.em_step_()
    return digest([*found, prior.state_dict(), prior.penalty()])


PARTS = (
    prior_parts, mixture_parts, attached, trained, compressed, snapped, inspected, posterior,
    plotted,
)  # fmt: skip


def digests(folder, parts=PARTS):
    """Name -> digest, in an order in which later parts read what earlier ones wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for part in parts:
        found[part.__name__] = digest(part(folder) if part.__code__.co_argcount else part())
    return found
