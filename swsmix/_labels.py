"""Labels: names and numbers as they may be shown.

A foreign checkpoint chooses its names. A terminal would obey the control characters in one, XML
forbids them, and a file system has a limit to their length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

_MAX_FILE = 100


def visible(text: str, *, ascii_only: bool = False) -> str:
    r"""A text with the escapes of characters that are not printable, or change the direction.

    Args:
        text: any string.
        ascii_only: escape all that is not ASCII.

    Returns:
        Printable characters and spaces.

    Example:
        >>> print(visible("fc\x1b[2J.weight"))
        fc\x1b[2J.weight
    """
    return "".join(
        c if c.isprintable() and (c.isascii() or not ascii_only) else _escape(c) for c in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def shorten(name: str, length: int, *, ascii_only: bool = False) -> str:
    """A name of at most `length` visible characters.

    Its dotted parts shrink to a letter and their digits, the first one first, as far as needed:
    the end tells the tensors of a network apart, and so do the numbers. Then its middle is left
    out.

    Args:
        name: any string.
        length: at least 1.
        ascii_only: of ASCII alone.

    Returns:
        The name, printable.

    Example:
        >>> shorten("encoder.layers.11.attention.weight", 24)
        'e.l.11.attention.weight'
        >>> shorten("attention", 6)
        'a…tion'
    """
    parts = visible(name, ascii_only=ascii_only).split(".")
    for i, part in enumerate(parts):
        if len(".".join(parts)) <= length or len(parts) == 1:
            break
        parts[i] = part[:1] + "".join(c for c in part[1:] if c.isdigit())
    shown = ".".join(parts)
    head = (length - 1) // 3
    tail = length - 1 - head
    mark = "~" if ascii_only else "…"
    return shown if len(shown) <= length else f"{shown[:head]}{mark}{shown[len(shown) - tail :]}"


def file_name(name: str) -> str:
    """A name without what a file system may not like; different names stay different.

    Returns:
        At most 100 letters, digits, dots, dashes and underscores of ASCII: the name itself if it
        is made of them, else ending in a checksum of it.

    Example:
        >>> file_name("hinton-fc.weight"), file_name("hinton-a/b")
        ('hinton-fc.weight', 'hinton-a_b-212d9483')
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    if plain == name and len(name) <= _MAX_FILE:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{plain[: _MAX_FILE - 9]}-{digest}"


def number_of(count: int, noun: str) -> str:
    """A count with its noun, in the plural where there is not exactly one.

    Returns:
        Such as "1 weight" or "1,000 weights".

    Example:
        >>> number_of(1, "weight"), number_of(2000, "weight")
        ('1 weight', '2,000 weights')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_number(value: Any, _: Any = None, *, digits: int = 3) -> str:
    """A number in three digits, with k, M, G for thousands; also an axis formatter.

    Args:
        value: the number.
        digits: significant ones.

    Returns:
        Such as "1.23k" or "−0.5".

    Example:
        >>> format_number(1234), format_number(1e30)
        ('1.23k', '1e+30')
    """
    rounded = 1 - 0.5 * 10.0**-digits  # and above is 1
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded * size <= abs(value) < rounded * 1e12:
            return f"{value / size:.{digits}g}{unit}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def distinct(
    values: Sequence[float], form: Callable[..., str] = format_number, *, digits: int = 3
) -> list[str]:
    """Numbers in as many digits as tell those apart that differ by a thousandth of their range.

    One below a millionth of the range is zero.

    Args:
        values: the numbers.
        form: form(value, digits=digits) -> text.
        digits: the least number of them.

    Returns:
        Their texts.

    Example:
        >>> distinct([999_998.0, 1_000_000.0, 1_000_002.0])
        ['999.998k', '1M', '1.000002M']
        >>> distinct([-0.5, -9.51e-09, 0.5])
        ['−0.5', '0', '0.5']
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    far = 1e-3 * (max(values) - min(values)) if values else 0.0
    values = [0.0 if abs(v) < 1e-3 * far else v for v in values]
    pairs = [(i, j) for i, j in pairwise(order) if values[j] - values[i] > far]
    shown: list[str] = []
    for more in range(digits, 18):
        shown = [form(v, digits=more) for v in values]
        if all(shown[i] != shown[j] for i, j in pairs):
            break
    return shown
