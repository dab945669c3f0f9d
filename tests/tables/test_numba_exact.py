"""The compiled evaluation of few weights agrees with the one in torch to rounding."""

import math

import pytest
import torch
from tabulated import MIXTURES, every_mixture, weights_of

from swsmix import tables
from swsmix.tables import backends
from swsmix.tables.exact import ExactMixture
from swsmix.tables.passes import Passes

pytest.importorskip("numba")
SIZES = [1, 63, 64, 65, 300]


def both(call):
    with tables.uncompiled():
        plain = call()
    return call(), plain


@every_mixture
@pytest.mark.parametrize("n", SIZES)
def test_slopes_are_those_of_torch(mixture, n):
    exact, w = ExactMixture(*mixture), weights_of(mixture, 400)[-n:]
    (slope, a), (plain, plain_a) = both(lambda: exact.slopes(w))
    assert torch.all((slope - plain).abs() <= 1e-13 * (plain.abs() + plain_a.sqrt()))
    assert torch.allclose(a, plain_a, rtol=1e-13, atol=0.0)


@every_mixture
@pytest.mark.parametrize("n", SIZES)
def test_sums_are_those_of_torch(mixture, n):
    exact, w = ExactMixture(*mixture), weights_of(mixture, 400)[-n:]
    w = w.double()
    (value, moments), (plain, plain_moments) = both(lambda: exact.sums(w))
    assert torch.allclose(value, plain, rtol=1e-12, atol=1e-12)
    assert torch.allclose(moments, plain_moments, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["typical", "hard", "dead"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25, -3e38])
def test_what_it_leaves_out_is_evaluated_by_torch(name, bad):
    exact, w = ExactMixture(*MIXTURES[name]), weights_of(MIXTURES[name], 100)
    w[37] = bad
    (slope, a), (plain, plain_a) = both(lambda: exact.slopes(w))
    assert torch.equal(slope.isnan(), plain.isnan())
    assert torch.allclose(slope, plain, rtol=1e-12, atol=1e-9, equal_nan=True)
    assert torch.allclose(a, plain_a, rtol=1e-12, equal_nan=True)
    table = tables.build(*MIXTURES[name])
    moved = both(lambda: moved_from(w, table))
    assert torch.allclose(*moved, rtol=1e-6, equal_nan=True)
    if math.isfinite(bad):
        assert torch.allclose(*(value for value, _ in both(lambda: exact.sums(w))), rtol=1e-12)
    else:
        with pytest.raises(ValueError, match="1 infinite or NaN ones among 100"):
            exact.sums(w)


def moved_from(at, table):
    w = at + 0.01
    table.proximal_(w, at, tables.Adaptive(torch.full_like(w, 1e-4), 1e-3, 1e-8), 1e-2)
    return w


def test_several_tensors_move_as_each_does_by_itself():
    table = tables.build(*MIXTURES["hard"])
    parts = [weights_of(MIXTURES["hard"], n).view(shape) for n, shape in ((6, (2, 3)), (90, (90,)))]
    parts.append(torch.randn(4, 8, dtype=torch.float64).T)
    moved = [w.clone() for w in parts]
    steps = [0.5, tables.Adaptive(torch.rand(90), 1e-3, 1e-8), 0.25]
    alone = [w.clone() for w in parts]
    for w, step in zip(alone, steps, strict=True):
        table.proximal_(w, w + 0.0, step, 1e-3)

    def together():
        copies = [w.clone() for w in moved]
        each = list(zip(copies, [w + 0.0 for w in moved], steps, strict=True))
        tables.proximal_each_([(table, each, 1e-3)])
        return copies

    for compiled, plain, one in zip(*both(together), alone, strict=True):
        assert torch.equal(compiled, one)
        assert torch.allclose(plain, one, rtol=1e-6)


def test_several_gradients_are_added_as_each_is_by_itself():
    table = tables.build(*MIXTURES["hard"])
    parts = [weights_of(MIXTURES["hard"], n).view(shape) for n, shape in ((6, (2, 3)), (90, (90,)))]
    parts += [torch.randn(4, 8, dtype=torch.float64).T, torch.randn(8, 20)[:, ::2]]
    parts.append(torch.randn(3, 4).bfloat16())
    alone = [torch.ones_like(w) for w in parts]
    for grad, w in zip(alone, parts, strict=True):
        table.add_gradient_(grad, w, 0.5)

    def together():
        grads = [torch.ones_like(w) for w in parts]
        tables.add_gradient_each_([(table, list(zip(grads, parts, strict=True)), 0.5)])
        return grads

    for compiled, plain, one in zip(*both(together), alone, strict=True):
        rtol = 1e-2 if one.dtype == torch.bfloat16 else 1e-6
        assert torch.allclose(compiled, one, rtol=rtol) and torch.allclose(plain, one, rtol=rtol)


def test_tensors_of_several_mixtures_move_as_each_does_by_itself_in_one_call(monkeypatch):
    numba, calls = backends.numba_together(), []
    for name in ("_add_gradient_each", "_proximal_each"):
        loop = getattr(numba, name)
        monkeypatch.setattr(numba, name, lambda *a, loop=loop: calls.append(0) or loop(*a))
    # Of other numbers of components, in an order in which the mixtures take turns.
    single = torch.ones(1), torch.zeros(1), torch.full((1,), 0.2)
    mixtures = MIXTURES["typical"], single, MIXTURES["typical"], single
    made = [tables.build(*mixture) for mixture in mixtures]
    parts = [[0.1 * torch.randn(n), 0.1 * torch.randn(2, n)] for n in (3, 70, 65, 1)]
    scales = [0.5, 2.0, 1e-3, 7.0]
    grads = [[torch.ones_like(w) for w in each] for each in parts]
    pairs = [list(zip(g, w, strict=True)) for g, w in zip(grads, parts, strict=True)]
    moved = [[w + 0.01 for w in each] for each in parts]
    adaptive = [tables.Adaptive(torch.rand(w.shape), 1e-2, 1e-8) for w in parts[1]]
    steps = [[0.5, 0.1], adaptive, [0.2, 0.3], [0.1, 0.1]]
    members = [list(zip(*each, strict=True)) for each in zip(moved, parts, steps, strict=True)]
    with monkeypatch.context() as patched:
        for name in ("write_exactly_", "proximal_exactly_"):  # the loops leave nothing to them
            patched.setattr(Passes, name, None)
        tables.add_gradient_each_(list(zip(made, pairs, scales, strict=True)))
        tables.proximal_each_(list(zip(made, members, scales, strict=True)))
    assert len(calls) == 2
    for i, table in enumerate(made):
        for j, w in enumerate(parts[i]):
            grad, alone = torch.ones_like(w), w + 0.01
            table.add_gradient_(grad, w, scales[i])
            assert torch.allclose(grads[i][j], grad, rtol=1e-6)
            table.proximal_(alone, w, steps[i][j], scales[i])
            assert torch.equal(moved[i][j], alone)


@pytest.mark.parametrize("bad", [math.nan, -3e38])
def test_what_one_of_several_leaves_out_is_evaluated_by_torch(bad):
    table = tables.build(*MIXTURES["typical"])
    parts = [torch.randn(70), torch.randn(5, 7), torch.randn(90)]
    parts[1][2, 3] = parts[2][11] = bad
    grads, moved, alone = ([w.clone() for w in parts] for _ in range(3))
    tables.add_gradient_each_([(table, list(zip(grads, parts, strict=True)), 1.0)])
    tables.proximal_each_([(table, list(zip(moved, parts, [0.1] * 3, strict=True)), 1.0)])
    for w, grad, by_step, by_itself in zip(parts, grads, moved, alone, strict=True):
        expected = w + table.gradient(w)
        assert torch.allclose(grad, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
        table.proximal_(by_itself, w, 0.1, 1.0)
        assert torch.allclose(by_step, by_itself, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_the_value_of_millions_of_weights_keeps_its_bound():
    table = tables.direct(torch.ones(1), torch.zeros(1), torch.ones(1))
    w = torch.full((3_000_000,), 1.7, dtype=torch.float64)
    exact = 0.5 * 1.7**2 + 0.5 * math.log(2 * math.pi)
    assert abs(float(table.value(w)) / len(w) - exact) <= table.error.value * (1 + exact)
    assert abs(float(table.moments(w)[2]) / len(w) - 1.7**2) <= 1e-13
