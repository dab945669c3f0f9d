"""The history of a training run, as plain data from which every figure can be redrawn."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swsmix.diagnosis import KINDS, Finding
from swsmix.mixture import GaussianMixture
from swsmix.tables.regions import decision_regions

NUM_BINS = 256
_LARGEST = 1e300  # so that every number of a history is finite


@dataclass(repr=False)
class History:
    """What happened in training: one record for the start and one after every epoch or round.

    Attributes:
        scalars: name -> one float per record. `fit` writes `epoch`, `step`, `seconds`, `tau`
            (as it acts), `data_loss` (mean nats per case), `nll` (R(w), nats, all groups),
            `hyper_prior` (-log p(phi), nats), `objective` (data_loss + tau / num_data * the
            penalty), `train_measure` and `validation_measure` (nan where there is none).
        series: group -> name -> one tensor per record: `mixing`, `mean`, `std`, `count` (N_j, the
            expected number of weights of each component), `claimed` (the number of weights for
            which it is the most responsible), each (k,), and the weight histogram as
            `bin_counts` (bins,) and `bin_edges` (bins + 1,); and `findings` (5,), what is wrong,
            by the kinds of `swsmix.diagnosis.KINDS`: the finding's number, 0 where there is none.
        initial: group -> the weights before training, flattened (n,).

    Example:
        >>> history = History()
        >>> mixture = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.1])
        >>> w = torch.tensor([0.0, 1.0, 1.1])
        >>> history.record({"epoch": 0.0}, {"all": (w, mixture, torch.tensor([1.0, 2.0]))})
        >>> history.stacked("all", "mean")
        tensor([[0., 1.]], dtype=torch.float64)
    """

    scalars: dict[str, list[float]] = field(default_factory=dict)
    series: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the prior's mixtures."""
        return tuple(self.series)

    def __repr__(self) -> str:
        """One line; its tensors would fill the screen."""
        return f"History({len(self)} records, groups {list(self.groups)}, {list(self.scalars)})"

    def _repr_html_(self) -> str:
        """In a notebook: each scalar at the first and the last record, and the clusters."""
        rows = {name: (values[0], values[-1]) for name, values in self.scalars.items() if values}
        for group in self.groups:
            clusters = self.num_clusters(group).tolist()
            rows[f"clusters of {group}"] = clusters[0], clusters[-1]
        lines = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{first:.6g}</td><td>{last:.6g}</td></tr>"
            for name, (first, last) in rows.items()
        )
        head = f"<tr><th>History, {len(self)} records</th><th>first</th><th>last</th></tr>"
        return f"<table>{head}{lines}</table>"

    def to_pandas(self) -> Any:
        """The scalars as a pandas DataFrame: a row per record, and the clusters of each group.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_pandas must have the package pandas, got none: pip install pandas, or use "
                "history.scalars, which is a dictionary of lists"
            ) from error
        clusters = {f"clusters/{g}": self.num_clusters(g).tolist() for g in self.groups}
        return pandas.DataFrame({**self.scalars, **clusters})

    def __len__(self) -> int:
        """The number of records."""
        return len(next(iter(self.scalars.values()), []))

    def record(
        self,
        scalars: Mapping[str, float | int],
        groups: dict[str, tuple[Tensor, GaussianMixture, Tensor]],
        findings: Mapping[str, Iterable[Finding]] = MappingProxyType({}),
    ) -> None:
        """Append one record.

        Args:
            scalars: the record's scalars, the same names every time.
            groups: group -> (weights (n,), mixture, N_j (k,)).
            findings: group -> what is wrong with it.

        Raises:
            FloatingPointError: if weights are nan or inf; nothing is recorded then.
        """
        for group, (weights, _, _) in groups.items():
            if bad := int((~weights.isfinite()).sum()):
                raise FloatingPointError(
                    f"{bad:,} of the {weights.numel():,} weights of {group!r} are nan or inf, and "
                    "cannot be recorded: lower the learning rate or tau"
                )
        for name, value in scalars.items():
            self.scalars.setdefault(name, []).append(float(value))
        for group, (weights, mixture, count) in groups.items():
            claimed = decision_regions(mixture).count(weights)
            weights = weights.detach().reshape(-1).float().cpu()
            self.initial.setdefault(group, weights.clone())
            bin_counts, bin_edges = torch.histogram(weights, NUM_BINS)
            entry = {
                "mixing": mixture.mixing,
                "mean": mixture.mean,
                "std": mixture.std,
                "count": count,
                "claimed": claimed,
                "bin_counts": bin_counts,
                "bin_edges": bin_edges,
                "findings": _numbers(findings.get(group, ())),
            }
            columns = self.series.setdefault(group, {name: [] for name in entry})
            for name in columns:  # a resumed run of an older version has fewer
                columns[name].append(entry[name].detach().double().cpu().clone())

    def stacked(self, group: str, name: str) -> Float[Tensor, "records ..."]:
        """One series of a group as a tensor with a leading axis of records.

        Raises:
            KeyError: if there is no such group or series; the message lists what there is.
        """
        if group not in self.series:
            raise KeyError(f"no group {group!r} in this history; it has {list(self.series)}")
        if name not in self.series[group]:
            raise KeyError(f"no series {name!r}; there are {list(self.series[group])}")
        return torch.stack(self.series[group][name])

    def claimed(self, group: str) -> Float[Tensor, "records k"]:
        """The number of weights for which each component is the most responsible, at each record.

        Returns:
            The claims; of a run that was recorded without them, the expected numbers N_j.
        """
        recorded = "claimed" in self.series.get(group, {})
        return self.stacked(group, "claimed" if recorded else "count")

    def num_clusters(self, group: str) -> Float[Tensor, " records"]:
        """The number of clusters, components that claim at least one weight, at each record.

        Of components that are the same only one claims weights: duplicates are one cluster.
        """
        return (self.claimed(group) >= 1).sum(1).double()

    def findings(self, group: str) -> list[Finding]:
        """What was wrong with a group at the last record; nothing in runs that did not record it.

        Example:
            >>> history = History()
            >>> mixture = GaussianMixture([1.0], [0.0], [0.1])
            >>> state = torch.randn(9), mixture, torch.tensor([9.0])
            >>> history.record({}, {"all": state}, {"all": [Finding("frozen", 0.99)]})
            >>> history.findings("all")
            [Finding(kind='frozen', value=0.99)]
        """
        values = self.series.get(group, {}).get("findings", [])
        last = values[-1].tolist() if values else [0.0] * len(KINDS)
        return [Finding(k, v) for k, v in zip(KINDS, last, strict=True) if v]

    def to_tensors(self) -> dict[str, Tensor]:
        """The history as a flat dictionary of tensors, for safetensors."""
        tensors = {
            f"scalars/{k}": torch.tensor(v, dtype=torch.float64, device="cpu")
            for k, v in self.scalars.items()
        }
        tensors |= {f"initial/{group}": w for group, w in self.initial.items()}
        for group, columns in self.series.items():
            for name in columns:
                tensors[f"{name}/{group}"] = self.stacked(group, name)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> History:
        """The inverse of `to_tensors`.

        Raises:
            ValueError: if a name is not of a history, or the numbers of records differ.
        """
        history = cls()
        lengths: dict[str, dict[str, int]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if not name:
                raise ValueError(f"{key!r} is not a series of a history (KIND/NAME)")
            if kind != "initial":
                if value.ndim == 0:
                    raise ValueError(f"{key!r} is one number, not a series of records")
                where = "scalars" if kind == "scalars" else name
                lengths.setdefault(where, {})[key] = len(value)
            if kind == "scalars":
                history.scalars[name] = value.tolist()
            elif kind == "initial":
                history.initial[name] = value
            else:
                history.series.setdefault(name, {})[kind] = list(value)
        for series in lengths.values():
            if len(set(series.values())) > 1:
                raise ValueError(f"the series have different numbers of records: {series}")
        return history


def _numbers(findings: Iterable[Finding]) -> Tensor:
    values = {found.kind: min(found.value, _LARGEST) for found in findings}
    row = [values.get(kind, 0.0) for kind in KINDS]
    return torch.tensor(row, dtype=torch.float64, device="cpu")
