"""The file-system events of a process: counted, recorded, and the place where it is killed."""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ONE_PATH = ("unlink", "remove", "mkdir", "rmdir", "chmod", "truncate", "utime")
_TWO_PATHS = ("rename", "replace", "link", "symlink")
_lstat, _walk, _system_open = os.lstat, os.walk, os.open


@dataclass(frozen=True)
class Kill:
    """When a child is killed.

    Attributes:
        event: before the event of this number, from 1.
        torn: in the middle of it: half of the bytes of a write are in the file.
        power: as if the power had gone: a file is empty if it was not synced.
    """

    event: int
    torn: bool = False
    power: bool = False


@dataclass
class Record:
    """What a command did that was not killed.

    Attributes:
        events: "what name" of each event.
        writes: the numbers of those that can be torn.
        unsynced: the numbers of those before which the power may take something away.
        seen: what `look` gave before each event, and at the end.
        faults: what is wrong whatever is killed.
    """

    events: list[str] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    unsynced: list[int] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Tape:
    """Counts events in a folder, and acts at one of them."""

    def __init__(self, root: str, kill: Kill | None, look: Callable[[Path], Any] | None) -> None:
        self.root, self.kill, self.look = root, kill, look
        self.number = 0
        self.dirty: set[int] = set()  # the inodes of files that were not synced
        self.inside = False  # an event within an event is its own
        self.record = Record()
        self.state = self._names()

    def event(
        self,
        what: str,
        path: str,
        act: Callable[[], Any],
        torn: Callable[[], Any] | None = None,
    ) -> Any:
        """One event, unless it lies outside the folder."""
        if self.inside or not (path == self.root or path.startswith(self.root + os.sep)):
            return act()
        self.inside = True
        try:
            self._before(f"{what} {os.path.relpath(path, self.root)}", torn)
            return act()
        finally:
            if self.look is not None:
                self.state = self._names()
            self.inside = False

    def _before(self, name: str, torn: Callable[[], Any] | None) -> None:
        self.number += 1
        if self.kill is not None and self.kill.event == self.number:
            if self.kill.torn and torn is not None:
                torn()
            self._die()
        if self.look is None:
            return
        if self._names() != self.state:
            self.record.faults.append(f"something changed a file unseen before {name}")
        self.record.events.append(name)
        if torn is not None:
            self.record.writes.append(self.number)
        if self._unsynced():
            self.record.unsynced.append(self.number)
        self.record.seen.append(self.look(Path(self.root)))

    def end(self) -> None:
        """The command has ended: the last moment to be killed at."""
        self.inside = True
        self._before("end .", None)

    def renamed(self, path: str) -> None:
        """Check that what gets its name now is on the disk."""
        files = [path] if os.path.isfile(path) else [f for f, _ in files_of(path)]
        for file in files:
            if _lstat(file).st_ino in self.dirty and self.look is not None:
                name = os.path.relpath(file, self.root)
                self.record.faults.append(f"{name} was renamed before it was synced")

    def _die(self) -> None:
        if self.kill is not None and self.kill.power:
            for file in self._unsynced():
                os.truncate(file, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    def _unsynced(self) -> list[str]:
        return [f for f, at in files_of(self.root) if at.st_ino in self.dirty and at.st_size]

    def _names(self) -> list[tuple[str, int, int, int]]:
        if self.look is None:
            return []
        return [(f, at.st_ino, at.st_size, at.st_mtime_ns) for f, at in files_of(self.root)]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap what changes files."""
        import safetensors.torch

        for name in _ONE_PATH:
            _wrap(name, self._one_path)
        for name in _TWO_PATHS:
            _wrap(name, self._two_paths)
        for name in ("write", "pwrite", "ftruncate"):
            _wrap(name, self._by_handle)
        for name, make in (("open", self._os_open), ("fsync", self._sync)):
            _wrap(name, make)
        _wrap("fdatasync", self._sync)
        builtins.open = io.open = self._opener(io.open)
        safetensors.torch.serialize_file = _serialize_file
        yield
        self.inside = True  # what comes now is not the command's

    def _one_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> Any:
            if isinstance(path, int):
                return real(path, *args, **more)
            kept = {} if dir_fd is None else {"dir_fd": dir_fd}
            return self.event(
                name, _absolute(path, dir_fd), lambda: real(path, *args, **kept, **more)
            )

        return call

    def _two_paths(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **more: Any) -> Any:
            def act() -> Any:
                if name in ("rename", "replace"):
                    self.renamed(_absolute(source))
                return real(source, target, **more)

            return self.event(name, _absolute(target), act)

        return call

    def _os_open(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if not flags & (os.O_CREAT | os.O_TRUNC):
                return int(real(path, flags, mode, dir_fd=dir_fd))
            full = _absolute(path, dir_fd)
            return int(self.event(name, full, lambda: real(path, flags, mode, dir_fd=dir_fd)))

        return call

    def _sync(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any) -> None:
            handle = file if isinstance(file, int) else file.fileno()

            def act() -> (
                None
            ):  # without waiting for the disk: a killed process leaves what it wrote
                self.dirty.discard(os.fstat(handle).st_ino)

            self.event(name, os.readlink(f"/proc/self/fd/{handle}"), act)

        return call

    def _by_handle(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(handle: int, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{handle}")
            return self.event(name, path, lambda: real(handle, *args))

        return call

    def _opener(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real(file, mode, buffering, *args, **more)
            path = _absolute(file)
            if not path.startswith(self.root + os.sep):
                return real(file, mode, buffering, *args, **more)
            return _open_counted(self, path, mode, *args, **more)

        return opened


class _Counted(io.FileIO):
    """A file whose every write is an event."""

    def __init__(self, tape: Tape, path: str, mode: str) -> None:
        self.tape = tape
        tape.event(f"open({mode})", path, lambda: super(_Counted, self).__init__(path, mode))

    def write(self, data: Any) -> int:
        def part(size: int) -> int:
            self.tape.dirty.add(os.fstat(self.fileno()).st_ino)
            return super(_Counted, self).write(memoryview(data).cast("B")[:size])

        size = memoryview(data).nbytes
        written = self.tape.event(
            "write", str(self.name), lambda: part(size), torn=lambda: part(size // 2)
        )
        return int(written)

    def truncate(self, size: int | None = None) -> int:
        def change() -> int:
            self.tape.dirty.add(os.fstat(self.fileno()).st_ino)
            return super(_Counted, self).truncate(size)

        return int(self.tape.event("truncate", str(self.name), change))


def _open_counted(
    tape: Tape, path: str, mode: str, encoding: Any = None, errors: Any = None, newline: Any = None
) -> Any:
    raw = _Counted(tape, path, mode.replace("b", "").replace("t", ""))
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


def _serialize_file(tensors: Any, path: Any, metadata: Any = None) -> None:
    from safetensors import serialize

    with open(path, "wb") as file:
        file.write(serialize(tensors, metadata))


def _wrap(name: str, make: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(os, name, make(name, getattr(os, name)))


def _absolute(path: Any, dir_fd: int | None = None) -> str:
    text = os.fsdecode(path)
    if dir_fd is not None:
        text = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text)
    folder, name = os.path.split(os.path.abspath(text))
    return os.path.join(os.path.realpath(folder), name)


def files_of(folder: str) -> list[tuple[str, os.stat_result]]:
    """Everything in a folder, by name, with its status."""
    found = []
    for place, folders, files in _walk(folder):
        for name in sorted(folders + files):
            path = os.path.join(place, name)
            found.append((path, _lstat(path)))
    return sorted(found)
