"""One price of a bit for a whole network: what is asked for is met, and nothing else is better."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swsmix.codec import encode
from swsmix.compression.codebooks import quantize_state, snapped
from swsmix.compression.rate import Network
from swsmix.compression.snap import assign, bits_per_weight


def random(*shape, seed=0, kind="gauss"):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator)
    if kind == "laplace":
        sign = w.sign()
        w = -torch.rand(shape, generator=generator).clamp_min(1e-9).log() * sign / 2**0.5
    return w


def net():
    """Tensors of unlike scales and shapes, a spike of zeros, and what is never quantised."""
    sparse = random(90, 50, seed=2)
    sparse[torch.rand(90, 50, generator=torch.Generator().manual_seed(3)) < 0.6] = 0.0
    return {
        "large": random(150, 80),
        "small": 0.1 * random(60, 40, seed=1, kind="laplace"),
        "sparse": 0.5 * sparse,
        "bias": random(150, seed=4),
        "few": random(7, 9, seed=5),
        "number": torch.arange(100).view(10, 10),
        "mask": random(10, 10) > 0,
    }


def loss_of(state, found):
    """The slow twin: of each weight its tensor's relative error, and the mean over all weights."""
    each = []
    for n, q in found.items():
        w = state[n].double()
        relative = (q.values.double() - w).square().sum() / (w - w.mean()).square().sum()
        each.append(relative.expand(w.numel()))
    return torch.cat(each).mean().item()


def bits_of(found):
    count = sum(q.index.numel() for q in found.values())
    return sum(bits_per_weight(q.index) * q.index.numel() for q in found.values()) / count


@pytest.mark.parametrize("bits", [0.3, 1.0, 2.5, 4.0, 6.0])
def test_bits_are_met_within_a_hundredth(bits):
    assert 0.99 * bits <= bits_of(quantize_state(net(), bits=bits)) <= bits * 1.0005


@pytest.mark.parametrize("loss", [0.3, 0.05, 0.004, 1e-3])
def test_a_loss_is_met_within_a_fiftieth(loss):
    found = quantize_state(net(), loss=loss)
    assert list(found) == ["large", "small", "sparse"]
    assert 0.98 * loss <= loss_of(net(), found) <= 1.001 * loss


def test_by_default_nearly_nothing_is_lost():
    assert 0.0049 < loss_of(net(), quantize_state(net())) <= 0.00501


@pytest.mark.parametrize("size", [1500, 4000, 9000])
def test_a_file_is_at_most_as_large_as_asked_for_and_uses_it(size):
    state = net()
    made = len(encode(snapped(state, quantize_state(state, size_bytes=size))))
    assert 0.98 * size <= made <= size


def test_a_size_below_the_smallest_file_is_refused_by_its_number():
    with pytest.raises(ValueError, match=r"cannot be smaller than [\d,]+ bytes") as error:
        quantize_state(net(), size_bytes=100)
    least = int(str(error.value).split("than ")[1].split(" ")[0].replace(",", ""))
    made = len(encode(snapped(net(), quantize_state(net(), size_bytes=least))))
    assert made <= least


def test_more_bits_lose_less_and_fewer_values_are_left():
    state, network = net(), Network(net())
    found = [network.for_bits(bits) for bits in (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)]
    loss = [outcome.loss for outcome in found]
    lam = [outcome.lam for outcome in found]
    assert loss == sorted(loss)[::-1] and lam == sorted(lam)[::-1]
    values = [sum(len(b.values) for b in outcome.books) for outcome in found]
    assert values == sorted(values)
    quantized = [loss_of(state, network.quantized(outcome)) for outcome in found]
    assert quantized == pytest.approx(loss, rel=2e-3)


def test_a_gap_between_two_lambdas_is_met_from_its_coarser_side():
    # Percentiles of a trained layer: much of it still lies evenly in the range of its start.
    ends = torch.tensor([
        -719, -206, -142, -101, -72, -50, -34, -24, -20, -18, -15, -13, -11, -9, -7, -4, -2, 0, 2,
        4, 6, 8, 11, 14, 19, 29, 44, 63, 89, 120, 164, 231, 679,
    ]).double()  # fmt: skip
    at = torch.linspace(0, 32, 60_001).double()[:-1]
    w = torch.lerp(ends[at.long()], ends[at.long() + 1], at.frac()).float().view(300, 200)
    for bits in (3.5, 3.7):
        assert bits_of(quantize_state({"w": w}, bits=bits)) == pytest.approx(bits, rel=2e-3)


def test_even_weights_have_no_values_between_two_and_three_of_the_same_share():
    even = torch.linspace(-1.0, 1.0, 90_000).view(300, 300)
    assert bits_of(quantize_state({"w": even}, bits=1.3)) == pytest.approx(1.0, abs=1e-3)


def relative_errors(state, found):
    """The squared error of each tensor over its squares about the mean."""
    return [loss_of({n: state[n]}, {n: found[n]}) for n in state]


def test_the_scale_of_a_tensor_does_not_matter():
    state = {"wide": random(300, 100), "narrow": 0.25 * random(300, 100, seed=1)}
    found = quantize_state(state, bits=4.0)
    wide, narrow = (bits_per_weight(found[n].index) for n in state)
    assert wide == pytest.approx(narrow, abs=0.02)
    one, other = relative_errors(state, found)
    assert one == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize("asked", [{}, {"bits": 2.0}, {"loss": 0.05}])
def test_one_tensor_of_huge_numbers_changes_nothing_for_the_others(asked):
    state = net()
    found = quantize_state(state, **asked)
    for scale in (2.0**-40, 2.0**90):
        other = quantize_state(state | {"large": scale * state["large"]}, **asked)
        assert all(torch.equal(found[n].index, other[n].index) for n in ("small", "sparse"))
        # Only in what float16 values, where they reach, round away.
        assert (found["large"].index != other["large"].index).double().mean() < 0.002


def test_bits_go_where_they_matter():
    """A bit saves the same relative error everywhere: the error of a weight times their number."""
    state = {"large": random(1200, 500), "small": random(300, 200, seed=1)}
    found = quantize_state(state, bits=4.0)
    large, small = (bits_per_weight(found[n].index) for n in state)
    ratio = 10.0
    assert small - large == pytest.approx(0.5 * math.log2(ratio), abs=0.04)
    together = relative_errors(state, found)
    assert together[0] == pytest.approx(ratio * together[1], rel=0.1)
    alike = relative_errors(
        state, {n: quantize_state({n: w}, bits=4.0)[n] for n, w in state.items()}
    )
    assert sum(together) < 0.8 * sum(alike)


@pytest.mark.parametrize(
    ("kind", "product"), [("gauss", math.pi * math.e / 6), ("laplace", math.e**2 / 6)]
)
def test_scalar_quantisation_at_high_rates_is_as_good_as_it_can_be(kind, product):
    w = random(1000, 500, kind=kind)
    q = quantize_state({"w": w}, bits=4.5)["w"]
    found = loss_of({"w": w}, {"w": q}) * 4.0 ** bits_per_weight(q.index)
    assert found == pytest.approx(product, rel=0.02)


def test_the_assignment_is_the_maximum_a_posteriori_of_a_mixture():
    network = Network(net())
    outcome = network.for_bits(1.5)
    for matrix, book in zip(network.matrices, outcome.books, strict=True):
        mixture = book.mixture()
        w = network.state[matrix.names[0]].double() / matrix.unit
        theirs = mixture.mean[assign(mixture, w)]
        ours = network.quantized(outcome)[matrix.names[0]].values.double() / matrix.unit
        assert ((theirs - ours).abs() > 0.01 * mixture.std[0]).double().mean() < 2e-4


def test_tensors_of_few_values_stay_exact_while_they_are_cheap():
    values = torch.tensor([-0.31, 0.0, 0.123, 0.7])
    index = torch.randint(4, (60, 50), generator=torch.Generator().manual_seed(0))
    state = {"few": values[index], "many": random(80, 50)}
    for asked in ({}, {"loss": 0.05}, {"bits": 6.0}):
        found = quantize_state(state, **asked)
        assert torch.equal(found["few"].values, state["few"])
        assert len(found["few"].codebook) == 4
    alone = {"few": state["few"]}
    assert torch.equal(quantize_state(alone)["few"].values, state["few"])
    assert len(quantize_state(alone, bits=0.5)["few"].codebook) < 4
    assert len(quantize_state(alone, loss=0.2)["few"].codebook) < 4  # their 2 bits buy less loss
    assert 0.01 < loss_of(state, {"many": quantize_state(state, loss=0.05)["many"]}) <= 0.0501
    with_zero = quantize_state({"few": values.abs()[index] + 1.0}, zero=True)["few"]
    assert torch.equal(with_zero.values, values.abs()[index] + 1.0)


def test_tensors_that_stay_exact_count_in_bits_and_not_in_loss():
    values = torch.tensor([-0.31, 0.0, 0.123, 0.7])
    index = torch.randint(4, (60, 50), generator=torch.Generator().manual_seed(0))
    network = Network({"few": values[index], "many": random(80, 50)})
    found = network.for_loss(0.05)
    assert found.books[0] is None
    assert found.bits == pytest.approx(bits_of(network.quantized(found)), rel=1e-3)
    assert found.loss == pytest.approx(0.05, rel=0.01)


def test_the_network_of_a_quantised_network_is_itself():
    state = net()
    for asked in ({"bits": 1.5}, {"loss": 0.005}):
        once = snapped(state, quantize_state(state, **asked))
        again = snapped(once, quantize_state(once))
        assert all(torch.equal(once[n], again[n]) for n in once)


def test_exact_zeros_stay_zeros_where_there_are_many_and_where_one_asks():
    state = net()
    found = quantize_state(state, loss=0.05)["sparse"]
    assert (found.codebook == 0.0).any() and (found.values[state["sparse"] == 0.0] == 0.0).all()
    shifted = {"w": random(90, 60) + 0.3}
    assert not (quantize_state(shifted, loss=0.02)["w"].codebook == 0.0).any()
    assert (quantize_state(shifted, loss=0.02, zero=True)["w"].codebook == 0.0).any()


@pytest.mark.parametrize("far", [100.0, 1e5])
def test_one_giant_weight_is_not_clipped_and_costs_the_others_little(far):
    w = random(300, 200)
    plain = quantize_state({"w": w}, bits=3.0)["w"]
    w[17, 5] = far
    q = quantize_state({"w": w}, bits=3.0)["w"]
    assert q.values[17, 5].item() == pytest.approx(far, rel=1e-3)
    others = torch.ones_like(w, dtype=torch.bool)
    others[17, 5] = False
    error, before = ((x.values - w)[others].square().mean() for x in (q, plain))
    assert error < 1.02 * before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_come_back_in_their_type(dtype):
    w = random(90, 70).to(dtype)
    q = quantize_state({"w": w}, bits=3.0)["w"]
    assert q.values.dtype == q.codebook.dtype == dtype and q.values.shape == w.shape
    assert loss_of({"w": w}, {"w": q}) == pytest.approx(0.022, rel=0.1)
    made = len(encode({"w": q.values}))
    assert made == pytest.approx(bits_per_weight(q.index) * w.numel() / 8, rel=0.06, abs=60)
    if dtype.itemsize > 2:  # values are no finer than what they stand for
        assert torch.equal(q.codebook.half().to(dtype), q.codebook)


def test_bytes_as_floats_integers_and_short_tensors_pass_as_they_are():
    state = {
        "fp8": random(20, 20).to(torch.float8_e4m3fn),
        "int": torch.arange(400).view(20, 20),
        "flags": random(20, 20) > 0,
        "vector": random(500),
        "short": random(9, 7),
        "empty": torch.zeros(0, 9),
        "scalar": torch.tensor(3.0),
    }
    assert quantize_state(state) == quantize_state(state, bits=1.0) == {}
    assert "fp8" not in quantize_state(state, 4)


def test_tied_tensors_are_quantised_once():
    w = random(60, 50)
    for other in (w, w.clone()):
        found = quantize_state({"a": w, "b": random(60, 50, seed=1), "c": other}, bits=2.0)
        assert list(found) == ["a", "b", "c"]
        assert found["a"] is found["c"] and found["a"] is not found["b"]


def test_the_same_numbers_in_another_order_are_not_tied():
    w = random(60, 50).bfloat16()
    found = quantize_state({"a": w, "b": w.flip(0)}, bits=2.0)
    assert torch.equal(found["b"].values, found["a"].values.flip(0))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_all_weights_changes_nothing(scale):
    w = random(80, 60)
    unit = 2.0 ** round(math.log2(scale))
    one, other = (quantize_state({"w": w * u}, bits=2.0)["w"] for u in (1.0, unit))
    assert torch.equal(one.index, other.index) or scale < 1  # float16 values do not reach there
    assert torch.allclose(other.values / unit, one.values, rtol=2e-3, atol=1e-3)


odd = st.lists(
    st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-38]),
    min_size=1,
    max_size=12,
)


@given(odd, st.integers(0, 3), st.sampled_from([{}, {"bits": 1.0}, {"loss": 0.2}]))
def test_any_tensor_is_quantised_into_its_own_range(numbers, seed, asked):
    generator = torch.Generator().manual_seed(seed)
    w = torch.tensor(numbers)[torch.randint(len(numbers), (16, 16), generator=generator)]
    w = w * (1 + (seed % 2) * 1e-3 * torch.randn(16, 16, generator=generator))
    q = quantize_state({"w": w}, **asked)["w"]
    assert q.values.shape == w.shape and q.values.isfinite().all()
    assert q.codebook.diff().gt(0).all()
    reach = 1e-3 * w.abs().max()
    assert q.codebook.min() >= w.min() - reach and q.codebook.max() <= w.max() + reach
    if len(w.unique()) == 1:
        assert torch.equal(q.values, w)
    if asked == {}:
        assert loss_of({"w": w}, {"w": q}) <= 0.00501 or w.double().var(correction=0) == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bits": 2.0, "loss": 0.1}, "only one of .* got bits=2.0, loss=0.1"),
        ({"num_values": 4, "size_bytes": 10}, "only one of .* got num_values=4, size_bytes=10"),
        ({"bits": 0.0}, "bits must be above 0 and at most 16"),
        ({"bits": math.nan}, "bits must be above 0"),
        ({"loss": 1.0}, "from 1e-8 to below 1; got 1.0"),
        ({"size_bytes": 0}, "size_bytes must be at least 1"),
        ({"method": "kmeans"}, "go with num_values: pass num_values=16"),
        ({"strength": 2.0, "bits": 2.0}, "go with num_values"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        quantize_state(net(), **asked)


def test_weights_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match="w holds nan or inf"):
        quantize_state({"w": torch.full((9, 9), torch.inf)}, bits=2.0)


@pytest.mark.parametrize("loss", [0.05, 1e-5, 1e-8])
def test_an_index_looks_its_values_up_however_many_they_are(loss):
    state = net()
    network = Network(state)
    outcome = network.for_loss(loss)
    for name, q in network.quantized(outcome).items():
        assert torch.equal(q.codebook[q.index], q.values)
        narrow = network.quantized_tensor(outcome, name, state[name])
        assert torch.equal(narrow.values, q.values)
        assert narrow.index.element_size() == (1 if len(q.codebook) <= 128 else 2)
