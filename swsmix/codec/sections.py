"""The frame of a file: sections that are written as they are done, and read one by one.

Each section is checked by itself, and the file as a whole.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from swsmix.codec.header import MAGIC, ONE_SECTION, SECTIONS, TableWriter

_CHUNK = 1 << 20  # bytes that are read at a time to check the whole


class SectionWriter:
    """Writes sections; a file of a single one has version 2.

    Args:
        file: open for writing in binary.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._first: tuple[bytes, bytes] | None = None
        self._tables_crc = self._file_crc = self.size = 0

    def add(self, table: bytes, payload: Sequence[bytes], *, in_blocks: bool = False) -> None:
        """Write a section; the first waits for the next one, unless it is of blocks."""
        if not self.size and self._first is None and not in_blocks:
            self._first = table, b"".join(payload)
            return
        if not self.size:
            self._write(MAGIC + bytes([SECTIONS]))
            self._tables_crc = self._file_crc
            first, self._first = self._first, None
            if first is not None:
                self._section(first[0], [first[1]])
        self._section(table, payload)

    def finish(self, notes: bytes = b"") -> None:
        """End the file, with notes on the tensors if there are any."""
        if notes and self._first is not None:
            first, self._first = self._first, None
            self._write(MAGIC + bytes([SECTIONS]))
            self._tables_crc = self._file_crc
            self._section(first[0], [first[1]])
        if self._first is not None:
            table, stream = self._first
            front = TableWriter()
            front.number(len(table))
            self._write(MAGIC + bytes([ONE_SECTION]) + front.data + table + stream)
        else:
            self._write(b"\0")
            if notes:
                front = TableWriter()
                front.number(len(notes))
                self._write(bytes(front.data) + notes)
        self._write(self._file_crc.to_bytes(4, "little"))

    def _section(self, table: bytes, payload: Sequence[bytes]) -> None:
        front = TableWriter()
        front.number(len(table))
        front.number(sum(map(len, payload)))
        head = bytes(front.data) + table
        self._tables_crc = zlib.crc32(head, self._tables_crc)
        self._write(head + self._tables_crc.to_bytes(4, "little"))
        crc = 0
        for part in payload:
            crc = zlib.crc32(part, crc)
            self._write(part)
        if any(payload):
            self._write(crc.to_bytes(4, "little"))

    def _write(self, data: bytes) -> None:
        self._file_crc = zlib.crc32(data, self._file_crc)
        self.size += len(data)
        self._file.write(data)


@dataclass(frozen=True)
class Section:
    """A section of a file: its table, and where its payload is.

    Attributes:
        table: its bytes.
        begin: of the payload, in the file.
        size: of the payload, in bytes.
        is_checked: whether it has checksums of its own, as in version 3.
    """

    table: bytes
    begin: int
    size: int
    is_checked: bool

    def payload(self, file: io.BufferedIOBase) -> memoryview:
        """Read the payload.

        Raises:
            ValueError: if its checksum does not fit.
        """
        file.seek(self.begin)
        data = file.read(self.size)
        if not self.is_checked or not self.size:
            return memoryview(data)
        if zlib.crc32(data) != int.from_bytes(file.read(4), "little"):
            raise ValueError("it is damaged: the checksum of a section does not fit")
        return memoryview(data)


def read_sections(file: io.BufferedIOBase, *, whole: bool) -> tuple[list[Section], bytes]:
    """The sections of a file, with their tables, and the notes at its end.

    Args:
        file: open for reading in binary.
        whole: check the whole file. Otherwise the tables of a file in sections are checked, and
            each payload when it is read.

    Raises:
        ValueError: if it is no such file, damaged, or of another version.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(len(MAGIC) + 1)
    if head[: len(MAGIC)] != MAGIC:
        raise ValueError("it is not a swsmix file: it does not begin with SWSM")
    if size < len(MAGIC) + 6:
        raise ValueError("it is damaged: it ends too early")
    version = head[len(MAGIC)]
    if whole or version != SECTIONS:
        _check_whole(file, size)
    if version not in (ONE_SECTION, SECTIONS):
        raise ValueError(
            f"it has version {version} of the format, and this swsmix reads only versions "
            f"{ONE_SECTION} and {SECTIONS}: install a swsmix that reads the other"
        )
    file.seek(len(head))
    if version == ONE_SECTION:
        table = _take(file, _number(file), size - 4)
        return [Section(table, file.tell(), size - 4 - file.tell(), is_checked=False)], b""
    sections, crc = [], zlib.crc32(head)
    while True:
        start = file.tell()
        length = _number(file)
        if not length:
            break
        payload = _number(file)
        begin = file.tell()
        table = _take(file, length, size - 4)
        file.seek(start)
        crc = zlib.crc32(file.read(begin - start + length), crc)
        if file.read(4) != crc.to_bytes(4, "little"):
            raise ValueError("it is damaged: the checksum of a tensor table does not fit")
        sections.append(Section(table, file.tell(), payload, is_checked=True))
        file.seek(payload + 4 * (payload > 0), io.SEEK_CUR)
        if file.tell() > size - 5:
            raise ValueError("it is damaged: it ends too early")
    notes, end = b"", file.tell()
    if file.tell() < size - 4:
        notes = _take(file, _number(file), size - 4)
    if file.tell() != size - 4 or file.tell() - end == 1:
        raise ValueError("it is damaged: it goes on after its end")
    return sections, notes


def _check_whole(file: io.BufferedIOBase, size: int) -> None:
    file.seek(0)
    crc, left = 0, size - 4
    while left:
        data = file.read(min(left, _CHUNK))
        if not data:
            break
        crc, left = zlib.crc32(data, crc), left - len(data)
    if left or file.read(4) != crc.to_bytes(4, "little"):
        raise ValueError("it is damaged: its checksum does not fit")


def _take(file: io.BufferedIOBase, length: int, end: int) -> bytes:
    if length > end - file.tell():
        raise ValueError("it is damaged: a tensor table ends too early")
    return file.read(length)


def _number(file: io.BufferedIOBase) -> int:
    """See `TableReader.number`; at most nine bytes."""
    value = 0
    for shift in range(0, 63, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is damaged: it ends too early")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            if not byte[0] and shift:
                raise ValueError("a number in the file is longer than it needs to be")
            return value
    raise ValueError("a number in the file is above its limit")
