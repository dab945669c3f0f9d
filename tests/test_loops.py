"""Loops under the plain default: nothing freezes, and the prior works."""

import json

from figures import loops


def test_a_loop_under_the_plain_default_holds_what_is_asked():
    assert loops.failures(loops.measure("MLP", "float32", "Adam", steps=1000)) == []


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
    text = (loops.FIGURES / "loops.md").read_text()
    assert text.split(loops.MARK)[1] == "\n" + loops.table(rows)
