"""What a step of SVI costs beside a plain training step: LeNet-300-100, random images.

    python figures/svi_cost.py --batch 128 256 512

Prints, for each batch size, processor time per step of a plain training step with Adam and of a
step of `swsmix.bayes.fit_guide`, and their ratio. On one core of a shared machine the ratios were
3.2, 2.5 and 1.8. Nothing is written.
"""

from __future__ import annotations

import argparse
import time

import pyro
import torch

from swsmix import GaussianMixture, HyperPrior, MixturePrior
from swsmix.bayes import Joint
from swsmix.bayes.svi import trainer
from swsmix.problems import nets


def seconds(step, rounds):
    """Processor seconds per step: the least of several rounds of 20 (two mixture steps each)."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(20):
            step()
        times.append((time.process_time() - began) / 20)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for size in arguments.batch:
        net = nets.lenet_300_100(generator=torch.Generator().manual_seed(0))
        x, y = torch.rand(2 * size, 784), torch.randint(10, (2 * size,))
        k = arguments.components
        initial = GaussianMixture([1 / k] * k, torch.linspace(-0.3, 0.3, k), [0.05] * k)
        prior = MixturePrior(net, initial=initial, hyper=HyperPrior(mean_count=0.1, std=0.05))
        joint = Joint(net, prior, x, y, likelihood="categorical")
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def plain(net=net, optimizer=optimizer, x=x[:size], y=y[:size]):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

        with pyro.validation_enabled(False), pyro.get_param_store().scope():
            step, _ = trainer(joint, guide="normal", init_scale=0.01, lr=1e-3, mixture_every=10)
            for _ in range(11):
                step(x[:size], y[:size])
            ours = seconds(lambda s=step, x=x[:size], y=y[:size]: s(x, y), arguments.rounds)
        base = seconds(plain, arguments.rounds)
        print(
            f"batch {size}, K = {k}: plain {1e3 * base:.2f} ms, SVI {1e3 * ours:.2f} ms per step, "
            f"ratio {ours / base:.2f}"
        )


if __name__ == "__main__":
    main()
