"""The checks of `checked` at work: a wrong type, shape or size of an axis in swsmix is an error."""

import checked
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float

from swsmix import GaussianMixture, plots
from swsmix.compression.codebooks import mixture_of_values


@checked.checked
def scaled(
    w: Float[torch.Tensor, "n m"], scale: Float[torch.Tensor, " m"]
) -> "Float[torch.Tensor, 'n m']":
    return (w * scale)[:: 2 if (scale < 0).any() else 1]


@checked.checked
def twice(w: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    scaled(torch.ones(2, 3), torch.ones(3))  # its n is another one
    return torch.cat([w[:1], w[1:]])


@checked.checked
def either(w: Float[torch.Tensor, " n"] | None, other: Float[torch.Tensor, " n"] | None):
    return w is None or other is None


def test_an_axis_has_one_size_where_there_may_be_no_tensor():
    assert either(torch.ones(2), None) and not either(torch.ones(3), torch.ones(3))
    with pytest.raises(BeartypeCallHintViolation):
        either(torch.ones(2), torch.ones(3))


def test_an_axis_has_one_size_in_a_call_and_may_have_another_in_the_next_and_inside():
    assert scaled(torch.ones(4, 3), torch.ones(3)).shape == (4, 3)
    assert scaled(torch.ones(5, 2), torch.ones(2)).shape == (5, 2)
    assert twice(torch.ones(7)).shape == (7,)
    with pytest.raises(BeartypeCallHintViolation):
        scaled(torch.ones(4, 3), torch.ones(4))
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        scaled(torch.ones(4, 3), -torch.ones(3))
    with pytest.raises(BeartypeCallHintViolation):
        scaled(torch.ones(4, 3), torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.component_colors(torch.zeros(2, 2)),
        lambda: plots.component_colors([0.0]),
        lambda: mixture_of_values([torch.zeros(3)], torch.zeros(1, 1)),
        lambda: GaussianMixture([1.0], [0.0], [1.0]).log_prob("w"),
    ],
)
def test_calls_into_the_library_are_checked(call):
    with pytest.raises(BeartypeCallHintViolation):
        call()


def test_inner_functions_of_one_code_are_checked_and_each_calls_its_own():
    def powers(n, scale=1.0):
        @checked.checked
        def power(w: Float[torch.Tensor, " n"], *, by: float = 1.0) -> Float[torch.Tensor, " n"]:
            return by * scale * w**n

        return power

    one, two = powers(1), powers(2, 3.0)
    w = torch.arange(3.0)
    assert one(w).tolist() == [0.0, 1.0, 2.0] and two(w, by=2.0).tolist() == [0.0, 6.0, 24.0]
    assert one.__wrapped__ is not two.__wrapped__ and one.__qualname__ == two.__qualname__
    for each in (one, two):
        with pytest.raises(BeartypeCallHintViolation):
            each(w, by=2)
        with pytest.raises(BeartypeCallHintViolation):
            each(w[None])
