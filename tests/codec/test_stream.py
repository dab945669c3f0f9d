"""The stream: what the coder of symbols, bits and integers costs, and that all comes back."""

import numpy as np
import pytest

from swsmix.codec.stream import (
    ONE,
    StreamDecoder,
    StreamEncoder,
    code_adaptively,
    code_integers,
    entropy_bits,
    frequencies,
)


def test_a_symbol_that_the_table_leaves_out_costs_what_the_coder_takes_for_it():
    stream, symbols = StreamEncoder(), np.ones(4000, np.int64)
    stream.symbols(frequencies(np.array([10, 0])), len(symbols), symbols)
    assert 8 * len(stream.to_bytes()) == pytest.approx(stream.cost, rel=1e-3)


def test_the_cost_that_models_are_chosen_by_is_the_size_of_the_stream():
    rng = np.random.default_rng(0)
    stream = StreamEncoder()
    p = rng.integers(1, ONE, 20_000)
    bits = (rng.integers(0, ONE, 20_000) < p).astype(np.int64)
    stream.bits(p, bits)
    count = np.array([1000, 0, 10, 5000])
    symbols = np.repeat(np.arange(4), count)
    stream.symbols(frequencies(count), len(symbols), symbols)
    data = stream.to_bytes()
    assert abs(8 * len(data) - stream.cost) < 0.001 * stream.cost + 64
    stream = StreamDecoder(data)
    assert np.array_equal(stream.bits(p), bits)
    assert np.array_equal(stream.symbols(frequencies(count), len(symbols)), symbols)
    stream.check_end()


@pytest.mark.parametrize("values", [[], [0], [2**40 - 1, 0, 1, 2, 3], list(range(0, 90_000, 7))])
def test_integers_come_back(values):
    values = np.array(values, np.int64)
    stream = StreamEncoder()
    code_integers(stream, len(values), values)
    assert np.array_equal(code_integers(StreamDecoder(stream.to_bytes()), len(values)), values)


def test_adaptive_coding_comes_near_the_entropy():
    symbols = np.random.default_rng(0).choice(5, 10_000, p=[0.9, 0.05, 0.03, 0.01, 0.01])
    stream = StreamEncoder()
    code_adaptively(stream, 5, len(symbols), symbols)
    assert stream.cost < 1.02 * entropy_bits(np.bincount(symbols)) + 100


def test_frequencies_add_up_and_leave_none_out():
    for count in ([1, 0, 10**9], [1] * 65536, [0, 0], [3]):
        frequency = frequencies(np.array(count))
        assert frequency.sum() == 1 << 22
        assert all(f > 0 for f, c in zip(frequency, count, strict=True) if c)
