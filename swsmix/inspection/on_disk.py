"""The tensors of safetensors files, each mapped into memory only while it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class OnDisk(Mapping[str, Tensor]):
    """Name -> tensor, which is mapped anew each time that it is asked for.

    A file that stays mapped keeps all of its pages that have been read in memory; so mapped, a
    tensor gives them back as it is let go, and what is not read (its shape is asked for) takes
    none.

    Args:
        places: name -> file.

    Example:
        >>> from safetensors.torch import save_file
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.safetensors"
        ...     save_file({"w": torch.ones(2)}, path)
        ...     OnDisk({"w": path})["w"]
        tensor([1., 1.])
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = dict(places)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, mapped."""
        with safe_open(self.places[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.places)


def metadata_of(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
