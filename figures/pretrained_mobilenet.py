"""MobileNetV2 (Sandler et al. 2018) and crops of photographs, for pretrained.py.

    python figures/pretrained_mobilenet.py

prints the shapes of the crops. The photographs ship with scikit-image, scikit-learn and matplotlib.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

# channels, how many blocks, the first one's stride, and how much wider the inside is
BLOCKS = [(16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6),
          (160, 3, 2, 6), (320, 1, 1, 6)]  # fmt: skip
# No photograph, nor a scene, is in both halves.
PHOTOGRAPHS = {
    "choice": [
        ("scikit-image", "skimage", "data/astronaut.png"),
        ("scikit-image", "skimage", "data/chelsea.png"),
        ("scikit-image", "skimage", "data/motorcycle_left.png"),
        ("matplotlib", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ],
    "report": [
        ("scikit-image", "skimage", "data/coffee.png"),
        ("scikit-image", "skimage", "data/rocket.jpg"),
        ("scikit-learn", "sklearn", "datasets/images/china.jpg"),
        ("scikit-learn", "sklearn", "datasets/images/flower.jpg"),
    ],
}


def unit(inside: int, outside: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU6())


class Bottleneck(nn.Module):
    """Wider, filtered channel by channel, narrower; added to its input where the shapes agree."""

    def __init__(self, inside: int, outside: int, stride: int, wider: int) -> None:
        super().__init__()
        wide = inside * wider
        first = [] if wider == 1 else [unit(inside, wide, 1, 1)]
        last = nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv = nn.Sequential(*first, unit(wide, wide, 3, stride, wide), *last)
        self.added = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.added else self.conv(x)


class MobileNetV2(nn.Module):
    """3.5 million numbers: an image of any size to 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(3, 32, 3, 2)]
        inside = 32
        for outside, count, stride, wider in BLOCKS:
            for i in range(count):
                layers.append(Bottleneck(inside, outside, stride if i == 0 else 1, wider))
                inside = outside
        self.features = nn.Sequential(*layers, unit(inside, 1280, 1, 1))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def photographs(folder_of: Callable[[str, str], Path], number: int, size: int) -> dict[str, Tensor]:
    """Square crops at least a third of a photograph wide, from seed 0, as ImageNet's are scaled."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = {}
    for half, photos in PHOTOGRAPHS.items():
        draw, crops = random.Random(0), []
        for package, module, path in photos:
            image = Image.open(folder_of(package, module) / path).convert("RGB")
            least = min(image.size)
            for _ in range(number // len(photos)):
                side = draw.randint(least // 3, least)
                x, y = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
                box = (x, y, x + side, y + side)
                crop = image.resize((size, size), Image.Resampling.BICUBIC, box)
                crops.append(torch.from_numpy(np.asarray(crop).copy()).float() / 255.0)
        found[half] = ((torch.stack(crops) - mean) / std).permute(0, 3, 1, 2).contiguous()
    return found


if __name__ == "__main__":
    from pretrained_networks import folder_of

    print({half: tuple(x.shape) for half, x in photographs(folder_of, 240, 160).items()})
