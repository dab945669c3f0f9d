"""Which kind of tensor makes MobileNetV2's answers change: each quantised alone, at one loss.

    python figures/pretrained_kinds.py [LOSS]

prints, on the choice half of pretrained.py, what share of the answers changes and the divergence
of the answers, in nats. The default loss is that of `swsmix compress`.
"""

import sys
from collections.abc import Collection

from pretrained_networks import mobilenet
from torch import Tensor

from swsmix.compression.rate import DEFAULT_LOSS, Network
from swsmix.compression.snap import bits_per_weight


def kind_of(name: str, t: Tensor) -> str:
    if t.ndim < 2:
        return "norms and biases, in float16"
    if name.startswith("features.0."):
        return "first convolution"
    if name.startswith("classifier"):
        return "classifier"
    return "depthwise convolutions" if t.shape[1] == 1 else "1x1 convolutions"


def main(loss: float) -> None:
    trained = mobilenet()
    state = trained.state()
    trained.measure("choice")  # of the network as it is
    network = Network(state)
    found = network.quantized(network.for_loss(loss))
    kinds: dict[str, list[str]] = {}
    for name, t in state.items():
        kinds.setdefault(kind_of(name, t), []).append(name)

    def scored(names: Collection[str]) -> str:
        new = {
            n: t if n not in names else found[n].values if n in found else t.half().float()
            for n, t in state.items()
        }
        trained.model.load_state_dict(new, strict=False)
        score = trained.measure("choice")
        return f"{score['other']:.1f} % of the answers change, divergence {score['kl']:.4f}"

    print(f"all: {scored(set(state))}", flush=True)
    for kind, names in kinds.items():
        count = sum(state[n].numel() for n in names)
        bits = sum(
            state[n].numel() * (bits_per_weight(found[n].index) if n in found else 16.0)
            for n in names
        )
        rest = scored(set(state) - set(names))
        print(f"{kind}, {count:,} at {bits / count:.2f} bits: {scored(set(names))}; all but them: "
              f"{rest}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_LOSS)
