"""Residual networks for images of 32 x 32 pixels: ResNet-20 and wide residual networks.

Initial weights of convolutions are normal with variance 2 / (fan_out), as in both papers' code;
given a generator, they depend on it alone, and the global random state does not change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

__all__ = ["resnet20", "wrn"]


def resnet20(*, generator: Generator | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """ResNet-20 for CIFAR-10: images (b, 3, 32, 32) to logits (b, 10).

    Three stages of three blocks with 16, 32 and 64 channels; where a stage begins, the shortcut
    takes every second pixel and fills up with channels of zeros (option A).

    Args:
        generator: source of the initial weights; None for the global random state.
        dtype: dtype of the parameters; None for PyTorch's default.

    Returns:
        The network; 268,336 weights, 1,376 numbers of batch norms and 10 biases.

    Reference:
        He, Zhang, Ren & Sun 2016, "Deep residual learning for image recognition", section 4.2.

    Example:
        >>> resnet20().eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _start(lambda: _ResNet(3), generator, dtype)


def wrn(
    depth: int = 16,
    width: int = 4,
    *,
    generator: Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A wide residual network WRN-depth-width: images (b, 3, 32, 32) to logits (b, 10).

    Batch norm and ReLU come before each convolution; stages of 16, 32 and 64 times `width`
    channels.

    Args:
        depth: the number of layers, 6 n + 4.
        width: how many times as wide as a residual network.
        generator: source of the initial weights; None for the global random state.
        dtype: dtype of the parameters; None for PyTorch's default.

    Returns:
        The network; WRN-16-4 has 2.7 million weights.

    Raises:
        ValueError: if there is no network of that depth or width.

    Reference:
        Zagoruyko & Komodakis 2016, "Wide residual networks".

    Example:
        >>> wrn(10, 1).eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1 or width < 1:
        raise ValueError(
            "needs a depth of 10, 16, 22 and so on (6 n + 4) and a width of at least 1, got "
            f"WRN-{depth}-{width}"
        )
    return _start(lambda: _WideResNet(blocks, width), generator, dtype)


class _ResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv = _conv(3, 16)
        self.bn = nn.BatchNorm2d(16)
        widths = [16] * blocks + [32] * blocks + [64] * blocks
        self.blocks = nn.Sequential(
            *(_Block(i, o) for i, o in zip([16, *widths], widths, strict=False))
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn(self.conv(images))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two convolutions, each with batch norm, beside a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.more, stride = outputs - inputs, 1 if inputs == outputs else 2
        self.conv1, self.bn1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        if self.more:
            half = self.more // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.more - half))
        return functional.relu(self.bn2(self.conv2(y)) + x)


class _WideResNet(nn.Module):
    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.conv = _conv(3, 16)
        widths = [16 * width] * blocks + [32 * width] * blocks + [64 * width] * blocks
        strides = [2 if i in (blocks, 2 * blocks) else 1 for i in range(3 * blocks)]
        self.blocks = nn.Sequential(
            *(_WideBlock(*each) for each in zip([16, *widths], widths, strides, strict=False))
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.blocks(self.conv(images))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _WideBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice, beside a shortcut of 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.shortcut = (
            None
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        moved: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(y))))
        return x + moved


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def device_of(generator: Generator | None) -> torch.device:
    """Where a network's parameters are made: by its generator, or the user's default."""
    # Not by `get_default_device`: torch 2.6 raises there after it was set back.
    default = torch.empty(0, dtype=torch.float32, device=None).device
    return default if generator is None else generator.device


def _start(
    make: Callable[[], nn.Module], generator: Generator | None, dtype: torch.dtype | None
) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        net = make()  # draws from the global random state, which is then restored: draw again
    net = net.to(device_of(generator), dtype)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.weight[0, 0].numel()
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
    return net
