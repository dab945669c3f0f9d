"""Laws of the papers' networks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from swsmix.problems import nets

NETS: dict[str, tuple[Callable[..., nn.Sequential], tuple[int, ...], tuple[int, ...]]] = {
    "sunspot_net": (nets.sunspot_net, (12,), ()),
    "shift_net": (nets.shift_net, (20,), ()),
    "lenet_300_100": (nets.lenet_300_100, (1, 28, 28), (10,)),
    "lenet_5_caffe": (nets.lenet_5_caffe, (1, 28, 28), (10,)),
}
every_net = pytest.mark.parametrize("name", NETS)
lenets = pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5_caffe"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(name: str, seed: int = 0, **keywords: object) -> nn.Sequential:
    return NETS[name][0](generator=seeded(seed), **keywords)


def inputs(name: str, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, *NETS[name][1], generator=seeded(1), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "num_weights", "num_parameters"),
    [
        ("sunspot_net", 12 * 8 + 8, 113),
        ("shift_net", 20 * 10 + 10, 221),
        ("lenet_300_100", 266_200, 266_610),
        ("lenet_5_caffe", 430_500, 431_080),
    ],
)
def test_parameter_counts_are_the_papers(name: str, num_weights: int, num_parameters: int) -> None:
    parameters = dict(build(name).named_parameters())
    weights = sum(p.numel() for key, p in parameters.items() if key.endswith(".weight"))
    assert weights == num_weights
    assert sum(p.numel() for p in parameters.values()) == num_parameters


@every_net
def test_parameters_have_readable_names(name: str) -> None:
    layers = {key.split(".")[0] for key, _ in build(name).named_parameters()}
    assert layers <= {"hidden", "output", "conv1", "conv2", "fc1", "fc2", "fc3"}


@every_net
@pytest.mark.parametrize("batch", [1, 3])
def test_output_has_one_row_per_case_and_no_other_axis_for_one_output(
    name: str, batch: int
) -> None:
    assert build(name)(inputs(name, batch)).shape == (batch, *NETS[name][2])


@every_net
def test_a_case_is_mapped_alike_alone_and_in_a_batch(name: str) -> None:
    net, x = build(name, dtype=torch.float64), inputs(name, 4, torch.float64)
    alone = torch.cat([net(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x), alone, rtol=1e-12, atol=1e-12)


@lenets
def test_lenets_take_every_layout_of_the_same_pixels(name: str) -> None:
    net, x = build(name), inputs(name, 2)
    assert torch.equal(net(x), net(x[:, 0]))
    assert torch.equal(net(x), net(x.flatten(1)))


@pytest.mark.parametrize("shape", [(28, 28), (784,), (2, 783), (2, 3, 28, 28)])
@lenets
def test_lenets_say_which_shapes_they_take(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs a batch .* got shape .*image\[None\]"):
        build(name)(torch.zeros(shape))


@lenets
def test_lenets_say_what_to_do_with_bytes(name: str) -> None:
    with pytest.raises(TypeError, match=r"needs floating-point .*uint8.* by 255"):
        build(name)(torch.zeros(2, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize("make", [nets.sunspot_net, nets.shift_net])
def test_a_network_without_hidden_units_is_refused(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"at least one .* got \d+-0-1"):
        make(hidden=0)


@every_net
def test_initial_weights_are_a_function_of_the_generator(name: str) -> None:
    first, again, other = build(name, 3), build(name, 3), build(name, 4)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@every_net
def test_a_generator_leaves_the_global_random_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    build(name)
    assert torch.equal(torch.get_rng_state(), before)


@every_net
def test_without_a_generator_the_global_random_state_is_used(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        first, fresh = NETS[name][0](), NETS[name][0]()
        torch.set_rng_state(state)
        again = NETS[name][0]()
    for a, b, c in zip(first.parameters(), fresh.parameters(), again.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert torch.equal(a, c)


@every_net
def test_initial_values_fill_one_over_root_fan_in(name: str) -> None:
    for layer in build(name).children():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight.detach()
            bound = weight[0].numel() ** -0.5
            assert all(p.abs().max() <= bound for p in layer.parameters())
            # U(-b, b) has standard deviation b / sqrt(3); its estimate errs by about .45 / sqrt(n).
            tolerance = 4 * 0.45 / weight.numel() ** 0.5
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=tolerance)


def test_a_default_device_that_was_set_back_is_none() -> None:
    torch.set_default_device(None)  # torch 2.6 cannot say the default device after it
    assert nets.sunspot_net().hidden.weight.device == torch.device("cpu")
    with torch.device("meta"):
        assert nets.sunspot_net().hidden.weight.device == torch.device("meta")


@every_net
def test_dtype_is_the_parameters_dtype(name: str) -> None:
    assert {p.dtype for p in build(name, dtype=torch.float64).parameters()} == {torch.float64}
    assert {p.dtype for p in build(name).parameters()} == {torch.get_default_dtype()}


@every_net
def test_every_parameter_learns(name: str) -> None:
    net = build(name)
    net(inputs(name, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@given(
    hidden=st.integers(1, 6),
    lags=st.integers(1, 6),
    batch=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_one_hidden_layer_nets_are_their_formula(
    hidden: int, lags: int, batch: int, seed: int
) -> None:
    x = torch.rand(batch, 2 * lags, generator=seeded(seed), dtype=torch.float64)
    for net in (
        nets.sunspot_net(hidden, 2 * lags, generator=seeded(seed), dtype=torch.float64),
        nets.shift_net(lags, hidden, generator=seeded(seed), dtype=torch.float64),
    ):
        state = net.state_dict()
        units = torch.tanh(x @ state["hidden.weight"].T + state["hidden.bias"])
        wanted = units @ state["output.weight"][0] + state["output.bias"]
        torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)


def test_lenet_5_is_relu_free_up_to_its_first_full_layer() -> None:
    net = build("lenet_5_caffe", dtype=torch.float64)
    with torch.no_grad():
        net.get_parameter("conv1.bias").fill_(
            -100.0
        )  # a ReLU here would make every later map constant
        features = net[:5](inputs("lenet_5_caffe", 2, torch.float64))
    assert features.shape == (2, 50, 4, 4)
    assert features.std(dim=(2, 3)).min() > 0
