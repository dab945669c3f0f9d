import cases
import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from swsmix import GaussianMixture, initial_mixture

MIXTURES = cases.mixtures()


def parts(mixture):
    return [t.tolist() for t in (mixture.mixing, mixture.mean, mixture.std)]


@pytest.mark.parametrize("name", sorted(set(MIXTURES) - {"dead component"}))
def test_log_prob_and_responsibilities_agree_with_their_twins(name):
    mixture, w = MIXTURES[name], cases.weights()
    expected = reference.responsibilities(w.tolist(), *parts(mixture))
    np.testing.assert_allclose(mixture.responsibilities(w), expected, atol=1e-12, rtol=0)
    inside = (mixture.log_prob(w) > -600).numpy()  # where density space does not underflow
    np.testing.assert_allclose(
        mixture.log_prob(w)[inside],
        reference.log_prob(w.numpy()[inside], *parts(mixture)),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", MIXTURES)
def test_log_prob_agrees_with_torch_distributions(name):
    mixture, w = MIXTURES[name], cases.weights()
    if name == "dead component":
        with pytest.raises(AssertionError):  # torch's twin clamps a proportion of 0 to 1e-16
            far = torch.tensor([30.0], dtype=torch.float64)
            torch.testing.assert_close(mixture.log_prob(far), mixture.distribution().log_prob(far))
        return
    torch.testing.assert_close(
        mixture.log_prob(w), mixture.distribution().log_prob(w), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", MIXTURES)
def test_the_joint_densities_add_up_and_shapes_do_not_matter(name):
    mixture, w = MIXTURES[name], cases.weights()[:12]
    value, gamma = mixture.log_prob(w), mixture.responsibilities(w)
    torch.testing.assert_close(mixture.log_joint(w).logsumexp(-1), value, rtol=1e-12, atol=1e-12)
    for shape in ((12,), (3, 4), (2, 1, 6)):
        assert torch.equal(mixture.log_prob(w.view(shape)), value.view(shape))
        assert torch.equal(mixture.responsibilities(w.view(shape)), gamma.view(*shape, -1))
    assert torch.equal(mixture.responsibilities(w[0]), gamma[0])


def test_the_distance_of_the_largest_floats_of_both_signs_counts_in_full():
    largest = torch.finfo(torch.float64).max
    mixture = GaussianMixture(*torch.tensor([[1.0], [-largest], [1e200]], dtype=torch.float64))
    z = 2.0 * (largest / 1e200)
    found = mixture.log_prob(torch.tensor([largest], dtype=torch.float64))
    assert found.item() == pytest.approx(-0.5 * z * z, rel=1e-12)


@given(w=st.floats(-1e18, 1e18), name=st.sampled_from(sorted(MIXTURES)))
def test_responsibilities_sum_to_one_wherever_the_weight_is(w, name):
    gamma = MIXTURES[name].responsibilities(torch.tensor([w], dtype=torch.float64))
    assert torch.isfinite(gamma).all() and (gamma >= 0).all()
    assert abs(gamma.sum().item() - 1.0) < 1e-12


def test_log_prob_is_exact_where_the_density_underflows():
    mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [1e-3, 1e-3])
    w = torch.tensor([100.0], dtype=torch.float64)
    # Only the nearer component counts: log(1/2) - log(sigma) - log(2 pi)/2 - z^2/2.
    expected = np.log(0.5) - np.log(1e-3) - 0.5 * np.log(2 * np.pi) - 0.5 * (99.0 / 1e-3) ** 2
    assert mixture.log_prob(w).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", ["typical", "wide"])
def test_the_density_integrates_to_one(name):
    mixture = MIXTURES[name]
    x = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    assert torch.trapezoid(mixture.log_prob(x).exp(), x).item() == pytest.approx(1.0, abs=1e-9)


def test_samples_come_from_the_mixture():
    mixture = MIXTURES["typical"]
    draws = mixture.sample(200_000, generator=torch.Generator().manual_seed(1))
    mean = (mixture.mixing * mixture.mean).sum()
    second = (mixture.mixing * (mixture.std**2 + mixture.mean**2)).sum()
    assert draws.mean().item() == pytest.approx(mean.item(), abs=3e-3)
    assert draws.square().mean().item() == pytest.approx(second.item(), rel=2e-2)


def test_a_fixed_zero_mixing_is_stored_to_the_last_bit_in_both_modes():
    w = cases.weights().float()
    mixture = initial_mixture(w, 4, zero=True, zero_mixing=0.9)
    assert mixture.mixing[0] == torch.tensor(0.9)
    mixture.trainable_()
    assert mixture.mixing[0] == torch.tensor(0.9) and mixture.mean[0] == 0.0


def test_trainable_keeps_the_density_and_moves_only_what_is_free():
    w = cases.weights()
    mixture = initial_mixture(w, 4, zero=True, zero_mixing=0.5)
    before = mixture.log_prob(w)
    pinned = mixture.mixing[0].item(), mixture.mean[0].item()
    mixture.trainable_()
    torch.testing.assert_close(mixture.log_prob(w), before, rtol=1e-12, atol=1e-12)
    optimizer = torch.optim.SGD(mixture.parameters(), lr=1e-4, weight_decay=0.1)
    (-mixture.log_prob(w).sum()).backward()
    optimizer.step()
    assert (mixture.mixing[0].item(), mixture.mean[0].item()) == pinned
    assert mixture.mixing.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (mixture.log_prob(w).sum() > before.sum()).item()


def test_state_dicts_load_with_weights_only_in_both_modes(tmp_path):
    for trainable in (False, True):
        mixture = initial_mixture(cases.weights(), 4, zero=True)
        other = initial_mixture(cases.weights(seed=1), 4, zero=True)
        if trainable:
            mixture.trainable_()
            other.trainable_()
        torch.save(mixture.state_dict(), tmp_path / "m.pt")
        other.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
        assert torch.equal(mixture.mean, other.mean) and torch.equal(mixture.std, other.std)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.5], [0.0], [1.0, 1.0]), "one shape"),
        (([], [], []), "k >= 1"),
        (([0.5, 0.4], [0.0, 1.0], [1.0, 1.0]), "sums to 0.9"),
        (([1.5, -0.5], [0.0, 1.0], [1.0, 1.0]), "non-negative"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, 0.0]), "std must be positive"),
        (([0.5, 0.5], [0.0, float("nan")], [1.0, 1.0]), "mean must be finite"),
    ],
)
def test_impossible_mixtures_are_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_integer_tensors_are_taken_as_real_numbers():
    mixture = GaussianMixture([0.5, 0.5], torch.tensor([0, 1]), [0.7, 1.5])
    assert mixture.mean.dtype == torch.float64 and mixture.std.tolist() == [0.7, 1.5]
    promoted = GaussianMixture(torch.ones(1), torch.zeros(1).double(), [1.0])
    assert promoted.mixing.dtype == torch.float64


def test_trainable_twice_is_trainable_once():
    mixture = MIXTURES["typical"].plain_copy().trainable_()
    assert mixture.trainable_() is mixture and len(list(mixture.parameters())) == 3
    assert not mixture.plain_copy().is_trainable


def test_stds_are_cut_to_a_cap_and_raised_to_a_floor_but_for_pinned_ones():
    pins = {"pinned_std": [False, False, False, True]}
    mixture = GaussianMixture([0.25] * 4, [0.0] * 4, [1.0, 0.3, 0.01, 5.0], **pins)
    mixture.cap_std_(0.5, floor=0.2)
    assert mixture.std.tolist() == [0.5, 0.3, 0.2, 5.0]
    version = mixture.std._version
    mixture.cap_std_(0.5)  # changes nothing, so that tables stay good
    assert mixture.std._version == version
    with pytest.raises(ValueError, match="floor of the stds"):
        mixture.cap_std_(0.5, floor=0.6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [1e-12, 1.0, 1e12])
def test_responsibilities_hold_out_to_the_largest_float(dtype, std):
    largest = torch.finfo(dtype).max
    w = torch.tensor([largest, -largest, 1e-30, 0.5], dtype=dtype)
    mixture = GaussianMixture(
        torch.full((3,), 1 / 3, dtype=dtype),
        torch.tensor([-1.0, 0.0, 1.0], dtype=dtype),
        torch.tensor([std, std, std], dtype=dtype),
    )
    gamma = mixture.responsibilities(w)
    assert gamma.dtype == dtype and torch.allclose(gamma.sum(-1), torch.ones(4, dtype=dtype))
    assert gamma[0].argmax() == 2 and gamma[1].argmax() == 0  # the nearer one, of equal stds
    wide = GaussianMixture([0.5, 0.5], [0.0, 0.0], [std, 2.0 * std]).to(dtype)
    assert wide.responsibilities(w)[:2].argmax(-1).tolist() == [1, 1]


def test_log_prob_is_finite_where_the_truth_is():
    w = torch.tensor([3e38, 2.4e19])
    mixture = GaussianMixture(torch.tensor([1.0]), torch.tensor([-3e38]), torch.tensor([1e30]))
    near = GaussianMixture(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    assert torch.isclose(mixture.log_prob(w)[0], torch.tensor(-1.8e17), rtol=1e-5)
    assert torch.isclose(near.log_prob(w)[1], torch.tensor(-2.88e38), rtol=1e-5)


@pytest.mark.parametrize(("zero", "zero_mixing"), [(False, None), (True, None), (True, 0.5)])
def test_only_what_is_asked_for_is_pinned_and_print_says_it(zero, zero_mixing):
    w = torch.linspace(-1.0, 1.0, 30)
    mixture = initial_mixture(w, 3, zero=zero, zero_mixing=zero_mixing)
    assert mixture.pinned_mean.tolist() == [zero, False, False]
    assert mixture.pinned_mixing.tolist() == [zero_mixing is not None, False, False]
    assert not mixture.pinned_std.any() and mixture.num_components == 3
    pins = f"pinned_mixing={int(zero_mixing is not None)}, pinned_mean={int(zero)}"
    assert f"num_components=3, {pins}" in repr(mixture)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("std", [0.002, 0.5, 100.0])
def test_gradients_hold_out_to_the_largest_float(dtype, std):
    largest = torch.finfo(dtype).max
    w = torch.tensor([largest, -largest, 0.5 * largest], dtype=dtype, requires_grad=True)
    mixture = GaussianMixture([0.25, 0.5, 0.25, 0.0], [-1.0, 0.0, 1.0, 9.0], [std] * 3 + [1e3])
    mixture.to(dtype)
    value = mixture.log_prob(w)
    (found,) = torch.autograd.grad(value.sum(), w, retain_graph=True)
    # One component is left, the outermost: its z is w / std, beyond rounding.
    mean, std = (t[[2, 0, 2]].double() for t in (mixture.mean, mixture.std))
    exact = -((w.detach().double() - mean) / std / std)
    exact = torch.where(exact.isinf(), exact, exact.to(dtype).double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0.0)
    assert not value.isnan().any() and (value < 0).all()
    gamma = mixture.responsibilities(w)
    assert (torch.autograd.grad(gamma[:, 0].sum(), w)[0].abs() < 1e-5).all()  # not nan


def test_derivatives_of_the_log_density_are_right_twice():
    mixture = MIXTURES["typical"].plain_copy().trainable_()
    parameters = list(mixture.parameters())
    w = torch.tensor([-0.4, 0.02, 0.3, 60.0], dtype=torch.float64, requires_grad=True)

    def log_prob(w, *values):
        names = [name for name, _ in mixture.named_parameters()]
        found = torch.func.functional_call(
            _LogProb(mixture), {f"mixture.{n}": v for n, v in zip(names, values, strict=True)}, w
        )
        return found

    assert torch.autograd.gradcheck(log_prob, (w, *parameters))
    assert torch.autograd.gradgradcheck(log_prob, (w[:3], *parameters), eps=1e-7, rtol=1e-3)


class _LogProb(torch.nn.Module):
    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, w):
        return self.mixture.log_prob(w)


def test_a_proportion_of_zero_has_no_gradient_and_no_nan():
    mixing = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    mixture = GaussianMixture(mixing, [0.0, 1.0, 2.0], [0.1, 0.2, 0.3])
    mixture.mixing.requires_grad_()
    for value in (mixture.log_prob, lambda w: mixture.responsibilities(w)[:, 0]):
        (slope,) = torch.autograd.grad(value(cases.weights()).sum(), mixture.mixing)
        assert slope.isfinite().all() and slope[2] == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [3, 7, 300])
def test_what_16_bits_rounded_sums_to_one_again(dtype, k):
    mixing = torch.full((k,), 1 / k, dtype=dtype)
    assert mixing.double().sum() != 1.0
    mixture = GaussianMixture(mixing, torch.linspace(-1, 1, k), torch.ones(k))
    assert mixture.mixing.dtype == torch.float32
    assert mixture.mixing.double().sum().item() == pytest.approx(1.0, abs=1e-6)
    pinned = torch.arange(k) == 0
    mixture = GaussianMixture(mixing, torch.zeros(k), torch.ones(k), pinned_mixing=pinned)
    assert mixture.mixing[0] == mixing[0]
    assert mixture.mixing.double().sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_rounding_does_not_explain_is_refused(dtype):
    with pytest.raises(ValueError, match="divide it by its sum"):
        GaussianMixture(torch.tensor([0.5, 0.47], dtype=dtype), torch.zeros(2), torch.ones(2))
