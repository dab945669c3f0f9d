"""Names and numbers as text that is safe to show.

A foreign checkpoint may hold any names: a terminal would obey the control characters in one, XML
forbids them, and file systems limit their length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

_MAX_FILE_NAME = 100


def visible(text: str, *, ascii_only: bool = False) -> str:
    r"""The text with escapes for characters that are not printable or change the direction.

    Args:
        text: any string.
        ascii_only: also escape all characters that are not ASCII.

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
    """The name, printable, in at most `length` characters.

    Its dotted parts shrink to their first letter and their digits, from the left, as far as needed:
    the end and the numbers distinguish a network's tensors. If that is not enough, the middle is
    omitted.

    Args:
        name: any string.
        length: at least 1.
        ascii_only: use ASCII characters alone.

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
    """The name as a file name: at most 100 ASCII letters, digits, dots, dashes and underscores.

    Any other name is changed, and ends in a checksum, so that different names stay different.

    Example:
        >>> file_name("hinton-fc.weight"), file_name("hinton-a/b")
        ('hinton-fc.weight', 'hinton-a_b-212d9483')
    """
    allowed = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    if allowed == name and len(name) <= _MAX_FILE_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{allowed[: _MAX_FILE_NAME - 9]}-{digest}"


def number_of(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless the count is 1.

    Example:
        >>> number_of(1, "weight"), number_of(2000, "weight")
        ('1 weight', '2,000 weights')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_number(value: Any, _: Any = None, *, digits: int = 3) -> str:
    """A number in three significant digits, with k, M, G for thousands; also an axis formatter.

    Args:
        value: the number.
        digits: the number of significant digits.

    Example:
        >>> format_number(1234), format_number(1e30)
        ('1.23k', '1e+30')
    """
    rounded = 1 - 0.5 * 10.0**-digits  # the smallest number that is shown as 1
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded * size <= abs(value) < rounded * 1e12:
            return f"{value / size:.{digits}g}{unit}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def distinct(
    values: Sequence[float], form: Callable[..., str] = format_number, *, digits: int = 3
) -> list[str]:
    """Numbers as texts, with enough digits to distinguish those that differ by 1/1000 of the range.

    A number below a millionth of the range is shown as 0.

    Args:
        values: the numbers.
        form: form(value, digits=digits) -> text.
        digits: the smallest number of digits.

    Example:
        >>> distinct([999_998.0, 1_000_000.0, 1_000_002.0])
        ['999.998k', '1M', '1.000002M']
        >>> distinct([-0.5, -9.51e-09, 0.5])
        ['−0.5', '0', '0.5']
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    gap = 1e-3 * (max(values) - min(values)) if values else 0.0
    values = [0.0 if abs(v) < 1e-3 * gap else v for v in values]
    pairs = [(i, j) for i, j in pairwise(order) if values[j] - values[i] > gap]
    texts: list[str] = []
    for enough in range(digits, 18):
        texts = [form(v, digits=enough) for v in values]
        if all(texts[i] != texts[j] for i, j in pairs):
            break
    return texts
