"""The moments of the E step: right, additive, and free of their centre."""

import cases
import numpy as np
import pytest
import reference
import torch
from em_starts import start
from hypothesis import given
from hypothesis import strategies as st

from swsmix import e_step
from swsmix.em import Moments


@pytest.mark.parametrize("name", sorted(set(cases.mixtures()) - {"dead component"}))
def test_the_e_step_agrees_with_its_twin(name):
    mixture, w = cases.mixtures()[name], cases.weights()
    expected = reference.moments(
        w.tolist(), mixture.mixing.tolist(), mixture.mean.tolist(), mixture.std.tolist()
    )
    found = e_step(mixture, w)
    for got, exact in zip((found.count, found.first, found.second), expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-9)


def test_moments_of_two_halves_add_up_to_those_of_the_whole_whatever_their_centres():
    mixture, w = start(), cases.weights()
    whole = e_step(mixture, w)
    halves = e_step(mixture, w[:200]) + e_step(mixture, w[200:]).recentred(mixture.mean + 0.3)
    for name in ("count", "first", "second"):
        torch.testing.assert_close(getattr(whole, name), getattr(halves, name))


@given(shift=st.floats(-1e3, 1e3))
def test_recentring_there_and_back_changes_nothing(shift):
    moments = e_step(start(), cases.weights())
    back = moments.recentred(moments.centre + shift).recentred(moments.centre)
    tolerance = 1e-12 * (1.0 + abs(shift)) ** 2 * 500
    torch.testing.assert_close(back.second, moments.second, atol=tolerance, rtol=0)
    torch.testing.assert_close(back.first, moments.first, atol=tolerance, rtol=0)


def test_damped_moments_are_those_of_a_weighted_data_set():
    mixture = start()
    first, second = cases.weights(seed=1), cases.weights(seed=2)
    old, new = e_step(mixture, first), e_step(mixture, second)
    moved = old.recentred(old.centre + 0.2)  # moments about different means do not add
    damped = moved.damped(new, 0.25)
    torch.testing.assert_close(damped.count, 0.75 * old.count + 0.25 * new.count)
    torch.testing.assert_close(damped.first, 0.75 * old.first + 0.25 * new.first)
    torch.testing.assert_close(damped.second, 0.75 * old.second + 0.25 * new.second)
    naive = 0.75 * moved.second + 0.25 * new.second  # the mutant that forgets to recentre
    assert not torch.allclose(naive, damped.second)
    torch.testing.assert_close(moved.damped(new, 1.0).second, new.second, rtol=0, atol=0)


def test_moments_are_double_precision_even_for_half_precision_weights():
    mixture, w = start(), cases.weights()
    moments = e_step(mixture, w.bfloat16())
    assert isinstance(moments, Moments) and moments.second.dtype == torch.float64
