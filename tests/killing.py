"""A command, killed at any of its file-system events, in a child that is forked for it.

The process that forks has imported everything already and has one thread. In the child the calls
that change files are wrapped: each is an event with a number. The child kills itself before the
event that it was told, or in the middle of it if it is a write, or once the command has ended.
Writers outside Python (safetensors) write through Python here, the same bytes.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tape import Kill, Record, Tape, files_of


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (-9: killed), what it printed, and its record."""

    code: int
    output: str
    record: Record | None


def run(
    action: Callable[[], object],
    folder: Path,
    *,
    kill: Kill | None = None,
    look: Callable[[Path], Any] | None = None,
    limit: float = 120.0,
) -> Ended:
    """Run an action in `folder` in a child; with `look`, record its events."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.chdir(folder)
                signal.alarm(int(limit))  # a hang is a fault: code -14
                code = _in_child(action, folder, kill, look, answer)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        answer.seek(0)
        record = pickle.load(answer) if look and os.fstat(answer.fileno()).st_size else None
        text = output.read().decode(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), text, record)


def _in_child(
    action: Callable[[], object],
    folder: Path,
    kill: Kill | None,
    look: Callable[[Path], Any] | None,
    answer: Any,
) -> int:
    time.monotonic = lambda: 0.0  # the seconds in histories and results are compared too
    tape = Tape(os.path.realpath(folder), kill, look)
    code = 0
    with tape.installed():
        try:
            action()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if kill is not None:
        tape.end()
    if look is not None:
        tape.end()
        pickle.dump(tape.record, answer)
        answer.flush()
    return code


def tree(folder: Path) -> dict[str, Any]:
    """Name -> (mode, contents) of everything in a folder, tensors by value."""
    found: dict[str, Any] = {}
    for path, at in files_of(str(folder)):
        name = os.path.relpath(path, folder)
        contents: Any = None
        if stat.S_ISREG(at.st_mode):
            read = {".pt": _training, ".safetensors": _safetensors}.get(Path(path).suffix)
            contents = read(path) if read else Path(path).read_bytes()
        found[name] = (oct(at.st_mode), contents)
    return found


def _safetensors(path: str) -> Any:
    """The header as values, since the order of its metadata is by chance, and the data."""
    data = Path(path).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _training(path: str) -> Any:
    """A file of torch.save, with tensors as bytes: pickled text depends on what shares memory."""
    import torch

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return plain(torch.load(path, weights_only=True))
