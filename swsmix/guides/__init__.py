"""The guides, one Markdown file for each job: what you read with `swsmix guide NAME`.

A guide begins with its title and one line that says what you can do after reading it. Its Python
blocks run in order, and the tests run them (`tests/test_readme.py`).
"""

from __future__ import annotations

from importlib.resources import files

_NAMES = (
    "training",
    "regularisation",
    "compression",
    "shipping",
    "posterior",
    "inspection",
    "frameworks",
    "cost",
    "mathematics",
    "changes",
)


def names() -> tuple[str, ...]:
    """The names of all guides.

    Returns:
        The names, in the order in which a newcomer needs them.

    Example:
        >>> names()[:2]
        ('training', 'regularisation')
    """
    return _NAMES


def text(name: str) -> str:
    """One guide as Markdown.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: if there is no guide of that name.

    Example:
        >>> text("training").splitlines()[0]
        '# Training'
    """
    if name not in _NAMES:
        raise ValueError(f"no guide {name!r}; the guides are {', '.join(_NAMES)}")
    return files("swsmix.guides").joinpath(f"{name}.md").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What a guide is for, in one line.

    Args:
        name: one of `names()`.

    Returns:
        The line below its title.

    Raises:
        ValueError: if there is no guide of that name.

    Example:
        >>> summary("inspection")
        'See what any checkpoint holds: its clusters, its entropy, its history.'
    """
    return text(name).splitlines()[2]
