"""Networks of one class as rows of one matrix, with the losses and gradients of all at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap

from swsmix.training.evaluation import Loss

Cases = tuple[Tensor, Tensor]
_STATEFUL = (nn.modules.batchnorm._NormBase,)


class Stack:
    """The trainable parameters of b networks and of their losses, as theta (b, p).

    Args:
        models: the networks, alike but for their values.
        losses: one loss for all, or one per network; of one with parameters each has a copy.
        data: x and y for all, or one such pair per network, of one shape.
        weights: how much each case counts for each network (b, n); 1 by default. At 0 it is left
            out, so that folds of the data are an ensemble.
        dtype: that of theta and of the floating-point data.

    Raises:
        ValueError: if the networks, losses or data differ in more than their values, or a network
            changes its own buffers in training.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        losses: Loss | Sequence[nn.Module],
        data: Cases | Sequence[Cases],
        *,
        weights: Float[Tensor, "b n"] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.models = list(models)
        self.losses: list[Any] = (
            list(losses) if isinstance(losses, Sequence) else [losses] * len(models)
        )
        if isinstance(losses, nn.Module) and any(p.requires_grad for p in losses.parameters()):
            self.losses = [copy.deepcopy(losses) for _ in models]  # each learns its own
        _check_alike(self.models, "networks")
        if len(self.losses) != len(self.models):
            raise ValueError(
                f"{len(self.models)} networks need one loss, or one each; got {len(self.losses)}"
            )
        self._own_losses = all(isinstance(loss, nn.Module) for loss in self.losses)
        if self._own_losses:
            _check_alike(self.losses, "losses", distinct=isinstance(losses, Sequence))
        self.dtype = dtype
        self.device = next(self.models[0].parameters()).device
        self._model = _bare(self.models[0])
        self._loss = _bare(self.losses[0]) if self._own_losses else self.losses[0]
        self._shapes = {
            name: p.shape for name, p in _parameters(self.models[0], self.losses[0]).items()
        }
        self._constants = self._stacked_constants()
        self.x, self.y, self._shared = self._cases(data)
        self.weights = None if weights is None else weights.to(self.device, dtype)
        if weights is not None and tuple(weights.shape) != (len(models), self.num_cases):
            raise ValueError(
                f"the case weights need the shape {(len(models), self.num_cases)}; got "
                f"{tuple(weights.shape)}"
            )

        if weights is not None and not (
            bool(weights.isfinite().all()) and bool((weights >= 0).all())
            and bool((weights.sum(1) > 0).all())
        ):  # fmt: skip
            raise ValueError(
                "the case weights must be finite and at least 0, and not all 0 for a member; got "
                f"sums {weights.sum(1).tolist()}"
            )
        self._try()

    def _try(self) -> None:
        """One evaluation, so that a network that cannot be stacked is refused by a sentence."""
        try:
            self.value(self.theta())
        except (RuntimeError, NotImplementedError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(
                f"networks of this kind ({type(self.models[0]).__name__}) cannot be evaluated side "
                f"by side on these data ({why}): train them one by one with `fit`"
            ) from error

    @property
    def num_cases(self) -> int:
        """n, of each network."""
        return self.y.shape[0 if self._shared else 1]

    def num_data(self) -> Float[Tensor, " b"]:
        """The number of cases that each network learns: the sum of their weights."""
        if self.weights is None:
            return self.theta().new_full((len(self.models),), float(self.num_cases))
        return self.weights.sum(1)

    def columns(self, names: Sequence[str]) -> Int[Tensor, " n"]:
        """Which columns of theta these parameters of the networks are, in their order."""
        begin, places = 0, {}
        for name, shape in self._shapes.items():
            places[name] = torch.arange(
                begin, begin + shape.numel(), dtype=torch.int64, device=self.device
            )
            begin += shape.numel()
        return torch.cat([places[f"model.{name}"] for name in names])

    def theta(self) -> Float[Tensor, "b p"]:
        """The parameters as they are in the networks and losses."""
        rows = [
            torch.cat([p.detach().reshape(-1).to(self.dtype) for p in _parameters(*pair).values()])
            for pair in zip(self.models, self.losses, strict=True)
        ]
        return torch.stack(rows)

    @torch.no_grad()
    def write_(self, theta: Float[Tensor, "b p"]) -> None:
        """Put theta back into the networks and losses."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        for row, pair in zip(theta, zip(self.models, self.losses, strict=True), strict=True):
            for part, p in zip(row.split(sizes), _parameters(*pair).values(), strict=True):
                p.copy_(part.view(p.shape))

    def value_and_gradient(
        self, theta: Float[Tensor, "r p"], rows: Int[Tensor, " r"], batch: Tensor | None = None
    ) -> tuple[Float[Tensor, " r"], Float[Tensor, "r p"]]:
        """-log p(data | theta) of some of the networks, in nats, and its gradient.

        Args:
            theta: their parameters.
            rows: which of the networks they are.
            batch: the cases, by number; all by default.

        Returns:
            The sums over the cases (r,), and gradients (r, p).
        """
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            value = self._losses_of(leaf, rows, batch)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    @torch.no_grad()
    def value(self, theta: Float[Tensor, "b p"]) -> Float[Tensor, " b"]:
        """-log p(data | theta) of every network, in nats."""
        everyone = torch.arange(len(theta), dtype=torch.int64, device=theta.device)
        return self._losses_of(theta, everyone, None)

    def shared_cases(self) -> Cases | None:
        """(x, y), if all networks learn the same cases, each of them once."""
        return (self.x, self.y) if self._shared and self.weights is None else None

    @torch.no_grad()
    def losses_at(
        self, theta: Float[Tensor, "b p"], outputs: Tensor, y: Tensor
    ) -> Float[Tensor, " b"]:
        """Each network's loss of its outputs on the same cases."""
        call = vmap(self._loss_of, in_dims=(0, 0, 0, None))
        found: Tensor = call(theta, self._constants, outputs, y)
        return found

    @torch.no_grad()
    def outputs(self, theta: Float[Tensor, "b p"], x: Tensor) -> Tensor:
        """f(x) of every network on the same cases (b, n, ...), in evaluation mode."""
        self._model.eval()
        try:
            call = vmap(self._output, in_dims=(0, 0, None), randomness="different")
            return call(theta, self._constants, _real(x, self.dtype).to(self.device))
        finally:
            self._model.train()

    def _losses_of(self, theta: Tensor, rows: Tensor, batch: Tensor | None) -> Tensor:
        everyone = len(rows) == len(self.models)
        constants = (
            self._constants if everyone else {n: t[rows] for n, t in self._constants.items()}
        )
        x, y = self.x, self.y
        if not self._shared and not everyone:
            x, y = x[rows], y[rows]
        weights = self.weights if self.weights is None or everyone else self.weights[rows]
        if batch is not None:
            x, y = (x[batch], y[batch]) if self._shared else (x[:, batch], y[:, batch])
            weights = None if weights is None else weights[:, batch]
        shared = None if self._shared else 0
        call = vmap(
            self._value,
            in_dims=(0, 0, shared, shared, None if weights is None else 0),
            randomness="different",
        )
        found: Tensor = call(theta, constants, x, y, weights)
        return found

    def _value(
        self, row: Tensor, constants: dict[str, Tensor], x: Tensor, y: Tensor,
        weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        out = self._output(row, constants, x)
        if weights is None:
            return len(y) * self._loss_of(row, constants, out, y)

        def one(prediction: Tensor, target: Tensor) -> Tensor:
            return self._loss_of(row, constants, prediction[None], target[None])

        return (weights * vmap(one)(out, y)).sum()

    def _output(self, row: Tensor, constants: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(self._model, self._of("model.", row, constants), (x,))
        return found

    def _loss_of(self, row: Tensor, constants: dict[str, Tensor], out: Tensor, y: Tensor) -> Tensor:
        if not isinstance(self._loss, nn.Module):
            plain: Tensor = self._loss(out, y)
            return plain
        found: Tensor = functional_call(self._loss, self._of("loss.", row, constants), (out, y))
        return found

    def _of(self, prefix: str, row: Tensor, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the model or of the loss, by their names there."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), row.split(sizes), strict=True)
        found = {name: part.view(shape) for (name, shape), part in parts} | dict(constants)
        return {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}

    def _stacked_constants(self) -> dict[str, Tensor]:
        """What no optimiser moves: frozen parameters and buffers, by name (b, ...)."""
        stacked: dict[str, list[Tensor]] = {}
        for pair in zip(self.models, self.losses, strict=True):
            for prefix, module in zip(("model.", "loss."), pair, strict=True):
                if not isinstance(module, nn.Module):
                    continue
                for name, t in [*module.named_parameters(), *module.named_buffers()]:
                    if prefix + name not in self._shapes:
                        stacked.setdefault(prefix + name, []).append(_real(t, self.dtype))
        return {name: torch.stack([t.detach() for t in each]) for name, each in stacked.items()}

    def _cases(self, data: Any) -> tuple[Tensor, Tensor, bool]:
        shared = len(data) == 2 and isinstance(data[0], Tensor)
        pairs = [data] if shared else list(data)
        if not shared and len(pairs) != len(self.models):
            raise ValueError(
                f"{len(self.models)} networks need one pair (x, y), or one each; got {len(pairs)}"
            )
        for x, y in pairs:
            if len(x) != len(y) or x.shape != pairs[0][0].shape or y.shape != pairs[0][1].shape:
                raise ValueError(
                    "the data sets need one shape, x and y of one length; got "
                    f"{[(tuple(x.shape), tuple(y.shape)) for x, y in pairs]}. Leave cases out by "
                    "weights= of 0"
                )
        x, y = (torch.stack(each) for each in zip(*pairs, strict=True))
        x, y = (_real(t, self.dtype).to(self.device) for t in (x, y))
        return (x[0], y[0], True) if shared else (x, y, False)


def _real(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() else t


def _bare(module: nn.Module) -> Any:
    """A copy to be called with tensors of others, in training mode."""
    return copy.deepcopy(module).train()


def _parameters(model: nn.Module, loss: object) -> dict[str, nn.Parameter]:
    """What an optimiser moves, by name."""
    named = {f"model.{name}": p for name, p in model.named_parameters()}
    if isinstance(loss, nn.Module):
        named |= {f"loss.{name}": p for name, p in loss.named_parameters()}
    return {name: p for name, p in named.items() if p.requires_grad}


def _check_alike(modules: Sequence[Any], what: str, *, distinct: bool = True) -> None:
    if not modules:
        raise ValueError(f"an ensemble needs at least one member; got no {what}")
    if distinct and len({id(m) for m in modules}) < len(modules):
        raise ValueError(f"the same module is there twice among the {what}: make one per member")
    tensors = [id(t) for m in modules for t in {id(p): p for p in m.parameters()}.values()]
    if distinct and len(set(tensors)) < len(tensors):
        raise ValueError(
            f"two of the {what} share a parameter: they would be one, not side by side; make each "
            "from scratch, or copy.deepcopy it"
        )
    first = {
        n: (t.shape, t.requires_grad) for n, t in modules[0].state_dict(keep_vars=True).items()
    }
    for number, module in enumerate(modules):
        own = {n: (t.shape, t.requires_grad) for n, t in module.state_dict(keep_vars=True).items()}
        if type(module) is not type(modules[0]) or own != first:
            odd = [n for n in {**first, **own} if first.get(n) != own.get(n)]
            raise ValueError(
                f"the {what} must be alike but for their values; number {number}, a "
                f"{type(module).__name__}, differs from number 0, a {type(modules[0]).__name__}"
                + (f", in {', '.join(odd[:5])}" if odd else "")
            )
        for name, part in module.named_modules():
            if isinstance(part, _STATEFUL) and part.track_running_stats:
                raise ValueError(
                    f"{name} ({type(part).__name__}) changes its own buffers while it trains, "
                    "which networks side by side cannot: use GroupNorm or LayerNorm, or train them "
                    "one by one with `fit`"
                )
