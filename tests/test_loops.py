"""Loops under the plain default: nothing freezes, and the prior works."""

import itertools
import json

import pytest

from figures import loops


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loop_under_the_plain_default_holds_what_is_asked(dtype):
    assert loops.failures(loops.measure("MLP", dtype, "Adam", steps=500)) == []


@pytest.mark.slow
@pytest.mark.parametrize("loop", itertools.product(loops.NETS, loops.TYPES, loops.OPTIMIZERS))
def test_every_loop_under_the_plain_default_holds_what_is_asked(loop):
    # loops.md says which fail today, where the price is too high or too low.
    assert loops.failures(loops.measure(*loop)) == []


def test_each_failure_is_seen():
    row = {
        "loss": 1.09, "plain_loss": 1.0, "tau": 0.3, "allowed": 1.0, "nats": -0.31,
        "plain_nats": 0.0,
    }  # fmt: skip
    assert loops.failures(row) == []
    assert loops.failures({**row, "loss": 1.11}) == ["loss"]
    assert loops.failures({**row, "loss": float("nan")}) == ["loss"]
    assert loops.failures({**row, "tau": 0.29}) == ["tau"]
    assert loops.failures({**row, "nats": -0.29}) == ["R"]


def test_the_table_is_that_of_the_rows():
    rows = [json.loads(line) for line in (loops.FIGURES / "loops.jsonl").read_text().splitlines()]
    assert (loops.FIGURES / "loops.md").read_text() == loops.table(rows)
