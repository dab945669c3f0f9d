"""Groups as keys of an `nn.ModuleDict`, and a check that a saved prior had the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def key(group: str) -> str:
    """The key of a group: `nn.ModuleDict` forbids dots, and the names of its own methods."""
    return f"[{group.replace('%', '%25').replace('.', '%2E')}]"


def group(key: str) -> str:
    """The group of a key, as `key` made it.

    Example:
        >>> group(key("fc1.weight"))
        'fc1.weight'
    """
    return key[1:-1].replace("%2E", ".").replace("%25", "%")


def check_saved(state: Mapping[str, object], groups: Iterable[str], mode: str) -> None:
    """Check that a saved state is one of a prior with these groups, in this mode.

    Raises:
        ValueError: if not.
    """
    saved = {name.split(".")[1] for name in state if name.startswith("groups.")}
    if saved != set(map(key, groups)):
        names = sorted(map(group, saved))
        raise ValueError(
            f"the saved prior has the groups {names}, this one has "
            f"{sorted(groups)}: make it with the same groups="
        )
    its_mode = "gradient" if any(".parametrizations." in name for name in state) else "em"
    if its_mode != mode:
        raise ValueError(f"the prior was saved with mode={its_mode!r}, this one has {mode!r}")
