"""Files of data sets, from a mirror through pooch, verified by their checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def retrieve(
    name: str, checksum: str, mirrors: Sequence[str], cache: str | Path | None, tried: list[str]
) -> Path | None:
    """A file from the cache or from the first mirror that has it.

    Args:
        name: the file's name.
        checksum: `"md5:..."` or `"sha256:..."`.
        mirrors: addresses of folders with the file, tried in this order; or one.
        cache: the folder to keep it in; None for pooch's cache folder of swsmix.
        tried: receives a line for each mirror that failed.

    Returns:
        Its path, or None if no mirror has it.
    """
    import pooch  # here, because only data sets need it

    folder = Path(cache) if cache is not None else Path(pooch.os_cache("swsmix"))
    for mirror in [mirrors] if isinstance(mirrors, str) else mirrors:
        url = f"{mirror.rstrip('/')}/{name}"
        try:
            return Path(pooch.retrieve(url, checksum, fname=name, path=folder))
        except (OSError, ValueError) as error:  # no network, not found, or a wrong checksum
            tried.append(f"{url}: {_why(error)}")
    return None


def _why(error: OSError | ValueError) -> str:
    """Why a download failed, in words: the libraries' own lines name sockets and retries."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code} {response.reason}"
    name = type(error).__name__
    if "Timeout" in name or "Connection" in name:
        return "no connection to it (offline, or the server is down)"
    if isinstance(error, ValueError):
        return "what it serves is another file (wrong checksum)"
    return f"{name}: {error}"
