"""Hostile files cost little; what a file may cost is tied to its size."""

import subprocess
import sys
import warnings
import zlib

import pytest
import torch

from swsmix.codec import decode, encode, sizes
from swsmix.codec.decoder import default_limits
from swsmix.codec.header import TableReader, TableWriter
from swsmix.compression.snap import snap_to_grid

FLOAT32, FLOAT64, COPY, INDEX, SHARED, GRID = 0, 3, 3, 1, 2, 10


def hostile(*tensors, stream=b"\0" * 12):
    """A file with a good checksum; a tensor is its name and the numbers of its table."""
    front, body = TableWriter(), TableWriter()
    body.number(len(tensors))
    for i, numbers in enumerate(tensors):
        body.name(f"t{i}")
        for number in numbers:
            if isinstance(number, bytes):
                body.data += number
            else:
                body.number(number)
    front.number(len(body.data))
    data = b"SWSM\2" + bytes(front.data + body.data) + stream
    return data + zlib.crc32(data).to_bytes(4, "little")


def equal_values(count, dtype=FLOAT64):
    return (INDEX, dtype, 1, count, 1, dtype, bytes(8 if dtype == FLOAT64 else 4))


def book(num_values, shape, *model):
    return (INDEX, FLOAT32, len(shape), *shape, num_values, GRID, 0, *model)


def in_context(num_values, shape, kind, stride=1):
    return book(num_values, shape, 2, 0, kind, stride)


HOSTILE = {
    "many equal values": [equal_values(1 << 28)],
    "many copies": [equal_values(1 << 24), *[(COPY, 0)] * 15],
    "contexts by rows": [in_context(1024, (5000, 5000), 1)],
    "contexts by columns": [in_context(2, (4096, 8192), 0)],
    "contexts in order": [in_context(2, (1 << 17, 256), 4)],
    "a stride of 1024": [in_context(1024, (1024, 32768), 1, 1024)],
    "adaptive, large": [book(65536, (1 << 28,), 1)],
    "counted, large": [book(2, (1 << 28,), 0)],
    "many tables": [book(65536, (65536,), 1)] + [(SHARED, FLOAT32, 1, 1, 0, 1)] * 3000,
    "a shape of 2^61": [(0, FLOAT64, 1, 1 << 61, FLOAT64)],
    "small contexts": [in_context(1024, (1, 1024), 1)]
    + [(SHARED, FLOAT32, 1, 2, 0, 2, 0, 3, 1)] * 3000,
}

READ = """
import resource, sys, time
import torch
from swsmix.codec import decode
from swsmix.codec.stream import _constriction
_constriction()
virtual = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + (2 << 30),) * 2)
data = sys.stdin.buffer.read()
begin = time.process_time()
try:
    decode(data)
except ValueError as error:
    print(error)
assert time.process_time() - begin < 20, time.process_time() - begin
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits as on Linux")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_takes_neither_minutes_nor_gigabytes(name):
    data = hostile(*HOSTILE[name])
    assert len(data) < 100_000
    done = subprocess.run(
        [sys.executable, "-c", READ], input=data, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["many equal values", "many copies", "contexts by columns"])
def test_what_is_refused_names_the_remedy(name):
    with pytest.raises(ValueError, match="max_weights"):
        decode(hostile(*HOSTILE[name]))


def test_a_large_tensor_of_equal_values_is_read_by_default():
    data = encode({"w": torch.zeros(5000, 5000)})
    assert len(data) < 64 and decode(data)["w"].shape == (5000, 5000)
    assert decode(encode({"w": torch.zeros(1000, 1000)}))["w"].shape == (1000, 1000)


def test_what_is_refused_by_default_is_written_with_a_warning_and_read_when_asked():
    few = default_limits(40)[0] + 1
    with pytest.warns(UserWarning, match=rf"max_weights = {few} or more"):
        data = encode({"w": torch.zeros(few, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="give a larger max_weights"):
        decode(data)
    with pytest.raises(ValueError, match="give a larger max_weights"):
        sizes(data)
    assert decode(data, max_weights=few)["w"].shape == (few,)


def test_an_ordinary_file_is_far_below_the_limits():
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(300, 784, generator=generator) < 0.01).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = encode({"a": weights, "b": weights[:, :400] * 2})
    assert torch.equal(decode(data)["a"], weights)


def test_a_number_in_more_bytes_than_it_needs_is_refused():
    assert TableReader(b"\x85\x01").number() == 133 and TableReader(b"\0").number() == 0
    for long in (b"\x85\x00", b"\x80\x00", b"\x85\x81\x00"):
        with pytest.raises(ValueError, match="longer than it needs"):
            TableReader(long).number()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_a_grid_holds_the_largest_and_the_smallest_numbers(dtype, bits):
    limits = torch.finfo(dtype)
    for largest in (limits.max, limits.max / 2, limits.tiny, limits.smallest_normal / 4, 1.0):
        t = (torch.linspace(-1, 1, 101, dtype=torch.float64) * largest).to(dtype)
        grid = snap_to_grid(t, bits)
        assert grid.isfinite().all() and len(grid.unique()) < 2**bits
        assert torch.equal(snap_to_grid(grid, bits), grid)
        error = (grid.double() / 2 - t.double() / 2).abs().max() / (t.abs().max().double() / 2)
        near_the_top = largest == limits.max
        assert error <= (2 if near_the_top else 1) / (2 ** (bits - 1) - 1)
