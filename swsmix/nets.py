"""The papers' networks, a few lines each.

Every network is a plain ``nn.Sequential`` with named layers, so that its weights have readable
names (``hidden.weight``, ``conv1.bias``). All of them start from the same distribution, the one of
PyTorch's own layers: weights and biases uniform on +-1/sqrt(fan_in). Given a generator, the start
is a function of that generator alone and the global random state stays untouched.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["lenet_5_caffe", "lenet_300_100", "shift_net", "sunspot_net"]


def sunspot_net(
    hidden: int = 8,
    lags: int = 12,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """The sunspot network: `lags` past years, one tanh hidden layer, one linear output.

    f(x) = v . tanh(W x + b) + c. Maps (b, lags) to (b,), the shape of the targets, so that
    ``(net(x) - y) ** 2`` cannot broadcast by accident. 12-8-1 has 104 weights and 9 biases.

    Args:
        hidden: number of hidden units, at least 1 (else a ValueError).
        lags: number of past years at the input.
        generator: source of the initial weights; None for the global random state.
        dtype: type of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``hidden`` and ``output``.

    Reference:
        Weigend, Huberman & Rumelhart 1990; Nowlan & Hinton 1992.

    Example:
        >>> net = sunspot_net(generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(5, 12)).shape
        torch.Size([5])
    """
    return _one_hidden_layer(lags, hidden, generator=generator, dtype=dtype)


def shift_net(
    bits: int = 10,
    hidden: int = 10,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """The shift detector: two strips of `bits` bits, one tanh hidden layer, one logit.

    log p(right) / p(left) = v . tanh(W x + b) + c. Maps (b, 2 bits) to logits (b,), the shape of
    the labels; train it with ``binary_cross_entropy_with_logits``. 20-10-1 has 210 weights and
    11 biases.

    Args:
        bits: number of bits in a strip; the network has twice as many inputs.
        hidden: number of hidden units, at least 1 (else a ValueError).
        generator: source of the initial weights; None for the global random state.
        dtype: type of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``hidden`` and ``output``.

    Reference:
        Nowlan & Hinton 1992.

    Example:
        >>> net = shift_net(generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(5, 20)).shape
        torch.Size([5])
    """
    return _one_hidden_layer(2 * bits, hidden, generator=generator, dtype=dtype)


def lenet_300_100(
    *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> nn.Sequential:
    """LeNet-300-100: 784-300-100-10, ReLU; 266,200 weights and 410 biases.

    Maps images (b, 784), (b, 28, 28) or (b, 1, 28, 28) to class logits (b, 10).

    Args:
        generator: source of the initial weights; None for the global random state.
        dtype: type of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``fc1``, ``fc2`` and ``fc3``.

    Reference:
        LeCun, Bottou, Bengio & Haffner 1998; Ullrich, Meeds & Welling 2017.

    Example:
        >>> net = lenet_300_100(generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in net.parameters())
        266610
    """
    layer = _layers(generator, dtype)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            images=_Images(28 * 28),
            fc1=layer(nn.Linear, 28 * 28, 300),
            relu1=nn.ReLU(),
            fc2=layer(nn.Linear, 300, 100),
            relu2=nn.ReLU(),
            fc3=layer(nn.Linear, 100, 10),
        )
    )


def lenet_5_caffe(
    *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
) -> nn.Sequential:
    """LeNet-5 in Caffe's variant, 20-50-500-10: 430,500 weights and 580 biases.

    Two 5x5 convolutions (20 and 50 maps), each followed by 2x2 max pooling, then two full layers.
    As in Caffe's own definition the one non-linearity besides the pooling is the ReLU after
    ``fc1``. Maps images (b, 784), (b, 28, 28) or (b, 1, 28, 28) to class logits (b, 10).

    Args:
        generator: source of the initial weights; None for the global random state.
        dtype: type of the parameters; None for PyTorch's default.

    Returns:
        The network, with layers ``conv1``, ``conv2``, ``fc1`` and ``fc2``.

    Reference:
        LeCun, Bottou, Bengio & Haffner 1998, as in Caffe's examples; Ullrich, Meeds & Welling 2017.

    Example:
        >>> net = lenet_5_caffe(generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in net.parameters())
        431080
    """
    layer = _layers(generator, dtype)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            images=_Images(1, 28, 28),
            conv1=layer(nn.Conv2d, 1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=layer(nn.Conv2d, 20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=layer(nn.Linear, 50 * 4 * 4, 500),
            relu1=nn.ReLU(),
            fc2=layer(nn.Linear, 500, 10),
        )
    )


class _Images(nn.Module):
    """Lay out a batch of images as the next layer wants it: the same pixels, another shape.

    Args:
        *shape: shape of one image after this layer, such as ``784`` or ``1, 28, 28``.

    Example:
        >>> _Images(784)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 784])
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Float[Tensor, "b ..."]:
        """Reshape a batch (b, 784), (b, 28, 28) or (b, 1, 28, 28).

        Args:
            images: floating-point pixels, the batch first.

        Returns:
            The same pixels, shape (b, *shape).

        Raises:
            TypeError: the pixels are integers.
            ValueError: an image has the wrong number of pixels, or the batch axis is missing.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"wanted floating-point pixels, got {images.dtype}; "
                "divide uint8 pixels by 255 (mnist_tensors does)"
            )
        num_pixels = torch.Size(self.shape).numel()
        if images.shape[1:].numel() != num_pixels:
            raise ValueError(
                f"wanted a batch of images with {num_pixels} pixels each, such as (b, 784), "
                f"(b, 28, 28) or (b, 1, 28, 28), got shape {tuple(images.shape)}; "
                "give a single image a batch axis with image[None]"
            )
        return images.reshape(-1, *self.shape)

    def extra_repr(self) -> str:
        """Show the shape in the network's printout.

        Returns:
            The shape of one image.
        """
        return ", ".join(map(str, self.shape))


def _one_hidden_layer(
    inputs: int, hidden: int, *, generator: torch.Generator | None, dtype: torch.dtype | None
) -> nn.Sequential:
    # inputs-hidden-1 with tanh; the output axis is dropped: (b, inputs) to (b,).
    if inputs < 1 or hidden < 1:
        raise ValueError(f"wanted at least one input and one hidden unit, got {inputs}-{hidden}-1")
    layer = _layers(generator, dtype)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            hidden=layer(nn.Linear, inputs, hidden),
            tanh=nn.Tanh(),
            output=layer(nn.Linear, hidden, 1),
            squeeze=nn.Flatten(0),
        )
    )


def _layers(
    generator: torch.Generator | None, dtype: torch.dtype | None
) -> Callable[..., nn.Module]:
    # A maker of layers whose weights and biases are uniform on +-1/sqrt(fan_in). They are born on
    # the meta device, without values: their constructors would draw from the global random state.
    device = torch.get_default_device() if generator is None else generator.device

    def layer(kind: Callable[..., nn.Linear | nn.Conv2d], *size: int) -> nn.Module:
        made = kind(*size, device="meta", dtype=dtype).to_empty(device=device)
        bound = made.weight[0].numel() ** -0.5
        for parameter in made.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        return made

    return layer
