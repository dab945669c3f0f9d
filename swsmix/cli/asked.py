"""What a user may ask of a compressed file, as it is typed."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20}
_UNITS["gib"] = 2**30


def parse_size(text: str) -> int:
    """Bytes of "8MB", "500kB", "4MiB" or "20000".

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> parse_size("1.5kB"), parse_size("2 MiB")
        (1500, 2097152)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or (bytes_ := _bytes(*match.groups())) < 1:
        raise ValueError(
            f"--size of `swsmix compress` is a number of bytes, with B, kB, MB, GB, KiB, MiB or "
            f"GiB if you like, such as 8MB; got {text!r}"
        )
    return bytes_


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def check_one(*, lossless: bool, curve: bool, **asked: object) -> str:
    """The one option that is given, or nothing.

    Raises:
        ValueError: if more than one is given, or one that --lossless leaves no room for.
    """
    options = {f"--{name}": value for name, value in asked.items()}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"each of {', '.join(options)} of `swsmix compress` decides alone, but got "
            f"{' and '.join(given)}: give one of them"
        )
    if lossless and (given or curve):
        raise ValueError(
            f"--lossless of `swsmix compress` changes no weight: omit it or "
            f"{given[0] if given else '--curve'}"
        )
    return given[0] if given else ""
