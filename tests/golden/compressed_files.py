"""The golden compressed files, each with the tensors in it."""

import json

import torch
from golden.run_folders import DOUBLE
from golden.stored import HERE
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from swsmix import MixturePrior
from swsmix.codec import encode
from swsmix.compression.codebooks import quantize_state, snapped
from swsmix.compression.snap import snapped_state


class Tied(nn.Module):
    """One tensor under two names, and one of its own."""

    def __init__(self):
        super().__init__()
        self.encoder, self.middle = nn.Linear(12, 20, bias=False), nn.Linear(20, 20)
        self.decoder = nn.Linear(12, 20, bias=False)
        self.decoder.weight = self.encoder.weight


def like_trained(net):
    """Rows of unlike size, and something in every bias and buffer."""
    with torch.no_grad():
        for t in net.state_dict().values():
            if t.ndim >= 2:
                t.mul_(torch.linspace(0.05, 1.5, len(t)).square().view(-1, *[1] * (t.ndim - 1)))
            elif t.is_floating_point():
                t.add_(0.3 * torch.rand(t.shape) + 0.01)
            else:
                t.fill_(1234)
    return net


def prior_on(net, num_components, **options):
    prior = MixturePrior(net, num_components, **options)
    for _ in range(10):
        prior.em_step_()
    return prior


def snapped_states():
    """name -> a state_dict to encode. Only `make` calls this: the tests read what it gave."""
    torch.manual_seed(0)
    linear = like_trained(nn.Linear(24, 40))
    prior = prior_on(linear, 5, zero=True)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))
    conv, tied = like_trained(conv), like_trained(Tied())
    fitted = {}
    for method in ("mixture", "kmeans"):
        state = like_trained(nn.Linear(30, 25)).state_dict()
        state = snapped(state, quantize_state(state, 7, method=method, zero=method == "mixture"))
        fitted |= {f"{method}.{name}": t for name, t in state.items()}
    rows, columns = torch.arange(24)[:, None], torch.arange(32)
    neurons, channel = torch.randn(48, 20), torch.linspace(0, 0.8, 8).view(8, 1, 1)
    order = sorted(range(48), key=lambda i: (neurons[i].abs() < 1.5).tolist())
    return {
        "linear": snapped_state(linear, prior),
        "bias8": snapped_state(linear, prior, bias_bits=8),
        "conv": snapped_state(conv, prior_on(conv, 6), bias_bits=16),
        "tied": snapped_state(tied, prior_on(tied, 4, groups="tensor")),
        "fitted": fitted,
        "plain": {
            "half": torch.randn(7, 5).half(),
            "brain": torch.randn(6, 3).bfloat16(),
            "double": torch.randn(4, dtype=DOUBLE),
            "nasty": torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45]),
            "long": torch.tensor([[0, 1, -1], [2**62, -(2**63), 300]]),
            "int": torch.tensor([5, -70_000], dtype=torch.int32),
            "short": torch.tensor([5, -700], dtype=torch.int16),
            "tiny": torch.tensor([5, -70], dtype=torch.int8),
            "byte": torch.arange(200, dtype=torch.uint8),
            "flags": torch.tensor([True, False, False, True, True]),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(0.1),
            "count": torch.tensor(17),
            "constant": torch.full((9, 9), 0.25),
            "a.dotted.name": torch.ones(3),
        },
        # What the context models are for: strides, sorted neurons, channels of their own density.
        "contexts": {
            "period": torch.where((rows * columns) % 8 == 3, 0.5, 0.0) - 0.25 * (columns == 9),
            "sorted": neurons.sign().mul(0.5).masked_fill(neurons.abs() < 1.5, 0.0)[order],
            "channels": torch.where(torch.rand(12, 8, 3, 3) < channel.square(), 0.25, 0.0),
        },
    }


def save_tensors(path, tensors):
    save_file(
        {name: t.detach().clone().contiguous() for name, t in tensors.items()},
        path,
        {"names": json.dumps(list(tensors))},  # safetensors sorts them
    )


def load_tensors(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in json.loads(file.metadata()["names"])}


def make_codec():
    (HERE / "codec").mkdir(exist_ok=True)
    for name, state in snapped_states().items():
        save_tensors(HERE / "codec" / f"{name}.safetensors", state)
        (HERE / "codec" / f"{name}.sws").write_bytes(encode(state))
