"""The tables agree with a slow twin in float64, within the error that they report."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabulated import MIXTURES, every_mixture, excess, twin, weights_of

from swsmix import tables
from swsmix.tables.cells import refinement_for
from swsmix.tables.taylor import ORDER, Intervals


def test_the_gpus_kernels_keep_these_laws_and_those_of_their_histogram():
    pytest.importorskip("triton")
    # The interpreter of triton 3.2 calls what numpy deprecates.
    ignored = ["-W", "ignore::RuntimeWarning", "-W", "ignore::DeprecationWarning"]
    laws = "gradient_is_within or (proximal and not 1e-06) or (nan_gradients and not inf)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *ignored]
    command += ["-k", f"triton and ({laws}) or test_gpu"]
    files = "test_gpu_histogram.py", "test_gpu_cutting.py"
    done = subprocess.run(
        [*command, __file__, *map(Path(__file__).with_name, files)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"{2 * len(MIXTURES) + 2 + 4 * 4 + 23} passed" in done.stdout


@every_mixture
def test_gradient_is_within_the_reported_bound_of_the_twin(mixture, loops):
    table, w = tables.build(*mixture), weights_of(mixture)
    _, exact, curvature, _ = twin(w, *mixture)
    assert excess(table.gradient(w), exact, curvature) <= table.error.gradient <= 1e-5
    near = w.abs() < 10
    assert (table.gradient(w).double() - exact)[near].norm() <= 1e-5 * exact[near].norm()


@every_mixture
def test_value_is_within_the_reported_bound_of_the_twin(mixture, loops):
    table, weights = tables.build(*mixture), weights_of(mixture)
    for w in (weights, weights[1400:]):  # without the huge ones, whose f exceeds the rest
        exact, *_ = twin(w, *mixture)
        error = abs(float(table.value(w) - exact.sum()))
        assert error <= table.error.value * float((1 + exact.abs()).sum()) + 1e-12 * float(
            exact.abs().sum()
        )
    assert table.error.value <= 1e-5


@every_mixture
def test_moments_agree_with_the_twin(mixture, loops):
    mixing, mean, std = mixture
    w = weights_of(mixture)[1400:]
    exact = twin(w, *mixture)[3]
    moments = torch.stack([*tables.build(*mixture).moments(w)])
    count = exact[0].clamp_min(1e-6)
    for n, tolerance in enumerate((5e-6, 5e-6, 2e-5)):
        error = (moments[n] - exact[n]).abs() / (count * std.double() ** n + exact[n].abs())
        assert float(error.max()) <= tolerance


def test_moments_of_a_narrow_component_are_those_of_its_weights():
    generator = torch.Generator().manual_seed(0)
    w = 0.5 + 1e-4 * torch.randn(400_000, generator=generator)
    mixing, mean, std = (
        torch.tensor([0.9, 0.1]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([1e-4, 0.3]),
    )
    exact = twin(w, mixing, mean, std)[3]
    moments = torch.stack([*tables.build(mixing, mean, std).moments(w)])
    assert torch.allclose(moments, exact, rtol=2e-6, atol=1e-10)


@every_mixture
def test_curvature_is_within_the_reported_bound_of_the_twin(mixture):
    table, w = tables.build(*mixture), weights_of(mixture)[1400:]
    _, _, exact, _ = twin(w, *mixture)
    # w <- w + t (-f') / (1 + t a) from at = w; with t -> infinity, what is left is f' / a.
    ratio = w.double() - table_limit(table, w)
    _, gradient, _, _ = twin(w, *mixture)
    bound = (table.error.curvature + 1e-6) * (gradient / exact).abs()
    bound += table.error.gradient * (gradient.abs() + exact.sqrt()) / exact + 3e-7 * w.abs()
    assert bool(((ratio - gradient / exact).abs() <= 1.01 * bound).all())


def table_limit(table, w):
    """The proximal step with an endless step size: w - f' / a."""
    out = w.clone()
    table.proximal_(out, w, 1e12, 1.0)
    return out.double()


@every_mixture
def test_every_mixture_fits_into_a_table(mixture):
    table = tables.build(*mixture)
    assert table.error != tables.direct(*mixture).error
    assert table.error.curvature < 0.01  # of a, which scales the proximal step


@every_mixture
def test_full_is_value_gradient_and_moments(mixture, loops):
    table, w = tables.build(*mixture), weights_of(mixture)
    full = table.full(w)
    assert torch.equal(full.value, table.value(w))
    assert torch.equal(full.gradient, table.gradient(w))
    assert all(torch.equal(a, b) for a, b in zip(full.moments, table.moments(w), strict=True))
    value, gradient = table.value_and_gradient(w)
    assert torch.equal(value, full.value) and torch.equal(gradient, full.gradient)


@every_mixture
@pytest.mark.parametrize("step", [1e-6, 1.0])
def test_proximal_step_agrees_with_the_twin(mixture, step, loops):
    mixing, mean, std = (each.double() for each in mixture)
    at = weights_of(mixture)[1400:]
    w = at + 1e-3 * torch.randn(len(at), generator=torch.Generator().manual_seed(3))
    _, gradient, a, _ = twin(at, *mixture)
    # b = a at - f', written so that it does not cancel: b = sum gamma mu / sigma^2.
    exact = (w.double() + step * (a * at.double() - gradient)) / (1 + step * a)
    move = step * (a * (at - w).abs() + gradient.abs()) / (1 + step * a)  # without cancellation
    floor = 1e-5 * step * (gradient.abs() + a.sqrt()) / (1 + step * a)  # the gradient's tolerance
    out = w.clone()
    tables.build(*mixture).proximal_(out, at, step * 2, 0.5)
    error, rounding = (out.double() - exact).abs(), 3e-7 * (w.abs() + at.abs())
    assert bool((error <= 1e-3 * move + floor + rounding).all())
    each = w.clone()
    adaptive = tables.Adaptive(torch.full_like(at, 0.25), rate=step, eps=0.5)
    tables.build(*mixture).proximal_(each, at, adaptive, 1.0)
    assert torch.allclose(each, out, rtol=1e-6, atol=1e-9)


def components(k):
    real = st.floats(-1, 1, width=32)
    return st.tuples(
        st.lists(st.floats(0, 12), min_size=k, max_size=k),
        st.lists(real, min_size=k, max_size=k),
        st.lists(st.floats(-4, 0), min_size=k, max_size=k),
    )


@given(st.integers(1, 8).flatmap(components), st.integers(0, 2**32 - 1))
def test_no_mixture_and_no_weight_break_the_reported_bound(parts, seed):
    rarity, mean, log_std = (torch.tensor(each) for each in parts)
    mixture = (10**-rarity) / (10**-rarity).sum(), mean, 10**log_std
    table, w = tables.build(*mixture), weights_of(mixture, seed=seed)
    # Floats one by one across a place where two components meet.
    meeting = ((mean.min() + mean.max()) / 2).view(torch.int32) + torch.arange(
        -500, 500, dtype=torch.int32
    )
    w[:1000] = meeting.view(torch.float32).nan_to_num(0.0).clamp(-1e3, 1e3)
    value, gradient, curvature, _ = twin(w, *mixture)
    assert excess(table.gradient(w), gradient, curvature) <= table.error.gradient <= 1e-5
    bound = (table.error.value + 1e-12) * float((1 + value.abs()).sum())
    assert abs(float(table.value(w) - value.sum())) <= bound


def test_coarser_cells_than_claimed_exceed_the_bound():
    mixture = MIXTURES["spiked"]
    honest = tables.build(*mixture)
    coarse = tables.build(*mixture, tolerance=1e-3)
    w = weights_of(mixture)
    _, exact, curvature, _ = twin(w, *mixture)
    assert excess(coarse.gradient(w), exact, curvature) > 5 * honest.error.gradient
    assert excess(coarse.gradient(w), exact, curvature) <= coarse.error.gradient <= 1e-3


def test_a_spike_between_all_the_first_nodes_is_found():
    mixing, mean = torch.tensor([0.99, 0.01]), torch.tensor([0.0, 0.3])
    mixture = mixing, mean, torch.tensor([0.3, 1e-5])
    w = 0.3 + 1e-5 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    _, exact, curvature, _ = twin(w, *mixture)
    assert exact.abs().max() > 1e4  # the spike is there
    table = tables.build(*mixture)
    assert excess(table.gradient(w), exact, curvature) <= table.error.gradient


@every_mixture
def test_tails_are_exact_where_f_is_finite(mixture):
    far = torch.tensor([1e3, -1e3, 1e18, -1e18])
    for w in (far, far.repeat(17_000)):
        value, gradient = tables.build(*mixture).value_and_gradient(w)
        # Far out one component is left, the widest; among equals the outermost.
        mixing, mean, std = (each.double()[mixture[0] > 0] for each in mixture)
        widest = std == std.max()
        for i in range(4):
            j = (mean[widest] * far[i].sign()).argmax()
            expected = (far[i].double() - mean[widest][j]) / std.max() ** 2
            assert torch.allclose(gradient[i].double(), expected, rtol=1e-6)
        exact = twin(w, *mixture)[0].sum()
        assert torch.allclose(value, exact, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [10, 200_000])
def test_bad_weights_have_nan_gradients_and_are_refused_in_sums(bad, n, loops):
    table = tables.build(*MIXTURES["typical"])
    w = torch.zeros(n)
    w[3] = w[5] = bad
    gradient = table.gradient(w)
    assert gradient.isnan().nonzero().flatten().tolist() == [3, 5]
    for call in (table.value, table.moments, table.full):
        with pytest.raises(ValueError, match="2 infinite or NaN"):
            call(w)
    with pytest.raises(ValueError, match="2 infinite or NaN"):
        table.value(w.bfloat16())


def test_direct_agrees_with_the_twin():
    mixture = MIXTURES["hard"]
    table, w = tables.direct(*mixture), weights_of(mixture)[1400:]
    value, gradient, _, moments = twin(w, *mixture)
    full = table.full(w.double())
    assert torch.allclose(full.value, value.sum(), rtol=1e-12)
    assert torch.allclose(full.gradient, gradient, rtol=1e-7, atol=1e-6)
    assert torch.allclose(torch.stack([*full.moments]), moments, rtol=1e-9, atol=1e-12)
    assert torch.equal(table.gradient(w), full.gradient.float())  # no cells for float32 either


@pytest.mark.parametrize("std", [1e-80, 1e80])
def test_mixtures_beyond_what_cells_can_bound_are_evaluated_exactly(std):
    mixture = (
        torch.ones(2).double() / 2,
        torch.tensor([0.0, std], dtype=torch.float64),
        torch.tensor([std, std], dtype=torch.float64),
    )
    w = torch.randn(70_000, generator=torch.Generator().manual_seed(0))
    table = tables.build(*mixture)
    assert torch.equal(table.gradient(w), tables.direct(*mixture).gradient(w))
    assert table.error == tables.direct(*mixture).error


def test_an_uncertified_interval_has_one_part():
    """Its bounds are infinite; more parts would be cells without a bound."""
    rest = torch.tensor([0.0, 1e-9, math.inf, math.inf], dtype=torch.float64)
    taylor = torch.ones(ORDER + 1, 4, dtype=torch.float64)
    taylor[:, 3] = math.nan
    one, floor = torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 1.0, 1.0, 0.0])
    parts = refinement_for(Intervals(*[one] * 6, taylor, rest, one, floor, one, one), 1e-6).parts
    assert torch.equal(parts[2:], torch.zeros(2, dtype=torch.float64))
    assert (parts[:2] > 0).all() and parts.isfinite().all()


@pytest.mark.parametrize("std", [0.9e-18, 1.1e18])
def test_stds_whose_powers_no_bound_can_hold_have_no_cells(std):
    mixture = torch.tensor([[0.5, 0.5], [0.0, 0.1], [1.0, std]], dtype=torch.float64)
    passes = tables.build(*mixture).passes
    assert passes.cells is None


def test_the_proximal_step_is_finite_where_the_curvature_leaves_float32():
    w = 1e-3 * torch.randn(200_000)
    table = tables.build(torch.tensor([0.5, 0.5]), torch.zeros(2), torch.tensor([1.0, 1e-20]))
    table.proximal_(w, w.clone(), 1e-3, 1e-3)
    assert w.isfinite().all()
