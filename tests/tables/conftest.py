"""What passes over the weights, each in turn."""

import os

import pytest

from swsmix.tables import backends

# The kernels of a GPU are interpreted on the processor, if Triton is told to before it is loaded.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["numba", "torch", *["triton"] * INTERPRETED])
def loops(request, monkeypatch):
    """What passes over the weights: numba's loops, torch's operations or Triton's loops."""
    if request.param == "torch":
        monkeypatch.setattr(backends, "numba_kernels", lambda: None)
    elif request.param == "triton":
        monkeypatch.setattr(
            backends, "triton_for", lambda *tensors: backends.triton_kernels(tensors[0].device)
        )
        # The interpreter's time is that of the blocks, whatever their size; several are left.
        monkeypatch.setattr("swsmix.tables.triton_loops._BLOCK", 1 << 14)
    else:
        pytest.importorskip("numba")
