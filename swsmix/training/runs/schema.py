"""What a checkpoint's files must hold; an error names the first field that does not.

A number that is no longer finite, or a field of another type, would otherwise go into the training
unseen, or stop it far from its cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from swsmix.attach.entry import check_state
from swsmix.diagnosis import KINDS

_PER_COMPONENT = ("mixing", "mean", "std", "count", "claimed")
_PER_BIN = ("bin_counts", "bin_edges")
_NEVER_NAN = ("epoch", "step", "seconds", "tau")  # a loss that was not measured is nan
_MIXTURE = ("mixture.mixing", "mixture.mean", "mixture.std")


def check_training(state: Any) -> dict[str, Any]:
    """Check the content of `training.pt`; entries that `fit` does not write are let through.

    Raises:
        ValueError: naming the field.
    """
    training = _dictionary(state, "the whole")
    for field, tensor in _tensors(training):
        if tensor._backward_hooks:
            _refuse(field, "a tensor without hooks", "one with hooks")
    _count(training, "epoch")
    if "job" in training:
        _check_job(_dictionary(training["job"], "job"))
    if "best" in training:
        _check_best(_dictionary(training["best"], "best"))
    return training


def _check_job(job: dict[str, Any]) -> None:
    _count(job, "steps", "job.")
    _check_generator(job.get("rng"), "job.rng")
    if "loader_rng" in job:
        _check_generator(job["loader_rng"], "job.loader_rng")
    if "cuda_rng" in job:
        for number, state in enumerate(_list(job["cuda_rng"], "job.cuda_rng")):
            _check_generator(state, f"job.cuda_rng.{number}")
    for name in ("optimizer", "attachment", "lr_scheduler", "loss"):
        if name in job:
            _dictionary(job[name], f"job.{name}")
    for part, name in _dictionary(job.get("made_with", {}), "job.made_with").items():
        if not isinstance(name, str):
            _refuse(f"job.made_with.{part}", "a name", name)
    if "attachment" in job:
        _check_attachment(job["attachment"])
    if "optimizer" in job:
        state = job["optimizer"].get("state")
        for field, tensor in _tensors(_dictionary(state, "job.optimizer.state")):
            if tensor.ndim or tensor.isnan():  # a number of its own may be infinite
                _check_finite(f"job.optimizer.state.{field}", tensor)
        groups = _list(job["optimizer"].get("param_groups"), "job.optimizer.param_groups")
        for number, group in enumerate(groups):
            rate = _dictionary(group, f"job.optimizer.param_groups.{number}").get("lr", 0.0)
            if not isinstance(rate, Tensor) and not _is_finite(rate):
                _refuse(f"job.optimizer.param_groups.{number}.lr", "a finite number", rate)
    for field, tensor in _tensors(job.get("loss", {})):
        _check_finite(f"job.loss.{field}", tensor)


def _check_attachment(attachment: dict[str, Any]) -> None:
    _count(attachment, "tick", "job.attachment.")
    if "entry" in attachment:
        try:
            check_state(attachment["entry"])
        except ValueError as error:
            raise ValueError(f"`job.attachment.entry`: {error}") from error
    diagnosis = _dictionary(attachment.get("diagnosis", {}), "job.attachment.diagnosis")
    for group, value in _dictionary(
        diagnosis.get("held", {}), "job.attachment.diagnosis.held"
    ).items():
        if not _is_finite(value):
            _refuse(f"job.attachment.diagnosis.held.{group}", "a finite number", value)
    seen = _dictionary(diagnosis.get("seen", {}), "job.attachment.diagnosis.seen")
    for group, tensors in seen.items():
        where = f"job.attachment.diagnosis.seen.{group}"
        for name, values in _dictionary(tensors, where).items():
            if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != 6:
                _refuse(f"{where}.{name}", "a matrix of six rows", values)
            _check_finite(f"{where}.{name}", values)


def _check_best(best: dict[str, Any]) -> None:
    value = best.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        _refuse("best.value", "a number", value)
    _count(best, "since", "best.")
    for name, state in _dictionary(best.get("states"), "best.states").items():
        for key, tensor in _dictionary(state, f"best.states.{name}").items():
            if not isinstance(tensor, Tensor):
                _refuse(f"best.states.{name}.{key}", "a tensor", tensor)
            if tensor.is_floating_point() and name != "prior" and tensor.isnan().any():
                _refuse(f"best.states.{name}.{key}", "numbers", "nan")
        if name == "prior":
            check_prior(state, "best.states.prior.")


def check_prior(state: Mapping[str, Tensor], where: str = "") -> Mapping[str, Tensor]:
    """Check the content of `prior.safetensors`: mixtures that are mixtures.

    Raises:
        ValueError: naming the tensor.
    """
    for key, values in state.items():
        if key.endswith(_MIXTURE):
            _check_finite(where + key, values)
            if key.endswith("std") and not (values > 0).all():
                _refuse(where + key, "positive numbers", values.min().item())
            if key.endswith("mixing") and not (
                (values >= 0).all() and abs(values.double().sum().item() - 1.0) < 1e-3
            ):
                _refuse(where + key, "proportions that add up to 1", values.tolist())
        elif ".hyper_" in key and values.isnan().any():
            _refuse(where + key, "numbers", "nan")
    return state


def check_groups(groups: Any) -> dict[str, tuple[str, ...]]:
    """Check group -> names of its tensors, from the metadata of `prior.safetensors`.

    Raises:
        ValueError: if it is something else.
    """
    for group, names in _dictionary(groups, "groups").items():
        if not all(isinstance(name, str) for name in _list(names, f"groups.{group}")):
            _refuse(f"groups.{group}", "names of tensors", names)
    return {group: tuple(names) for group, names in groups.items()}


def check_history(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Check the content of `history.safetensors`, beside what `History.from_tensors` checks.

    Raises:
        ValueError: naming the series.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, values in tensors.items():
        kind, _, name = key.partition("/")
        if kind in (*_PER_COMPONENT, *_PER_BIN):
            if values.ndim != 2:
                _refuse(key, "a matrix, a row per record", f"the shape {tuple(values.shape)}")
            columns = "k" if kind in _PER_COMPONENT else kind
            shapes.setdefault(f"{name}: {columns}", {})[key] = tuple(values.shape)
        elif kind == "findings" and (values.ndim != 2 or values.shape[1] != len(KINDS)):
            _refuse(
                key, f"a row per record, of {len(KINDS)} numbers", f"the shape {(*values.shape,)}"
            )
        elif kind in ("initial", "scalars") and values.ndim != 1:
            _refuse(key, "a vector", f"the shape {tuple(values.shape)}")
        if not values.is_floating_point():
            _refuse(key, "floating-point numbers", values.dtype)
        if kind != "scalars" or name in _NEVER_NAN:
            _check_finite(key, values)
        if kind == "std" and not (values > 0).all():
            _refuse(key, "positive numbers", values.min().item())
        if kind == "mixing" and not (
            (values >= 0).all() and ((values.double().sum(1) - 1.0).abs() < 1e-4).all()
        ):
            _refuse(key, "proportions that add up to 1", values.tolist())
        if name == "epoch" and (values.diff() < 0).any():
            _refuse(key, "numbers that do not fall", values.tolist())
    for found in shapes.values():
        if len(set(found.values())) > 1:
            raise ValueError(f"series of one mixture have different shapes: {found}")
    records = {k: len(v) for k, v in tensors.items() if not k.startswith("initial/")}
    if len(set(records.values())) > 1:
        raise ValueError(f"the series have different numbers of records: {records}")
    for name in {key.partition("/")[2] for key in tensors if not key.startswith("scalars/")}:
        for kind in ("initial", "mixing", "mean", "std", "count", *_PER_BIN):
            if f"{kind}/{name}" not in tensors:
                _refuse(f"{kind}/{name}", "a series of the mixture", None)
    return tensors


def _refuse(field: str, wanted: str, got: Any) -> None:
    text = "nothing" if got is None else str(got) if isinstance(got, str) else repr(got)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    raise ValueError(f"`{field}`: needs {wanted}, got {text}")


def _dictionary(value: Any, field: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        _refuse(field, "a dictionary", value)
    return dict(value)


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(field, "a list", value)
    return list(value)


def _count(state: Mapping[str, Any], name: str, where: str = "") -> None:
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _refuse(where + name, "a whole number from 0 on", value)


def _check_generator(value: Any, field: str) -> None:
    if not isinstance(value, Tensor) or str(value.dtype) != "torch.uint8" or value.ndim != 1:
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else value
        _refuse(field, "the bytes of a random generator", got)


def _check_finite(field: str, values: Tensor) -> None:
    if values.is_floating_point() and not values.isfinite().all():
        bad = values[~values.isfinite()].flatten()[0].item()
        _refuse(field, "finite numbers", bad)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _tensors(value: Any, field: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, each with its place."""
    if isinstance(value, Tensor):
        yield field.removeprefix("."), value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(each, f"{field}.{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _tensors(each, f"{field}.{number}")
