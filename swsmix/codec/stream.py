"""The entropy-coded stream: decisions and symbols with integer probabilities, by `constriction`.

A model is one function that runs the same way in both directions. It hands each batch of
decisions with their probabilities to a coder: a `StreamEncoder` is given the decisions, keeps them
and knows their cost; a `StreamDecoder` reads them from a stream. In either direction the model sees
only what is already decoded. Probabilities are integers over a power of two, exact as floats, and
the range coder (Martin 1979) is constriction's `queue.RangeEncoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

PROBABILITY_BITS = 16
ONE = 1 << PROBABILITY_BITS
_FREQUENCY_BITS = 22
_CHUNK = 1 << 18  # symbols that are in the coder's type at a time
_JOINED = 1 << 20  # decisions in one call of the coder
_BITS = -np.log2(np.arange(ONE + 1).clip(1) / ONE)  # of a decision, by its probability


class StreamEncoder:
    """Collects what is to be coded: its ideal length in bits (`cost`), its number of decisions."""

    def __init__(self) -> None:
        self.cost = 0.0
        self.decisions = 0
        self._items: list[tuple[str, Array, Array]] = []

    def bits(self, probability: Array, bits: Array | None) -> Array:
        """Code decisions, each with its probability of a 1, an integer over `ONE`; returns them."""
        assert bits is not None
        self.cost += cost_of_bits(probability, bits)
        self.decisions += len(bits)
        self._items.append(("bits", bits.astype(np.uint8), probability.astype(np.uint16)))
        return bits

    def symbols(self, frequency: Array, size: int, symbols: Array | None) -> Array:
        """Code symbols by one table of integer frequencies (see `frequencies`); returns them."""
        assert symbols is not None
        if size and len(frequency) > 1:
            self.cost += cost_of_symbols(frequency, symbols)
            self._items.append(("symbols", symbols, frequency))
        return symbols

    def extend(self, other: StreamEncoder) -> None:
        """Append what another encoder holds."""
        self.cost += other.cost
        self.decisions += other.decisions
        self._items += other._items

    def to_bytes(self) -> bytes:
        """The stream, as little-endian 32-bit words."""
        constriction = _constriction()
        encoder = constriction.stream.queue.RangeEncoder()
        bernoulli = constriction.stream.model.Bernoulli(perfect=False)
        for kind, values, table in _joined(self._items):
            if kind == "bits":
                encoder.encode(values.astype(np.int32), bernoulli, table / ONE)
                continue
            model = _categorical(table)
            for begin in range(0, len(values), _CHUNK):
                encoder.encode(values[begin : begin + _CHUNK].astype(np.int32), model)
        return np.asarray(encoder.get_compressed()).astype("<u4").tobytes()


class StreamDecoder:
    """Reads what a `StreamEncoder` wrote.

    Args:
        stream: from `StreamEncoder.to_bytes`.

    Raises:
        ValueError: if it is not a whole number of words.
    """

    def __init__(self, stream: bytes | memoryview) -> None:
        if len(stream) % 4:
            raise ValueError("the coded stream is not a whole number of 32-bit words")
        constriction = _constriction()
        self.cost = 0.0  # only a `StreamMeter` counts it: that takes time
        words = np.frombuffer(stream, dtype="<u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(words)
        self._bernoulli = constriction.stream.model.Bernoulli(perfect=False)

    def bits(self, probability: Array, bits: Array | None = None) -> Array:
        """Read decisions, a 0 or a 1 per probability.

        Raises:
            ValueError: if the stream is damaged.
        """
        try:
            read: Array = self._decoder.decode(self._bernoulli, probability / ONE)
        except AssertionError as error:
            raise ValueError(f"the coded stream is damaged: {error}") from None
        return read

    def symbols(self, frequency: Array, size: int, symbols: Array | None = None) -> Array:
        """Read `size` symbols, numbers below `len(frequency)`.

        Raises:
            ValueError: if the stream is damaged.
        """
        read = np.zeros(size, smallest_type(len(frequency)))
        if not size or len(frequency) == 1:
            return read
        model = _categorical(frequency)
        try:
            for begin in range(0, size, _CHUNK):
                part = read[begin : begin + _CHUNK]
                part[:] = self._decoder.decode(model, len(part))
        except AssertionError as error:
            raise ValueError(f"the coded stream is damaged: {error}") from None
        return read

    def check_end(self) -> None:
        """Check that nothing is left.

        Raises:
            ValueError: if something is.
        """
        if not self._decoder.maybe_exhausted():
            raise ValueError("the coded stream goes on after its last tensor")


class StreamMeter(StreamDecoder):
    """A decoder that adds up the ideal length of what it reads: `cost`, in bits."""

    def bits(self, probability: Array, bits: Array | None = None) -> Array:
        """Read decisions, and count them."""
        read = super().bits(probability)
        self.cost += cost_of_bits(probability, read)
        return read

    def symbols(self, frequency: Array, size: int, symbols: Array | None = None) -> Array:
        """Read symbols, and count them."""
        read = super().symbols(frequency, size)
        if size and len(frequency) > 1:
            self.cost += cost_of_symbols(frequency, read)
        return read


def cost_of_bits(probability: Array, bits: Array) -> float:
    """The ideal length of decisions in bits, each with its probability of a 1 over `ONE`."""
    chosen = np.where(bits != 0, probability, ONE - probability)
    return float(_BITS[chosen].sum())


def cost_of_symbols(frequency: Array, symbols: Array) -> float:
    """The ideal length of symbols in bits, by their table of integer frequencies."""
    count = counted(symbols, len(frequency))
    bits = np.log2(np.maximum(frequency, 0.25) / (1 << _FREQUENCY_BITS))
    return -float((count * bits).sum())


def smallest_type(num_values: int) -> np.dtype[Any]:
    """The smallest unsigned type for numbers below `num_values`."""
    return np.min_scalar_type(max(num_values - 1, 0))


def counted(symbols: Array, num_values: int) -> Array:
    """How often each number occurs (num_values,), without a wide copy of them all.

    By torch: numpy takes ten times as long for bytes.
    """
    count = np.zeros(num_values, np.int64)
    for begin in range(0, len(symbols), _CHUNK):
        part = symbols[begin : begin + _CHUNK].astype(np.int32)
        count += torch.bincount(torch.from_numpy(part), minlength=num_values).numpy()
    return count


# A model codes with either.
Coder = StreamEncoder | StreamDecoder


def frequencies(count: Array) -> Array:
    """Counts as integer frequencies that sum to a power of two.

    A symbol that occurs gets at least 1. One that does not gets 0, and the coder gives it its
    smallest probability, 2^-24.
    """
    count = count.astype(np.int64)
    total = int(count.sum())
    if total == 0:
        count, total = np.ones_like(count), len(count)
    shared = (1 << _FREQUENCY_BITS) - int((count > 0).sum())
    # In int64: with counts up to 2^40 the product does not overflow.
    frequency = np.where(count > 0, 1 + (count * shared) // total, 0)
    frequency[int(frequency.argmax())] += (1 << _FREQUENCY_BITS) - int(frequency.sum())
    return frequency


def code_adaptively(coder: Coder, alphabet: int, size: int, symbols: Array | None = None) -> Array:
    """Code symbols by the counts of those before them, in blocks of 1, 1, 2, 4, 8 ..."""
    count = np.ones(alphabet, np.int64)
    done: list[Array] = []
    begin = 0
    while begin < size:
        end = min(max(2 * begin, 1), size)
        block = coder.symbols(
            frequencies(count), end - begin, None if symbols is None else symbols[begin:end]
        )
        done.append(block)
        begin = end
        if end < size:
            count = count + 2 * counted(block, alphabet)
    if symbols is not None:
        return symbols
    return np.concatenate(done) if done else np.zeros(0, smallest_type(alphabet))


def code_integers(
    coder: Coder,
    size: int,
    values: Array | None = None,
    charge: Callable[[int], None] = lambda decisions: None,
) -> Array:
    """Code integers below 2^40: the largest bit length, all bit lengths, then the lower bits.

    `charge` is told of each place's decisions before they are coded.
    """
    length = None if values is None else _bit_length(values)
    if not size:
        return np.zeros(0, np.int64)
    longest = code_adaptively(coder, 41, 1, None if length is None else length.max()[None])
    length = code_adaptively(coder, int(longest[0]) + 1, size, length).astype(np.int64)
    result = (length > 0).astype(np.int64)
    for place in range(int(length.max(initial=0)) - 1):
        active = np.flatnonzero(length > place + 1)
        charge(len(active))
        # The bits below the leading one, from the highest.
        shift = length[active] - 2 - place
        known = None if values is None else (values[active] >> shift) & 1
        half = np.full(len(active), ONE // 2)
        bit = coder.bits(half, known)
        result[active] = 2 * result[active] + bit
    return result


def _bit_length(values: Array) -> Array:
    # Exact: frexp's exponent of an integer below 2^53.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _joined(items: list[tuple[str, Array, Array]]) -> Any:
    """Small batches of decisions, joined: each call of the coder costs microseconds."""
    bits: list[Array] = []
    tables: list[Array] = []
    waiting = 0
    for kind, values, table in items:
        if bits and (kind != "bits" or waiting >= _JOINED):
            yield "bits", np.concatenate(bits), np.concatenate(tables)
            bits, tables, waiting = [], [], 0
        if kind != "bits":
            yield kind, values, table
            continue
        bits.append(values)
        tables.append(table)
        waiting += len(values)
    if bits:
        yield "bits", np.concatenate(bits), np.concatenate(tables)


def _categorical(frequency: Array) -> Any:
    share = frequency / (1 << _FREQUENCY_BITS)
    return _constriction().stream.model.Categorical(share, perfect=False)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise ImportError(
            "compressed files need the package constriction: pip install constriction"
        ) from None
    return constriction


def entropy_bits(count: Array) -> float:
    """The zero-order entropy of counted symbols, n log2 n - sum_k n_k log2 n_k, in bits."""
    occurring = count[count > 0].astype(np.float64)
    total = float(occurring.sum())
    bits = total * math.log2(total) - (occurring * np.log2(occurring)).sum() if total else 0.0
    return max(float(bits), 0.0)
