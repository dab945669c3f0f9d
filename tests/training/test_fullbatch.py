"""Full-batch minimisers: they find minima, and what they cannot end they leave as it was."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swsmix.training.rounds import METHODS, minimize_

METHOD = pytest.mark.parametrize("method", METHODS)


@METHOD
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_quadratic_ends_where_its_linear_system_says(method, n, seed):
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=random, dtype=torch.float64)
    a, b = a @ a.T + torch.eye(n).double(), torch.randn(n, generator=random, dtype=torch.float64)
    parts = [torch.zeros(1, dtype=torch.float64), torch.ones(n - 1, dtype=torch.float64)]
    for part in parts:
        part.requires_grad_()

    def objective():
        w = torch.cat(parts)
        return w @ a @ w / 2 - b @ w

    end = minimize_(objective, parts, method=method, iterations=500)
    found, exact = torch.cat(parts).detach(), torch.linalg.solve(a, b)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)
    assert end == pytest.approx(objective().item())


def test_another_method_is_refused_and_the_message_lists_those_there_are():
    with pytest.raises(ValueError, match="'l-bfgs', 'cg'; got 'newton'"):
        minimize_(lambda: torch.zeros(()), [torch.zeros(1)], method="newton", iterations=1)


@METHOD
def test_types_shapes_and_parameters_that_do_not_matter_are_kept(method):
    w = torch.full((2, 3), 4.0, requires_grad=True)
    half = torch.tensor(2.0, dtype=torch.float16, requires_grad=True)
    idle = torch.ones(2, requires_grad=True)
    minimize_(
        lambda: (w - 1).square().sum() + half.float().square(), [w, half, idle],
        method=method, iterations=50,
    )  # fmt: skip
    torch.testing.assert_close(w.detach(), torch.ones(2, 3), rtol=0, atol=1e-2)
    assert half.dtype == torch.float16 and abs(half.item()) < 1e-2
    assert torch.equal(idle.detach(), torch.ones(2))


@METHOD
@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_an_interrupted_search_changes_nothing(method, fault):
    w = torch.tensor([3.0, -2.0], requires_grad=True)
    visited = []

    def objective():
        visited.append(w.detach().clone())
        if len(visited) == 3:
            raise fault
        return (w**4).sum()

    with pytest.raises(fault):
        minimize_(objective, [w], method=method, iterations=5)
    assert not torch.equal(visited[-1], visited[0])
    assert torch.equal(w.detach(), torch.tensor([3.0, -2.0]))


@METHOD
def test_an_end_that_is_not_finite_is_told_and_changes_nothing(method):
    w = torch.tensor([3.0, -2.0], requires_grad=True)

    def objective():
        fall = -w.square().sum()
        return fall if fall > -2500 else 0 * fall - math.inf  # flat: the search ends there

    assert minimize_(objective, [w], method=method, iterations=50) == -math.inf
    assert torch.equal(w.detach(), torch.tensor([3.0, -2.0]))
