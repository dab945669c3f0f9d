"""The tensor table's bytes: numbers, names, dtypes and shapes, checked as they are read."""

from __future__ import annotations

import enum
import math

import numpy as np
import torch
from torch import Tensor

from swsmix.codec.stream import Array

MAGIC = b"SWSM"
ONE_SECTION, SECTIONS = 2, 3  # the versions of the format
MAX_VALUES = 1 << 16  # of a codebook
# The format stores numbers of these two lists: append only.
DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
_PARTS = (
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked", "0", "1", "2", "3",
    "4", "5", "6", "7", "8", "9", "conv1", "conv2", "conv3", "bn1", "bn2", "bn3", "fc1", "fc2",
    "fc3", "fc", "downsample", "layer1", "layer2", "layer3", "layer4", "features", "classifier",
)  # fmt: skip
_MAX_DIMENSIONS = 64
_MAX_SIZE = 1 << 62
_MAX_NAME = 1 << 16  # bytes of a name
_MAX_NAMES = 1 << 24  # of all names


class Kind(enum.IntEnum):
    """How a tensor is stored."""

    VALUES = 0  # value by value
    INDEX = 1  # a codebook and an index into it
    SHARED = 2  # an index into an earlier codebook
    COPY = 3  # equal to an earlier tensor


class TableWriter:
    """Writes the tensor table, or a part of it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._parts = {part: i for i, part in enumerate(_PARTS)}
        self._names = 0

    def taken(self) -> bytes:
        """What has been written since the last call; the parts of names stay known."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def number(self, value: int) -> None:
        """Write a non-negative integer, seven bits per byte, the lowest first."""
        while value >= 0x80:
            self.data.append(0x80 | (value & 0x7F))
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        """Write an integer, in the order 0, -1, 1, -2, 2 ..."""
        self.number(2 * value if value >= 0 else -2 * value - 1)

    def name(self, name: str) -> None:
        """Write a name by its dotted parts, each as a number if it occurred before.

        Raises:
            ValueError: if the names are too long to be read back.
        """
        size = len(name.encode()) + 1
        self._names += size
        if size > _MAX_NAME or self._names > _MAX_NAMES:
            raise ValueError(
                f"a name must have less than {_MAX_NAME:,} bytes, and all names at most "
                f"{_MAX_NAMES:,}; got {size - 1:,} and {self._names:,}: shorten them"
            )
        parts = name.split(".")
        self.number(len(parts))
        for part in parts:
            known = self._parts.get(part)
            self.number(0 if known is None else known + 1)
            if known is None:
                text = part.encode()
                self.number(len(text))
                self.data += text
                self._parts[part] = len(self._parts)

    def tensor(self, t: Tensor) -> None:
        """Write a tensor's dtype and shape.

        Raises:
            TypeError: if the format has no such dtype.
        """
        if t.dtype not in DTYPES:
            names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"the format holds tensors of {names}; got {t.dtype}")
        self.number(DTYPES.index(t.dtype))
        self.number(t.ndim)
        for size in t.shape:
            self.number(size)


class TableReader:
    """Reads what a `TableWriter` wrote, never past the end.

    Args:
        data: the bytes.
        parts: of names in the tables before.
        names_left: the bytes that names may still have.
    """

    def __init__(
        self, data: bytes, parts: list[str] | None = None, names_left: int | None = None
    ) -> None:
        self._data = data
        self._at = 0
        self.parts = list(_PARTS) if parts is None else parts
        self.names_left = _MAX_NAMES if names_left is None else names_left

    def take(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            ValueError: if there are fewer.
        """
        if size > len(self._data) - self._at:
            raise ValueError("the tensor table ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    @property
    def position(self) -> int:
        """The number of bytes read."""
        return self._at

    def number(self, limit: int = _MAX_SIZE) -> int:
        """A non-negative integer, at most `limit`.

        Raises:
            ValueError: if it is larger, or stored in more bytes than it needs.
        """
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if value > limit or shift > 70:
                raise ValueError(f"a number in the tensor table is above its limit, {limit}")
            if byte < 0x80:
                if byte == 0 and shift:
                    raise ValueError("a number in the tensor table is longer than it needs to be")
                return value
            shift += 7

    def signed(self, limit: int) -> int:
        """An integer between -limit and limit."""
        value = self.number(2 * limit)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def name(self) -> str:
        """A tensor's name.

        Raises:
            ValueError: if it is not text, or too long: a part that repeats costs only a byte.
        """
        parts: list[str] = []
        left = min(_MAX_NAME, self.names_left)
        self.names_left -= left
        for _ in range(self.number(_MAX_NAME)):
            known = self.number()
            if known > len(self.parts):
                raise ValueError("a name in the tensor table refers to one that is not there")
            if known:
                part = self.parts[known - 1]
            else:
                try:
                    part = self.take(self.number(_MAX_NAME)).decode()
                except UnicodeDecodeError:
                    raise ValueError("a name in the tensor table is not UTF-8") from None
                self.parts.append(part)
            left -= len(part.encode()) + 1
            if left < 0:
                raise ValueError("the names in the tensor table are too long")
            parts.append(part)
        self.names_left += left
        return ".".join(parts)

    def tensor(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """A tensor's dtype and shape, with at most 2^62 elements.

        Raises:
            ValueError: if no tensor can have them.
        """
        dtype = DTYPES[self.number(len(DTYPES) - 1)]
        shape = tuple(self.number() for _ in range(self.number(_MAX_DIMENSIONS)))
        if math.prod(max(size, 1) for size in shape) > _MAX_SIZE:
            raise ValueError(f"the tensor table holds an impossible shape, {shape}")
        return dtype, shape

    def check_end(self) -> None:
        """Check that nothing is left.

        Raises:
            ValueError: if something is.
        """
        if self._at != len(self._data):
            raise ValueError("the tensor table goes on after its last tensor")


def to_patterns(t: Tensor) -> Array:
    """The bit patterns of a tensor's elements, as unsigned integers in row-major order."""
    # Through integer views: numpy knows no bfloat16, and the bits of a nan must survive.
    if not t.numel():
        return np.zeros(0, f"u{t.element_size()}")
    flat = t.detach().cpu().contiguous().reshape(-1)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return flat.view(kind).numpy().view(f"u{flat.element_size()}")


def from_patterns(patterns: Array, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor with these bit patterns; in their memory, if it is theirs and of the right type.

    Raises:
        ValueError: if a truth value is neither 0 nor 1.
    """
    size = dtype.itemsize
    if not len(patterns):  # an empty numpy array has a stride of 0
        return torch.zeros(shape, dtype=dtype, device="cpu")
    if dtype == torch.bool and (patterns > 1).any():
        raise ValueError("a truth value is neither 0 nor 1")
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    own = patterns.flags.owndata and patterns.flags.c_contiguous and patterns.flags.writeable
    if not own or patterns.dtype != f"u{size}":
        patterns = np.array(patterns, dtype=f"u{size}")
    signed = patterns if size == 1 else patterns.view(f"i{size}")
    return torch.from_numpy(signed).view(dtype if dtype.itemsize == size else kind).view(shape)
