"""Laws of the residual networks."""

import pytest
import torch
from torch import nn

from swsmix.problems import nets

MAKE = {
    "resnet20": nets.resnet20,
    "wrn": lambda **more: nets.wrn(16, 4, **more),
    "small wrn": lambda **more: nets.wrn(10, 1, **more),
}
every_net = pytest.mark.parametrize("name", MAKE)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_parameter_counts_are_the_papers():
    resnet, wide = nets.resnet20(), nets.wrn(16, 4)
    count = {
        kind: sum(
            p.numel() for m in resnet.modules() if isinstance(m, kind) for p in m.parameters()
        )
        for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    }
    assert count == {nn.Conv2d: 267_696, nn.BatchNorm2d: 1376, nn.Linear: 650}
    # 0.27 million and 2.7 million in the papers' tables.
    assert sum(p.numel() for p in wide.parameters()) == 2_748_890
    layers = [m for m in resnet.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20
    deep = [m for m in wide.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(deep) + 3 == 16  # three shortcuts are layers of 1 x 1


@every_net
def test_images_become_ten_logits_and_alone_as_in_a_batch(name):
    net = MAKE[name](generator=seeded(0), dtype=torch.float64).eval()
    x = torch.rand(3, 3, 32, 32, generator=seeded(1), dtype=torch.float64)
    together = net(x)
    assert together.shape == (3, 10)
    torch.testing.assert_close(together[1:2], net(x[1:2]), rtol=1e-9, atol=1e-9)


@every_net
def test_a_generator_decides_alone_and_the_global_state_stays(name):
    before = torch.get_rng_state()
    one, two, other = (MAKE[name](generator=seeded(s)).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@every_net
def test_variances_stay_within_a_few_times_from_layer_to_layer(name):
    net = MAKE[name](generator=seeded(0))
    sizes = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, out: sizes.append(out.std().item()))
    net(torch.randn(16, 3, 32, 32, generator=seeded(1)))
    assert max(sizes) < 10 * min(sizes)


@every_net
def test_every_parameter_has_a_gradient(name):
    net = MAKE[name](generator=seeded(0))
    net(torch.randn(4, 3, 32, 32, generator=seeded(1))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_the_shortcut_of_a_new_stage_is_the_input_at_every_second_pixel():
    block = nets.resnet20(generator=seeded(0)).eval().blocks[3]
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(2, 16, 8, 8, generator=seeded(1))
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize(("depth", "width"), [(15, 4), (4, 1), (16, 0)])
def test_networks_that_there_are_not_are_named(depth, width):
    with pytest.raises(ValueError, match=f"got WRN-{depth}-{width}"):
        nets.wrn(depth, width)
