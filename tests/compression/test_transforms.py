import copy

import pytest
import torch
from torch import nn

from swsmix.codec import encode
from swsmix.compression.transforms import fold_dead_neurons_, same_outputs, sort_neurons_
from swsmix.problems import nets


def half_dead(net, pairs, seed=0):
    """Some neurons without input, some without output, and weights that are mostly 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net:
        if hasattr(layer, "weight"):
            keep = torch.rand(layer.weight.shape, generator=generator) < 0.3
            layer.weight.data *= keep
    for first, second in pairs:
        a, b = net.get_submodule(first), net.get_submodule(second)
        a.weight.data[::3] = 0.0
        b.weight.data.view(len(b.weight), len(a.weight), -1)[:, 1::3] = 0.0
    return net


def cases():
    generator = torch.Generator().manual_seed(0)
    dense = [("fc1", "fc2"), ("fc2", "fc3")]
    convolutional = [("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")]
    return {
        "dense": (half_dead(nets.lenet_300_100(generator=generator), dense), dense),
        "convolutional": (
            half_dead(nets.lenet_5_caffe(generator=generator), convolutional), convolutional,
        ),
    }  # fmt: skip


def between(first):
    return torch.relu if first.startswith("fc") else (lambda x: x)


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_folding_and_sorting_keep_the_outputs_and_make_the_file_smaller(name):
    net, pairs = cases()[name]
    before = copy.deepcopy(net)
    images = [torch.rand(20, 784, generator=torch.Generator().manual_seed(1))]
    for first, second in pairs:
        dead = fold_dead_neurons_(net, first, second, between(first))
        assert dead >= len(net.get_submodule(first).weight) // 2
        layer, after = net.get_submodule(first), net.get_submodule(second)
        unused = after.weight.view(len(after.weight), len(layer.weight), -1).eq(0).all(2).all(0)
        assert unused.sum() == dead
        assert not layer.weight[unused].any() and not layer.bias[unused].any()
    assert same_outputs(before, net, images) < 1e-5
    zeros = [sum((p == 0).sum() for p in n.parameters()) for n in (before, net)]
    assert zeros[1] > zeros[0]
    for first, second in pairs:
        order = sort_neurons_(net, first, second)
        assert sorted(order.tolist()) == list(range(len(order)))
        count = net.get_submodule(first).weight.flatten(1).ne(0).sum(1)
        assert (count[-len(count) // 3 :] == 0).all()
    assert same_outputs(before, net, images) < 1e-5
    one = {"w": before.get_submodule(pairs[-1][0]).weight.detach()}
    two = {"w": net.get_submodule(pairs[-1][0]).weight.detach()}
    assert len(encode(two)) < len(encode(one))


def test_a_wrong_activation_is_found_out():
    net, pairs = cases()["dense"]
    before = copy.deepcopy(net)
    net.fc1.bias.data -= 0.1  # some constants are negative, which ReLU cuts
    before.load_state_dict(net.state_dict())
    fold_dead_neurons_(net, *pairs[0], lambda x: x)
    with pytest.raises(ValueError, match="outputs differ"):
        same_outputs(before, net, [torch.rand(20, 784)])
    with pytest.raises(ValueError, match="no inputs"):
        same_outputs(before, net, [])


def test_outputs_that_are_not_finite_are_never_the_same():
    net, _ = cases()["dense"]
    broken = copy.deepcopy(net)
    broken.fc3.bias.data[0] = torch.nan
    x = torch.rand(4, 784)
    for networks in ((net, broken), (broken, net), (broken, broken)):
        with pytest.raises(ValueError, match="outputs differ by nan"):
            same_outputs(*networks, [x, x])


def test_layers_that_are_no_pair_are_refused():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(7, 2), nn.ReLU()
    )
    for layers, message in (
        (("0", "1"), "pads its input"),
        (("1", "3"), "no multiple"),
        (("0", "4"), r"'4' is no Linear or Conv2d of the model; it has \['0', '1', '3'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fold_dead_neurons_(net, *layers)
    bare = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs biases"):
        fold_dead_neurons_(bare, "0", "1")
