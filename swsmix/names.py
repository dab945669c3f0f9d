"""Names of tensors and files, as they may be shown.

A foreign checkpoint chooses its names. A terminal would obey the control characters in one, XML
forbids them, and a file system has a limit to their length.
"""

from __future__ import annotations

import hashlib

_MAX_FILE = 100


def visible(text: str) -> str:
    r"""A text with the escapes of the characters that are not printable, or change the direction.

    Returns:
        Printable characters and spaces.

    Example:
        >>> print(visible("fc\x1b[2J.weight"))
        fc\x1b[2J.weight
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(name: str, length: int) -> str:
    """A name of at most `length` visible characters.

    Its dotted parts shrink to a letter and their digits, the first one first, as far as needed:
    the end tells the tensors of a network apart, and so do the numbers. Then its middle is left
    out.

    Returns:
        The name, printable.

    Example:
        >>> shorten("encoder.layers.11.attention.weight", 24)
        'e.l.11.attention.weight'
        >>> shorten("attention", 6)
        'a…tion'
    """
    parts = visible(name).split(".")
    for i, part in enumerate(parts):
        if len(".".join(parts)) <= length or len(parts) == 1:
            break
        parts[i] = part[:1] + "".join(c for c in part[1:] if c.isdigit())
    shown = ".".join(parts)
    head = (length - 1) // 3
    tail = length - 1 - head
    return shown if len(shown) <= length else f"{shown[:head]}…{shown[len(shown) - tail :]}"


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
