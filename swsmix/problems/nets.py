"""The papers' networks: ``nn.Sequential``s with named layers (``hidden.weight``).

Initial weights and biases are uniform on +-1/sqrt(fan_in). Given a generator, they depend on it
alone, and the global random state does not change. The residual networks are in `resnets`.
"""

from collections import OrderedDict

import torch
from torch import Generator, Tensor, nn

from swsmix.problems.resnets import device_of, resnet20, wrn

__all__ = ["lenet_5_caffe", "lenet_300_100", "resnet20", "shift_net", "sunspot_net", "wrn"]


def sunspot_net(
    hidden: int = 8,
    lags: int = 12,
    *,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Weigend et al.'s (1990) network f(x) = v . tanh(W x + b) + c: (b, lags) to (b,).

    Args:
        hidden: number of hidden units, at least 1 (else a ValueError).
        lags: number of past years as inputs.
        generator: source of the initial weights; None for the global random state.
        dtype: dtype of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``hidden`` and ``output``; 12-8-1 has 104 weights and 9 biases.

    Example:
        >>> sunspot_net()(torch.zeros(5, 12)).shape
        torch.Size([5])
    """
    return _one_hidden_layer(lags, hidden, generator, dtype)


def shift_net(
    bits: int = 10,
    hidden: int = 10,
    *,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Nowlan & Hinton's (1992) shift detector, one tanh hidden layer: (b, 2 bits) to logits (b,).

    Args:
        bits: number of bits in a strip; the network has twice as many inputs.
        hidden: number of hidden units, at least 1 (else a ValueError).
        generator: source of the initial weights; None for the global random state.
        dtype: dtype of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``hidden`` and ``output``; 20-10-1 has 210 weights and 11 biases.

    Example:
        >>> shift_net()(torch.zeros(5, 20)).shape
        torch.Size([5])
    """
    return _one_hidden_layer(2 * bits, hidden, generator, dtype)


def lenet_300_100(
    *, generator: Generator | None = None, dtype: torch.dtype | None = None
) -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998), ReLU: images of 784 pixels to logits (b, 10).

    Args:
        generator: source of the initial weights; None for the global random state.
        dtype: dtype of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``fc1``, ``fc2``, ``fc3``; 266,200 weights and 410 biases.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        layers = OrderedDict[str, nn.Module](
            images=_Images(784),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    return _start(layers, generator, dtype)


def lenet_5_caffe(
    *, generator: Generator | None = None, dtype: torch.dtype | None = None
) -> nn.Sequential:
    """LeNet-5 as in Caffe's examples, 20-50-500-10: images of 784 pixels to logits (b, 10).

    As in Caffe's definition, the only non-linearities are the pooling and the ReLU after ``fc1``.

    Args:
        generator: source of the initial weights; None for the global random state.
        dtype: dtype of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``conv1``, ``conv2``, ``fc1``, ``fc2``; 430,500 weights and 580
        biases.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        layers = OrderedDict[str, nn.Module](
            images=_Images(1, 28, 28),
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    return _start(layers, generator, dtype)


def _one_hidden_layer(
    inputs: int, hidden: int, generator: Generator | None, dtype: torch.dtype | None
) -> nn.Sequential:
    if inputs < 1 or hidden < 1:
        raise ValueError(f"needs at least one input and one hidden unit, got {inputs}-{hidden}-1")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        layers = OrderedDict[str, nn.Module](
            hidden=nn.Linear(inputs, hidden),
            tanh=nn.Tanh(),
            output=nn.Linear(hidden, 1),
            squeeze=nn.Flatten(0),  # (b, 1) to (b,)
        )
    return _start(layers, generator, dtype)


def _start(
    layers: OrderedDict[str, nn.Module], generator: Generator | None, dtype: torch.dtype | None
) -> nn.Sequential:
    # The constructors drew from the global random state, since restored: draw again.
    net = nn.Sequential(layers).to(device_of(generator), dtype)
    for layer in net:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return net


class _Images(nn.Module):
    """Reshape images (b, 784), (b, 28, 28) or (b, 1, 28, 28) to (b, *shape)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(
                f"needs floating-point pixels, got {images.dtype}; "
                "divide uint8 pixels by 255 (mnist_tensors does)"
            )
        if images.shape[1:].numel() != 784:
            raise ValueError(
                "needs a batch of images with 784 pixels each, such as (b, 784), (b, 28, 28) or "
                f"(b, 1, 28, 28), got shape {tuple(images.shape)}; "
                "give a single image a batch axis with image[None]"
            )
        return images.reshape(-1, *self.shape)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.shape))
