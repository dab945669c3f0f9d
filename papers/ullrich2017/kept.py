"""What the units keep: the results in a folder, and the tensors of the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from papers.ullrich2017.settings import Setting
from swsmix import GaussianMixture
from swsmix.compression.recipe import Compressed
from swsmix.compression.snap import assign
from swsmix.training.history import History
from swsmix.training.runs import replacing


class Results:
    """What the units have left in a folder."""

    def __init__(self, folder: Path) -> None:
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]
        self.folder = folder
        self.compressed = [r for r in results if r["kind"] == "compressed"]
        self.pretrained = [r for r in results if r["kind"] == "pretrained"]
        self.cifar = [r for r in results if r["kind"] == "cifar10"]

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The results of each setting of the tables, over the seeds."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for result in self.compressed:
            if not result["setting"].startswith("sweep-"):
                rows.setdefault(result["setting"], []).append(result)
        return rows

    def portrait(self, setting: str) -> Portrait | None:
        """The tensors that one setting has kept for the figures."""
        file = self.folder / f"{setting}.safetensors"
        return Portrait(load_file(file)) if file.is_file() else None


class Portrait:
    """One compressed network: weights before, retrained and decoded, mixtures, histories."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def weights(self, when: str, name: str | None = None) -> Tensor:
        """The weights of a tensor, or of all: "before", "retrained" or "after"."""
        prefix = f"{when}/"
        names = [k for k in self.tensors if k.startswith(prefix)]
        chosen = names if name is None else [prefix + name]
        return torch.cat([self.tensors[k].float() for k in chosen])

    def mixture(self, group: str) -> GaussianMixture:
        """The final mixture of a group."""
        return GaussianMixture(*(self.tensors[f"{w}/{group}"] for w in ("mixing", "mean", "std")))

    def snapped(self, name: str) -> Tensor:
        """A tensor's values in the order of its neurons before they were sorted for the file."""
        mixture = self.mixture(name)
        return mixture.mean[assign(mixture, self.weights("retrained", name))]

    def history(self, phase: str) -> History:
        """The history of a phase."""
        prefix = f"history/{phase}/"
        mine = {k[len(prefix) :]: t for k, t in self.tensors.items() if k.startswith(prefix)}
        return History.from_tensors(mine)


def keep_for_figures(
    setting: Setting,
    seed: int,
    results: Path,
    dense: dict[str, Tensor],
    retrained: dict[str, Tensor],
    decoded: dict[str, Tensor],
    done: Compressed,
) -> None:
    """What the figures draw: histories; weights before, retrained, decoded (20,000 per tensor)."""
    if seed or not setting.portrait:
        return
    tensors: dict[str, Tensor] = {}
    for name in done.index:
        states = {"before": dense, "retrained": retrained, "after": decoded}
        size = dense[name].numel()
        rows = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:20_000]
        for when, state in states.items():
            # Small tensors whole and in their order.
            flat = state[name].reshape(-1)
            tensors[f"{when}/{name}"] = (flat if size <= 20_000 else flat[rows]).half()
    for group, mixture in done.prior.mixtures.items():
        for what in ("mixing", "mean", "std"):
            tensors[f"{what}/{group}"] = getattr(mixture, what).detach().clone()
    for phase, history in done.histories.items():
        thin = History(history.scalars, history.series, {})
        for key, t in thin.to_tensors().items():
            tensors[f"history/{phase}/{key}"] = t.float().contiguous()
    file = results / f"{setting.name}.safetensors"
    with replacing(file) as temporary:
        save_file(tensors, temporary)
