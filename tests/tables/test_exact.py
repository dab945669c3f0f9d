"""Direct evaluation: its bound, its copies and its threads; what runs outside of torch.compile."""

import copy
import gc
import io
import math
import pickle
import threading
import weakref

import mpmath
import pytest
import torch

from swsmix import GaussianMixture, e_step, tables
from swsmix.em import HyperPrior, m_step_
from swsmix.tables import backends
from swsmix.tables.exact import ExactMixture, eager
from swsmix.tables.regions import decision_regions


def exactly(x, mixture):
    """f and f' at one number, with 80 digits."""
    with mpmath.workdps(80):
        x, parts = mpmath.mpf(x), [each.tolist() for each in mixture]
        joint = [
            mpmath.log(p / mpmath.mpf(s)) - ((x - m) / s) ** 2 / 2
            for p, m, s in zip(*parts, strict=True)
        ]
        top = max(joint)
        share = [mpmath.exp(each - top) for each in joint]
        total = mpmath.fsum(share)
        pulls = [(x - m) / mpmath.mpf(s) ** 2 for _, m, s in zip(*parts, strict=True)]
        f = mpmath.log(2 * mpmath.pi) / 2 - top - mpmath.log(total)
        a = (
            mpmath.fsum(g / mpmath.mpf(s) ** 2 for g, s in zip(share, parts[2], strict=True))
            / total
        )
        return (
            f,
            mpmath.fsum(g * v for g, v in zip(share, pulls, strict=True)) / total,
            mpmath.sqrt(a),
        )


def worst(mixture, w):
    """The worst errors of f and f' in units of the stated bounds."""
    direct = ExactMixture(*mixture)
    error, p = tables.direct(*mixture).error, direct.at(w)
    assert min(error) > 0.0
    value = slope = 0.0
    found = (w.tolist(), p.value.tolist(), p.gradient.tolist())
    for x, found_f, found_slope in zip(*found, strict=True):
        f, exact, root_a = exactly(x, mixture)
        value = max(value, float(abs(found_f - f) / (1 + abs(f)) / error.value))
        slope = max(slope, float(abs(found_slope - exact) / (abs(exact) + root_a) / error.gradient))
    return value, slope


@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_the_bound_of_the_direct_evaluation_holds_at_every_ratio_of_stds(exponent):
    ratio = 10.0**exponent
    mean, std = torch.tensor([0.0, 0.3, -0.7]).double(), torch.tensor([1.0, ratio, ratio]).double()
    near = torch.tensor([-40.0, -3.0, -1.0, 0.0, 1.0, 5.0, 40.0]).double()
    w = (mean[:, None] + std[:, None] * near).reshape(-1)
    value, slope = worst((torch.tensor([0.5, 0.3, 0.2]).double(), mean, std), w)
    assert value <= 1.0 and slope <= 1.0


def test_relative_to_the_widest_component_the_bound_would_not_hold():
    # What the direct evaluation did once: it loses (w - mu) / sigma of a narrow component.
    mean, std, w = 0.3, 1e-8, 0.3 + 3e-8
    by_widest = (0.0 - mean) / std + w * (1 / std - 1.0) + w
    exact = (mpmath.mpf(w) - mpmath.mpf(mean)) / mpmath.mpf(std)
    bound = ExactMixture(*(torch.tensor([x]).double() for x in (1.0, mean, std))).rounding
    assert abs(by_widest**2 - exact**2) / 2 > 10 * bound * (1 + exact**2 / 2)


@pytest.mark.parametrize("ratio", [1e-12, 1e-8, 1e-4])
def test_cells_keep_their_bounds_at_every_ratio_of_stds(ratio):
    mean = torch.tensor([0.0, 0.3, -0.7])
    mixture = torch.tensor([0.5, 0.3, 0.2]), mean, torch.tensor([1.0, ratio, ratio])
    table = tables.build(*mixture)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(60_000, generator=generator)
    w[:9] = torch.tensor([0.0, 0.3, -0.7, 0.3 + 2 * ratio, -0.7 - ratio, 0.299, 3.0, -1e4, 1e30])
    gradient = table.gradient(w)
    for i in range(30):
        _, exact, root_a = exactly(w[i].item(), [each.double() for each in mixture])
        assert abs(gradient[i].item() - exact) <= 1.01 * table.error.gradient * (
            abs(exact) + root_a
        )


def test_the_numbers_are_those_at_the_time_of_building():
    mixture = torch.ones(1).double(), torch.zeros(1).double(), torch.ones(1).double()
    table, w = tables.build(*mixture), torch.tensor([1.0, 2.0]).double()
    before = table.full(w)
    mixture[1].fill_(5.0)  # in place: float64 needs no conversion, which would copy it
    assert torch.equal(table.gradient(w), before.gradient)
    assert torch.equal(table.value(w), before.value)


def test_the_gpus_loops_get_three_numbers_per_component():
    mixing, mean, std = torch.tensor([[0.25, 0.75], [-1.0, 2.0], [0.5, 3.0]]).double()
    packed = ExactMixture(mixing, mean, std).packed
    torch.testing.assert_close(packed.view(2, 3), torch.stack([(mixing / std).log(), mean, std], 1))


def test_gradients_of_parameters_are_no_parts_of_a_graph():
    table = tables.direct(torch.ones(1), torch.zeros(1), torch.ones(1))
    w = torch.zeros(3, requires_grad=True)
    assert not table.full(w).gradient.requires_grad and not table.gradient(w).requires_grad


def test_caches_do_not_travel():
    k = 17
    table = tables.build(torch.full((k,), 1 / k), torch.linspace(-1, 1, k), torch.full((k,), 0.05))
    fresh, w = len(pickle.dumps(table)), torch.randn(100_000, generator=torch.Generator())
    expected = table.gradient(w)
    table.gradient(w.bfloat16()), table.error, table.value(w)
    assert len(pickle.dumps(table)) == fresh < 5_000
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.copy(table), copy.deepcopy(table), loaded):
        assert "cells" not in vars(other.passes) or other.passes is table.passes
        assert torch.equal(other.gradient(w), expected)


def work(table, mixture, w):
    """All that threads may do at the same time."""
    mine, leaf = mixture.plain_copy(), w.clone().requires_grad_()
    tables.neg_log_prior(leaf, mine.mixing, mine.mean, mine.std, table).backward()
    moments = e_step(mine, w, table)
    m_step_(mine, moments, HyperPrior())
    moved = w.clone()
    table.proximal_(moved, w, 1e-3, 1.0)
    claimed = decision_regions(mixture).assign(w)
    return [leaf.grad, moments.count, moments.second, mine.mean, mine.std, moved, claimed]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_threads_get_what_one_alone_gets(same, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(tables.backends, "numba_kernels", lambda: None)
    generator = torch.Generator().manual_seed(0)
    jobs = []
    for i in range(4):
        mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0 + (not same) * i], [0.1, 0.2]).float()
        table = tables.build(mixture.mixing, mixture.mean, mixture.std)
        table = jobs[0][0] if same and jobs else table
        jobs.append((table, mixture, torch.randn(40_000 + 1000 * i, generator=generator)))
    alone, together = [work(*job) for job in jobs], [[] for _ in jobs]

    def run(i):
        together[i].extend(work(*jobs[i]) for _ in range(3))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for expected, runs in zip(alone, together, strict=True):
        assert len(runs) == 3
        for found in runs:
            assert all(map(torch.equal, expected, found))


def test_a_threads_scratch_memory_ends_with_it():
    table = tables.build(torch.ones(1), torch.zeros(1), torch.ones(1))
    w, kept = torch.zeros(70_000), []
    with tables.uncompiled():
        table.gradient(w)

    def run():
        with tables.uncompiled():
            table.gradient(w)
            kept.append(weakref.ref(table.passes._scratch(w)))

    for _ in range(20):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    gc.collect()
    assert len(kept) == 20 and not any(each() for each in kept)


@pytest.mark.parametrize("std", [1e-300, 1e-12, 1.0, 1e12, 1e300])
def test_out_to_the_largest_float_nothing_is_nan(std):
    largest = torch.finfo(torch.float64).max
    w = torch.tensor([largest, -largest, 0.5 * largest, 5e-324, 0.0], dtype=torch.float64)
    mixture = (
        torch.tensor([0.25, 0.25, 0.5, 0.0], dtype=torch.float64),
        torch.tensor([-1.0, 0.0, 1.0, 0.0], dtype=torch.float64),
        torch.tensor([std, std, std, 1e300], dtype=torch.float64),
    )
    direct = tables.direct(*mixture)
    full = direct.full(w)
    assert not full.gradient.isnan().any() and not full.value.isnan()
    assert torch.equal(full.gradient, torch.cat([direct.gradient(each) for each in w.split(1)]))
    assert torch.equal(
        full.gradient[:3].sign(), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    )
    assert math.isclose(float(full.moments[0].sum()), len(w)) and full.moments[0][3] == 0


@pytest.mark.parametrize("called_before", [True, False])
def test_an_eager_function_is_never_traced(called_before):
    traced = []

    @eager
    def double(x):
        traced.append(torch.compiler.is_compiling())
        return 2 * x

    if called_before:
        double(torch.ones(3))
    x = torch.arange(3.0)
    compiled = torch.compile(lambda x: double(x + 1) - 1, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(x), 2 * (x + 1) - 1)
    assert traced == [False] * (2 + called_before)


def far_apart():
    """Weights at which pulls overflow, beside others; stds from 0.5e150 to 1e150."""
    mixture = torch.tensor(
        [[0.5, 0.25, 0.25], [0.0, 1e150, -1e150], [1e150, 0.5e150, 0.7e150]], dtype=torch.float64
    )
    w = torch.tensor([1e305, 0.0, -3e305, 1e150, 1e308, 5e149], dtype=torch.float64)
    return ExactMixture(*mixture), w


def test_weights_whose_pulls_overflow_are_mended_beside_others_that_do_not():
    mixture, w = far_apart()
    together = mixture.at(w)
    for i, one in enumerate(w.split(1)):
        for whole, alone in zip(together, mixture.at(one), strict=True):
            torch.testing.assert_close(whole[i], alone[0], rtol=1e-14, atol=0.0)


def test_a_pull_that_overflows_is_that_of_the_responsible_component_alone():
    mixture, w = far_apart()
    for i in (0, 2, 4):  # far out the widest component has all
        pull = float(w[i]) / 1e150 / 1e150
        assert math.isclose(float(mixture.at(w[i : i + 1]).gradient), pull, rel_tol=1e-12)


def test_a_copy_of_an_exact_mixture_is_the_mixture_alone():
    mixture = ExactMixture(*torch.rand(3, 5, dtype=torch.float64))
    fresh = len(pickle.dumps(mixture))
    assert mixture.rounding > 0 and mixture.packed.numel() == 15  # both are cached
    loaded = pickle.loads(pickle.dumps(mixture))
    assert len(pickle.dumps(mixture)) == fresh
    for other in (loaded, copy.copy(mixture), copy.deepcopy(mixture)):
        assert not {"rounding", "packed"} & set(vars(other))
        for name in ("mixing", "mean", "std", "level", "precision"):
            assert torch.equal(getattr(other, name), getattr(mixture, name))


def test_the_noise_of_bends_bounds_what_rounding_makes_of_a_difference_of_squares():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        mixing, mean, std = torch.randn(3, 6, generator=generator, dtype=torch.float64)
        mixture = ExactMixture(mixing.softmax(0), mean, (2 * std).exp())
        w = torch.randn(60, generator=generator, dtype=torch.float64)
        w = w * torch.tensor([5.0, 5e2, 5e4], dtype=torch.float64).repeat(20)  # far out too
        p = mixture.at(w)
        z = (w[:, None] - mixture.mean) / mixture.std
        nearest = z.gather(1, p.log_gamma.argmax(1, keepdim=True))
        least = 2.0**-50 * (0.5 * (z.square() - nearest.square()).abs() + mixture.levels)
        assert (least * (1 - 1e-9) <= mixture.around(w).noise.T).all()


def test_sums_of_weights_far_from_all_components_join_those_of_the_others(monkeypatch):
    exactly, sums = [], ExactMixture._sums
    monkeypatch.setattr(
        ExactMixture,
        "_sums",
        lambda self, w, *a, **k: exactly.append(len(w)) or sums(self, w, *a, **k),
    )
    mixture = ExactMixture(
        *torch.tensor([[0.5, 0.5], [0.0, 1.0], [1e-3, 2e-3]], dtype=torch.float64)
    )
    near = torch.cat([torch.linspace(-3e-3, 3e-3, 90), 1.0 + torch.linspace(-5e-3, 5e-3, 100)])
    w = torch.cat([near, torch.tensor([0.4, -7.0, 30.0])]).double()[torch.arange(193) * 7 % 193]
    value, moments = mixture.sums(w)
    if backends.is_compiled():
        assert exactly == [3]
    with backends.uncompiled():
        expected, others = mixture.sums(w)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(moments, others, rtol=1e-11, atol=1e-15)
    with pytest.raises(ValueError, match="got 2 infinite or NaN ones among 193"):
        mixture.sums(torch.where(w > 5.0, math.nan, torch.where(w < -5.0, -math.inf, w)))
