"""What a training step under the prior takes in memory, between two EM steps."""

import tracemalloc

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from swsmix import MixturePrior, Schedule


class NewBytes(TorchDispatchMode):
    """Counts the bytes of memory that torch's operations make anew."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                self.total += made.untyped_storage().nbytes()
        return result


def bytes_of_a_step(width, update):
    """Of torch and of numpy, in a step that is neither the first nor an EM step."""
    net = nn.Sequential(nn.Linear(width, 60), nn.Tanh(), nn.Linear(60, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, foreach=False)
    prior = MixturePrior(net, 17)
    prior.attach(optimizer, num_data=1000, update=update, schedule=Schedule(em_every=1000))
    net(torch.randn(8, width)).square().mean().backward()
    tracemalloc.start()
    try:
        for _ in range(3):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with NewBytes() as made:
                optimizer.step()
            taken = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return made.total + taken


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_a_step_between_em_steps_takes_no_memory_that_grows_with_the_weights(update):
    pytest.importorskip("numba")
    few = bytes_of_a_step(50, update)
    assert few < 150_000
    # Exactly, then by cells; the weights themselves have 96 kB, 192 kB and 1.9 MB.
    for width in (400, 800, 8000):
        assert bytes_of_a_step(width, update) < few + 10_000
