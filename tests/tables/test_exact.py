"""Direct evaluation: what runs outside of torch.compile."""

import pytest
import torch

from swsmix.tables.exact import eager


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
